"""COCO's categories as labels: `instances_val2014.json` or another of its files, and the images.

In: these files. Out: one entry per image with labels. A crowd counts as its category. Images have
the `image_id` of COCO's captions, so that an image in both data sets is recognized.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipeline.importing.entries import Entry, file_in
from data_pipeline.importing.label_lists import keep_labelled
from data_pipeline.importing.official import check_folder, read_json, reading, source_of

LISTS = "coco_52_12_16"


def read(
    instances: Path, images: Path, labels: str | None = None
) -> tuple[list[Entry], dict[str, Any]]:
    """List the images with the names of the categories in them, leaving out those without any.

    With `labels` (train, val, test) only images with at least one label of that part of the
    52/12/16 lists. Images are searched below `images`, and there in the folder of the split. Raises
    `DataError` for files that are missing or not COCO's, and for an annotation of an unknown image
    or category.
    """
    check_folder(images, "images")
    split = instances.stem.removeprefix("instances_")
    document = read_json(instances)
    with reading(instances, "an instances file of COCO"):
        names = {int(category["id"]): category["name"] for category in document["categories"]}
        labels_by_image: dict[int, set[str]] = {}
        for image in document["images"]:
            # Images without annotations stay in the list, and are left out and counted later.
            labels_by_image[int(image["id"])] = set()
        repeated = len(document["images"]) - len(labels_by_image)
        if repeated:
            raise ValueError(f"{repeated} images come twice")
        for annotation in document["annotations"]:
            number, category = int(annotation["image_id"]), int(annotation["category_id"])
            if number not in labels_by_image or category not in names:
                raise ValueError(
                    f"annotation {annotation['id']} is of image {number}, category {category}, "
                    "which is unknown"
                )
            labels_by_image[number].add(names[category])
        entries = []
        for image in document["images"]:
            number = int(image["id"])
            entry = _entry(number, image["file_name"], labels_by_image[number], images, split)
            entries.append(entry)
    entries, summary = keep_labelled(entries, LISTS, labels)
    name = f"coco-labels-{split}" + (f"-{labels}" if labels else "")
    return entries, source_of(name, "coco_labels", split, "coco", [instances]) | summary


def _entry(number: int, filename: str, labels: set[str], images: Path, split: str) -> Entry:
    annotations = {"labels": sorted(labels), "image_id": str(number), "filename": filename}
    file = file_in(images, filename, f"{split}/{filename}")
    return Entry(f"{number:012d}", (file,), annotations)
