"""Visual Genome: `region_descriptions.json`, `image_data.json` and the pictures, for training.

A sample is a picture with the phrases of its regions as captions. Many of the pictures are COCO's
and some Flickr30k's, so that a model trained on them has seen test pictures: those of `val` and
`test` of Karpathy's splits are left out where their files are given. The manifest says of which
data sets that was done (`excluded`) and of how many pictures (`shares_pictures_with`);
`without_phrases` counts pictures that have no region.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipeline.importing.entries import Entry, file_in
from data_pipeline.importing.official import check_folder, read_json, reading, source_of
from data_pipeline.sources.karpathy import picture_ids

EXCLUDED = ("val", "test")
_ID_OF = {"coco": "coco_id", "flickr30k": "flickr_id"}


def read(
    regions: Path,
    images: Path,
    pictures: Path,
    without_coco: Path | None = None,
    without_flickr30k: Path | None = None,
) -> tuple[list[Entry], dict[str, Any]]:
    """List the pictures with their phrases, less those that stand in `val` or `test` of Karpathy's files.

    Pictures are looked for as in `image_data.json`'s addresses (VG_100K/1.jpg, VG_100K_2/2.jpg),
    and without folder. Raises `DataError` for files that are missing or not Visual Genome's.
    """
    check_folder(pictures, "pictures")
    document = read_json(images)
    with reading(images, "the picture list of Visual Genome"):
        described = {int(image["image_id"]): image for image in document}
        seen_elsewhere = {
            image: {
                name: str(int(about[field]))
                for name, field in _ID_OF.items()
                if about[field] is not None
            }
            for image, about in described.items()
        }
    given = {"coco": without_coco, "flickr30k": without_flickr30k}
    refused = {
        name: picture_ids(name, file, EXCLUDED) for name, file in given.items() if file is not None
    }
    left = {
        image: [name for name, number in ids.items() if number in refused.get(name, ())]
        for image, ids in seen_elsewhere.items()
    }
    document = read_json(regions)
    with reading(regions, "the region descriptions of Visual Genome"):
        entries = [
            _entry(described[int(image["id"])], image["regions"], pictures)
            for image in document
            if not left[int(image["id"])] and image["regions"]
        ]
    files = [regions, images, *(file for file in given.values() if file is not None)]
    shared = [_shared(name, given[name], seen_elsewhere, list(left.values())) for name in _ID_OF]
    bare = sum(not image["regions"] for image in document)
    source = source_of("visual-genome", "visual_genome", "train", "visual_genome", files)
    source["excluded"] = [name for name, file in given.items() if file is not None]
    return entries, source | {"shares_pictures_with": shared, "without_phrases": bare}


def _entry(about: dict[str, Any], regions: Sequence[dict[str, Any]], pictures: Path) -> Entry:
    image = int(about["image_id"])
    folder = about["url"].split("/")[-2]
    annotations = {"captions": [region["phrase"] for region in regions], "image_id": str(image)}
    return Entry(
        f"{image:09d}", (file_in(pictures, f"{folder}/{image}.jpg", f"{image}.jpg"),), annotations
    )


def _shared(
    name: str,
    file: Path | None,
    elsewhere: dict[int, dict[str, str]],
    left: Sequence[Sequence[str]],
) -> dict[str, Any]:
    """Say of another collection how many pictures are known to be its, and which of them were left out."""
    return {
        "pictures": name,
        "known": sum(name in ids for ids in elsewhere.values()),
        "excluded_splits": [] if file is None else list(EXCLUDED),
        "excluded": sum(name in names for names in left),
    }
