"""Visual Genome for training: `region_descriptions.json`, `image_data.json` and the images.

In: these files. Out: one entry per image, with the phrases of its regions as captions. Many of the
images are COCO's and some are Flickr30k's, so a model trained on them would have seen test images.
Those in `val` and `test` of Karpathy's splits are left out if their files are given. The manifest
says for which data sets that was done (`excluded`) and how many images are shared
(`shares_pictures_with`); `without_phrases` counts images that have no region.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipeline.importing.entries import Entry, file_in
from data_pipeline.importing.official import check_folder, read_json, reading, source_of
from data_pipeline.sources.karpathy import image_ids

EXCLUDED = ("val", "test")
_ID_FIELDS = {"coco": "coco_id", "flickr30k": "flickr_id"}


def read(
    regions: Path,
    image_data: Path,
    images: Path,
    without_coco: Path | None = None,
    without_flickr30k: Path | None = None,
) -> tuple[list[Entry], dict[str, Any]]:
    """List the images with their phrases, except those in `val` or `test` of Karpathy's files.

    Images are searched below `images` by the addresses in `image_data.json` (VG_100K/1.jpg,
    VG_100K_2/2.jpg), and without a folder. Raises `DataError` for files that are missing or not
    Visual Genome's.
    """
    check_folder(images, "images")
    document = read_json(image_data)
    with reading(image_data, "the image list of Visual Genome"):
        described = {int(image["image_id"]): image for image in document}
        ids_elsewhere = {image: _ids_elsewhere(about) for image, about in described.items()}
    given = {"coco": without_coco, "flickr30k": without_flickr30k}
    files = [regions, image_data]
    excluded_ids = {}
    for collection, file in given.items():
        if file is not None:
            excluded_ids[collection] = image_ids(collection, file, EXCLUDED)
            files.append(file)
    # For each image, the collections in whose val or test it is.
    excluded_by: dict[int, list[str]] = {}
    for image, ids in ids_elsewhere.items():
        excluded_by[image] = []
        for collection, number in ids.items():
            if number in excluded_ids.get(collection, ()):
                excluded_by[image].append(collection)
    document = read_json(regions)
    entries = []
    without_phrases = 0
    with reading(regions, "the region descriptions of Visual Genome"):
        for about in document:
            image = int(about["id"])
            excluded_from = excluded_by[image]
            if not about["regions"]:
                without_phrases += 1
            elif not excluded_from:
                entries.append(_entry(described[image], about["regions"], images))
    shared = []
    for collection in _ID_FIELDS:
        excluded = sum(collection in collections for collections in excluded_by.values())
        summary = {
            "pictures": collection,
            "known": sum(collection in ids for ids in ids_elsewhere.values()),
            "excluded_splits": list(EXCLUDED) if collection in excluded_ids else [],
            "excluded": excluded,
        }
        shared.append(summary)
    source = source_of("visual-genome", "visual_genome", "train", "visual_genome", files)
    source["excluded"] = list(excluded_ids)
    return entries, source | {"shares_pictures_with": shared, "without_phrases": without_phrases}


def _ids_elsewhere(about: dict[str, Any]) -> dict[str, str]:
    """Return the ids that an image has in COCO and Flickr30k."""
    ids = {}
    for collection, field in _ID_FIELDS.items():
        if about[field] is not None:
            ids[collection] = str(int(about[field]))
    return ids


def _entry(about: dict[str, Any], regions: Sequence[dict[str, Any]], images: Path) -> Entry:
    image = int(about["image_id"])
    folder = about["url"].split("/")[-2]
    file = file_in(images, f"{folder}/{image}.jpg", f"{image}.jpg")
    annotations = {"captions": [region["phrase"] for region in regions], "image_id": str(image)}
    return Entry(f"{image:09d}", (file,), annotations)
