"""COCO's categories as labels: `instances_val2014.json` or another of its files, and the pictures.

A crowd counts as its category. Pictures have the `image_id` of COCO's captions, so that what is in
both is seen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipeline.importing.entries import Entry, file_in
from data_pipeline.importing.label_lists import keep_labelled
from data_pipeline.importing.official import check_folder, read_json, reading, source_of

LISTS = "coco_52_12_16"


def read(
    instances: Path, pictures: Path, labels: str | None = None
) -> tuple[list[Entry], dict[str, Any]]:
    """List the pictures with the names of the categories in them, less those without any.

    With `labels` (train, val, test) only pictures that have at least one of that part of the
    52/12/16 lists. Pictures are looked for below `pictures` and there in the folder of the split.
    Raises `DataError` for files that are missing or not COCO's, and an annotation of an unknown
    picture or category.
    """
    check_folder(pictures, "pictures")
    split = instances.stem.removeprefix("instances_")
    document = read_json(instances)
    with reading(instances, "an instances file of COCO"):
        names = {int(category["id"]): category["name"] for category in document["categories"]}
        found: dict[int, set[str]] = {int(image["id"]): set() for image in document["images"]}
        if len(found) < len(document["images"]):
            raise ValueError(f"{len(document['images']) - len(found)} pictures come twice")
        for annotation in document["annotations"]:
            image, category = int(annotation["image_id"]), int(annotation["category_id"])
            if image not in found or category not in names:
                raise ValueError(
                    f"annotation {annotation['id']} is of picture {image}, category {category}: unknown"
                )
            found[image].add(names[category])
        entries = [
            _entry(int(image["id"]), image["file_name"], found[int(image["id"])], pictures, split)
            for image in document["images"]
        ]
    entries, said = keep_labelled(entries, LISTS, labels)
    name = f"coco-labels-{split}" + (f"-{labels}" if labels else "")
    return entries, source_of(name, "coco_labels", split, "coco", [instances]) | said


def _entry(image: int, filename: str, labels: set[str], pictures: Path, split: str) -> Entry:
    annotations = {"labels": sorted(labels), "image_id": str(image), "filename": filename}
    return Entry(
        f"{image:012d}", (file_in(pictures, filename, f"{split}/{filename}"),), annotations
    )
