"""iMaterialist (Fashion) 2018, of FGVC5: `train.json` or `validation.json`, and the images.

In: the file, and the folder of the images that one downloaded. Out: one entry per image with
labels. Labels are the numbers 1 to 228 as text. The challenge's table
`iMat_fashion_2018_label_map_228.csv` or another file says how they are called.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipeline.importing.class_names import labels_of, read_names
from data_pipeline.importing.entries import Entry, file_in, key_of
from data_pipeline.importing.label_lists import keep_labelled
from data_pipeline.importing.official import check_folder, read_json, read_table, reading, source_of
from data_pipeline.sample import IMAGE_EXTENSIONS


def read(
    annotations: Path, images: Path, names: Path | None = None, labels: str | None = None
) -> tuple[list[Entry], dict[str, Any]]:
    """List the annotated images.

    Images are searched below `images` as IMAGEID.jpg, .jpeg, .png and .webp. With `labels` (base,
    val, novel) only images with at least one label of that list. Raises `DataError` for files that
    are missing or not of the challenge (`test.json` has no annotations), and for an image that
    comes twice.
    """
    check_folder(images, "images")
    entries = []
    for image_id, numbers in _labels_by_image(annotations).items():
        entries.append(_entry(image_id, numbers, images))
    entries, summary = keep_labelled(entries, "imaterialist", labels)
    files = [annotations]
    if names is not None:
        _rename_labels(entries, summary, names)
        files.append(names)
    name = f"imaterialist-{annotations.stem}" + (f"-{labels}" if labels else "")
    source = source_of(name, "imaterialist", annotations.stem, "imaterialist", files)
    return entries, source | summary


def _labels_by_image(annotations: Path) -> dict[str, list[str]]:
    document = read_json(annotations)
    with reading(annotations, "an annotated file of iMaterialist (Fashion) 2018"):
        image_key, label_key = "imageId", "labelId"
        if image_key not in document["images"][0]:
            image_key, label_key = "image_id", "label_id"  # the names in the challenge's README
        labels: dict[str, list[str]] = {}
        for annotation in document["annotations"]:
            numbers = sorted({int(label) for label in annotation[label_key]})
            labels[str(annotation[image_key])] = [str(number) for number in numbers]
        repeated = len(document["annotations"]) - len(labels)
        if repeated:
            raise ValueError(f"{repeated} images are annotated twice")
        listed = {str(image[image_key]) for image in document["images"]}
        if listed != labels.keys():
            raise ValueError(
                f"image {min(listed ^ labels.keys())} is in only one of images and annotations"
            )
        return labels


def _entry(image_id: str, labels: list[str], images: Path) -> Entry:
    file = file_in(images, *(f"{image_id}.{extension}" for extension in IMAGE_EXTENSIONS))
    return Entry(key_of(image_id.zfill(7)), (file,), {"labels": labels, "image_id": image_id})


def _rename_labels(entries: list[Entry], summary: dict[str, Any], names: Path) -> None:
    """Replace numbers by names, in the samples and in the list that selected them."""
    label_lists = [entry.annotations for entry in entries]
    if "label_split" in summary:
        label_lists.append(summary["label_split"])
    used: set[str] = set()
    for holder in label_lists:
        used.update(holder["labels"])
    name_by_label = labels_of(sorted(used, key=int), _names(names), names)
    for holder in label_lists:
        holder["labels"] = [name_by_label[label] for label in holder["labels"]]


def _names(path: Path) -> dict[str, str]:
    if path.suffix.lower() != ".csv":
        return read_names(path)
    rows = read_table(path)
    with reading(path, "a table with the columns labelId and labelName"):
        number, name = rows[0].index("labelId"), rows[0].index("labelName")
        return {row[number]: row[name] for row in rows[1:]}
