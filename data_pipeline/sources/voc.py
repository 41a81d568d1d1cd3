"""PASCAL VOC: `ImageSets/Main/SPLIT.txt`, `Annotations/*.xml` and `JPEGImages/` of VOCdevkit/VOC2007 or VOC2012.

Objects that the annotators marked as difficult give no label, as in the official evaluation of
classification.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from data_pipeline.errors import DataError, UsageError
from data_pipeline.importing.entries import Entry, file_in, key_of
from data_pipeline.importing.label_lists import keep_labelled
from data_pipeline.importing.official import check_folder, read_lines, source_of

SPLITS = ("train", "val", "trainval", "test")


def read(root: Path, split: str, labels: str | None = None) -> tuple[list[Entry], dict[str, Any]]:
    """List the pictures of a split with the names of their objects, less those without any.

    With `labels` (base, val, novel) only pictures that have at least one of that list. Raises
    `DataError` for files that are missing or damaged; the annotations of some tests were never
    published.
    """
    if split not in SPLITS:
        raise UsageError(f"{split!r} is no split of PASCAL VOC: choose of {', '.join(SPLITS)}")
    for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
        check_folder(root / folder, "data set, as VOCdevkit/VOC2012")
    listed = root / "ImageSets" / "Main" / f"{split}.txt"
    digest = hashlib.sha256()
    entries = []
    for (image,) in read_lines(listed):
        content = _read(file_in(root / "Annotations", f"{image}.xml"), split)
        digest.update(content)
        annotations = {
            "labels": _labels(root / "Annotations" / f"{image}.xml", content),
            "image_id": image,
        }
        entries.append(
            Entry(key_of(image), (file_in(root / "JPEGImages", f"{image}.jpg"),), annotations)
        )
    entries, said = keep_labelled(entries, "voc", labels)
    name = f"{key_of(root.resolve().name.lower())}-{split}" + (f"-{labels}" if labels else "")
    source = source_of(name, "voc", split, "voc", [listed])
    return entries, source | said | {"annotations": f"sha256:{digest.hexdigest()}"}


def _read(file: Path, split: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        hint = " (VOC2012 has none of its test)" if split == "test" else ""
        raise DataError(f"{file} cannot be read: {error.strerror}{hint}") from None


class _NoDoctype(ElementTree.TreeBuilder):
    """What refuses a document type, and with it every entity: files of others may hold what explodes."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("it declares a document type, which no annotation of PASCAL VOC does")


def _labels(file: Path, content: bytes) -> list[str]:
    try:
        document = ElementTree.fromstring(content, ElementTree.XMLParser(target=_NoDoctype()))
        # The parts of an object (head, hand) stand deeper.
        objects = document.findall("object")
        if document.tag != "annotation" or any(
            not one.findtext("name", "").strip() for one in objects
        ):
            raise ValueError("its objects have no names")
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{file} is not an annotation of PASCAL VOC: {error}") from None
    return sorted(
        {
            one.findtext("name", "").strip()
            for one in objects
            if one.findtext("difficult", "0").strip() != "1"
        }
    )
