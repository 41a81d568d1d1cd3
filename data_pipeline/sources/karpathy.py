"""COCO and Flickr30k in Karpathy's splits: `dataset_coco.json` or `dataset_flickr30k.json`, and the pictures.

Every picture with all of its captions as written (`raw`). COCO is trained on `train+restval`,
evaluated on 5,000 pictures of `val` or `test`; Flickr30k has no `restval`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError, UsageError
from data_pipeline.importing.entries import Entry, file_in, key_of
from data_pipeline.importing.official import check_folder, read_json, reading, source_of

_WHAT = "a file of Karpathy's splits"
SPLITS = ("train", "restval", "val", "test")


def read(
    dataset: str, annotations: Path, pictures: Path, split: str
) -> tuple[list[Entry], dict[str, Any]]:
    """List the samples of a split of `coco` or `flickr30k`; `split` may join several with `+`.

    Pictures are looked for as FILEPATH/FILENAME and as FILENAME below `pictures`. Raises
    `DataError` for files that are missing or not Karpathy's, and for a split that is not there.
    """
    wanted = split.split("+")
    for name in wanted:
        if name not in SPLITS:
            raise UsageError(
                f"{name!r} is no split of Karpathy's: choose of {', '.join(SPLITS)} (or train+restval)"
            )
    check_folder(pictures, "pictures")
    with reading(annotations, _WHAT):
        images = _images(dataset, annotations)
        found = {image["split"] for image in images}
        entries = [_entry(dataset, image, pictures) for image in images if image["split"] in wanted]
    for name in wanted:
        if name not in found:
            raise DataError(
                f"{annotations} holds no split {name!r}, only {', '.join(sorted(found))}"
            )
    name = f"{dataset}-karpathy-{split}"
    return entries, source_of(name, dataset, split, dataset, [annotations])


def picture_ids(dataset: str, annotations: Path, splits: Sequence[str]) -> set[str]:
    """Ids of the pictures of some splits, as `image_id` of the samples holds them; raises as `read` does."""
    with reading(annotations, _WHAT):
        return {
            _image_id(image) for image in _images(dataset, annotations) if image["split"] in splits
        }


def _images(dataset: str, annotations: Path) -> list[dict[str, Any]]:
    document = read_json(annotations)
    if document["dataset"] != dataset:
        raise ValueError(f"it is of {document['dataset']!r}, not of {dataset!r}")
    return document["images"]


def _entry(dataset: str, image: dict[str, Any], pictures: Path) -> Entry:
    image_id, filename = _image_id(image), image["filename"]
    captions = [sentence["raw"] for sentence in image["sentences"]]
    if not any(caption.strip() for caption in captions):
        raise ValueError(f"{filename} has no caption")
    folder = image.get("filepath")
    file = file_in(pictures, *([f"{folder}/{filename}"] if folder else []), filename)
    annotations = {"captions": captions, "image_id": image_id, "filename": filename}
    annotations["sentence_ids"] = [sentence["sentid"] for sentence in image["sentences"]]
    key = key_of(image_id.zfill(12) if dataset == "coco" else image_id)
    return Entry(key, (file,), annotations)


def _image_id(image: dict[str, Any]) -> str:
    """COCO's number of a picture; that of Flickr is the name of its file."""
    return str(int(image["cocoid"])) if "cocoid" in image else Path(image["filename"]).stem
