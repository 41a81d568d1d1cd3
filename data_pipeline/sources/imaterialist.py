"""iMaterialist (Fashion) 2018, of FGVC5: `train.json` or `validation.json`, and the pictures that one downloaded.

Labels are the numbers 1 to 228 as text. The challenge's table `iMat_fashion_2018_label_map_228.csv`
says what they are called, and so may another file.
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
    annotations: Path, pictures: Path, names: Path | None = None, labels: str | None = None
) -> tuple[list[Entry], dict[str, Any]]:
    """List the annotated pictures; they are looked for as IMAGEID.jpg, .jpeg, .png and .webp below `pictures`.

    With `labels` (base, val, novel) only pictures that have at least one of that list. Raises
    `DataError` for files that are missing or not of the challenge (`test.json` has no annotations),
    and for a picture that comes twice.
    """
    check_folder(pictures, "pictures")
    document = read_json(annotations)
    with reading(annotations, "an annotated file of iMaterialist (Fashion) 2018"):
        # Its README calls them image_id and label_id.
        image_id, label_id = (
            ("imageId", "labelId")
            if "imageId" in document["images"][0]
            else ("image_id", "label_id")
        )
        listed = {str(image[image_id]) for image in document["images"]}
        labelled = {
            str(one[image_id]): sorted({str(int(label)) for label in one[label_id]}, key=int)
            for one in document["annotations"]
        }
        if len(labelled) < len(document["annotations"]):
            raise ValueError(
                f"{len(document['annotations']) - len(labelled)} pictures are annotated twice"
            )
        if listed != labelled.keys():
            raise ValueError(
                f"picture {min(listed ^ labelled.keys())} is only in one of images and annotations"
            )
    entries = [_entry(image, found, pictures) for image, found in labelled.items()]
    entries, said = keep_labelled(entries, "imaterialist", labels)
    if names is not None:
        _rename(entries, said, names)
    name = f"imaterialist-{annotations.stem}" + (f"-{labels}" if labels else "")
    files = [annotations, *([names] if names else [])]
    return entries, source_of(name, "imaterialist", annotations.stem, "imaterialist", files) | said


def _entry(image: str, labels: list[str], pictures: Path) -> Entry:
    file = file_in(pictures, *(f"{image}.{extension}" for extension in IMAGE_EXTENSIONS))
    return Entry(key_of(image.zfill(7)), (file,), {"labels": labels, "image_id": image})


def _rename(entries: list[Entry], said: dict[str, Any], names: Path) -> None:
    """Put names for numbers, in the samples and in the list that they were chosen by."""
    split = said.get("label_split", {"labels": []})
    used = {label for entry in entries for label in entry.annotations["labels"]} | set(
        split["labels"]
    )
    called = labels_of(sorted(used, key=int), _names(names), names)
    for holder in (split, *(entry.annotations for entry in entries)):
        holder["labels"] = [called[label] for label in holder["labels"]]


def _names(path: Path) -> dict[str, str]:
    if path.suffix.lower() != ".csv":
        return read_names(path)
    rows = read_table(path)
    with reading(path, "a table with the columns labelId and labelName"):
        number, name = (rows[0].index(column) for column in ("labelId", "labelName"))
        return {row[number]: row[name] for row in rows[1:]}
