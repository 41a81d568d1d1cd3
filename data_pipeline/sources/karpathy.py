"""COCO and Flickr30k in Karpathy's splits: `dataset_coco.json` or `dataset_flickr30k.json`.

In: that file and the folder of the images. Out: one entry per image of a split, with all of its
captions as written (`raw`). COCO models are trained on `train+restval` and evaluated on the 5,000
images of `val` or `test`; Flickr30k has no `restval`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.importing.entries import Entry, file_in, key_of
from data_pipeline.importing.official import (
    check_folder,
    check_split,
    read_json,
    reading,
    source_of,
)

_WHAT = "a file of Karpathy's splits"
SPLITS = ("train", "restval", "val", "test")


def read(
    dataset: str, annotations: Path, images: Path, split: str
) -> tuple[list[Entry], dict[str, Any]]:
    """List the samples of a split of `coco` or `flickr30k`; `split` may join several with `+`.

    Images are searched below `images` as FILEPATH/FILENAME and as FILENAME. Raises `DataError` for
    files that are missing or not Karpathy's, and for a split that is not there.
    """
    parts = split.split("+")
    for part in parts:
        check_split(part, SPLITS, f"Karpathy's {dataset}")
    check_folder(images, "images")
    with reading(annotations, _WHAT):
        described = _images(dataset, annotations)
        present = {image["split"] for image in described}
        entries = []
        for image in described:
            if image["split"] in parts:
                entries.append(_entry(dataset, image, images))
    for part in parts:
        if part not in present:
            raise DataError(
                f"{annotations} holds no split {part!r}, only {', '.join(sorted(present))}"
            )
    name = f"{dataset}-karpathy-{split}"
    return entries, source_of(name, dataset, split, dataset, [annotations])


def image_ids(dataset: str, annotations: Path, splits: Sequence[str]) -> set[str]:
    """Return the `image_id` of every image in some splits; raises the errors of `read`."""
    ids = set()
    with reading(annotations, _WHAT):
        for image in _images(dataset, annotations):
            if image["split"] in splits:
                ids.add(_image_id(image))
    return ids


def _images(dataset: str, annotations: Path) -> list[dict[str, Any]]:
    document = read_json(annotations)
    if document["dataset"] != dataset:
        raise ValueError(f"it is of {document['dataset']!r}, not of {dataset!r}")
    return document["images"]


def _entry(dataset: str, image: dict[str, Any], images: Path) -> Entry:
    image_id, filename = _image_id(image), image["filename"]
    captions = [sentence["raw"] for sentence in image["sentences"]]
    if not any(caption.strip() for caption in captions):
        raise ValueError(f"{filename} has no caption")
    names = [filename]
    if image.get("filepath"):
        names.insert(0, f"{image['filepath']}/{filename}")
    annotations = {"captions": captions, "image_id": image_id, "filename": filename}
    annotations["sentence_ids"] = [sentence["sentid"] for sentence in image["sentences"]]
    # COCO's keys have twelve digits, as its file names do.
    key = key_of(image_id.zfill(12) if dataset == "coco" else image_id)
    return Entry(key, (file_in(images, *names),), annotations)


def _image_id(image: dict[str, Any]) -> str:
    """Return COCO's number of an image; at Flickr it is the name of the file."""
    return str(int(image["cocoid"])) if "cocoid" in image else Path(image["filename"]).stem
