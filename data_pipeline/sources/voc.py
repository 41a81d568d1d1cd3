"""PASCAL VOC: `ImageSets/Main/SPLIT.txt`, `Annotations/*.xml` and `JPEGImages/` of one year.

In: the folder of the year (VOCdevkit/VOC2007 or VOC2012). Out: one entry per image of a split, with
its objects as labels. Objects that the annotators marked as difficult give no label, as in the
official evaluation of classification.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from data_pipeline.errors import DataError
from data_pipeline.importing.entries import Entry, file_in, key_of
from data_pipeline.importing.label_lists import keep_labelled
from data_pipeline.importing.official import check_folder, check_split, read_lines, source_of

SPLITS = ("train", "val", "trainval", "test")


def read(root: Path, split: str, labels: str | None = None) -> tuple[list[Entry], dict[str, Any]]:
    """List the images of a split with the names of their objects, leaving out those without any.

    With `labels` (base, val, novel) only images with at least one label of that list. Raises
    `DataError` for files that are missing or damaged; the annotations of some tests were never
    published.
    """
    check_split(split, SPLITS, "PASCAL VOC")
    for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
        check_folder(root / folder, "data set, as VOCdevkit/VOC2012")
    image_list = root / "ImageSets" / "Main" / f"{split}.txt"
    # One hash for thousands of annotation files.
    digest = hashlib.sha256()
    entries = []
    for (image,) in read_lines(image_list):
        file = file_in(root / "Annotations", f"{image}.xml")
        content = _read(file, split)
        digest.update(content)
        annotations = {"labels": _labels(file, content), "image_id": image}
        media = file_in(root / "JPEGImages", f"{image}.jpg")
        entries.append(Entry(key_of(image), (media,), annotations))
    entries, summary = keep_labelled(entries, "voc", labels)
    name = f"{key_of(root.resolve().name.lower())}-{split}" + (f"-{labels}" if labels else "")
    source = source_of(name, "voc", split, "voc", [image_list])
    return entries, source | summary | {"annotations": f"sha256:{digest.hexdigest()}"}


def _read(file: Path, split: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        hint = " (VOC2012 publishes none for its test)" if split == "test" else ""
        raise DataError(f"{file} cannot be read: {error.strerror}{hint}") from None


class _NoDoctype(ElementTree.TreeBuilder):
    """Refuses document types, and with them all entities, which can expand without limit."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("it declares a document type, which no annotation of PASCAL VOC does")


def _labels(file: Path, content: bytes) -> list[str]:
    try:
        document = ElementTree.fromstring(content, ElementTree.XMLParser(target=_NoDoctype()))
        if document.tag != "annotation":
            raise ValueError("its objects have no names")
        labels = set()
        # Only direct children: the parts of an object (head, hand) are further down.
        for item in document.findall("object"):
            name = item.findtext("name", "").strip()
            if not name:
                raise ValueError("its objects have no names")
            if item.findtext("difficult", "0").strip() != "1":
                labels.add(name)
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{file} is not an annotation of PASCAL VOC: {error}") from None
    return sorted(labels)
