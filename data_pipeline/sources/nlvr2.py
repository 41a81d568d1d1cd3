"""NLVR2: a file of statements (one JSON per line: train, dev, test1, ...) and the images.

In: these files. Out: one entry per pair of images, with all statements about it. A statement's
`identifier` is SPLIT-SET-PAIR-SENTENCE; its images are SPLIT-SET-PAIR-img0.png (left) and -img1.png
(right). The same sentence is about up to four pairs, which are its `group` (the identifier without
its third part): consistency is counted by groups.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipeline.importing.entries import Entry, file_in
from data_pipeline.importing.official import check_folder, read_json_lines, reading, source_of

LABELS = {"true": "True", "false": "False"}


def read(statements: Path, images: Path) -> tuple[list[Entry], dict[str, Any]]:
    """List the pairs of a statements file; identifiers begin with its split.

    Images are searched below `images`, and there in the folder of the split and in the numbered
    folders of train (`directory`). Raises `DataError` for files that are missing or not of NLVR2,
    and for an identifier that comes twice.
    """
    check_folder(images, "images")
    lines = read_json_lines(statements)
    entries: dict[str, Entry] = {}
    seen: set[str] = set()
    splits: set[str] = set()
    with reading(statements, "a statements file of NLVR2"):
        for line in lines:
            identifier = line["identifier"]
            if identifier in seen:
                raise ValueError(f"{identifier} comes twice")
            seen.add(identifier)
            # Text in the official files; a JSON boolean is accepted too.
            label = str(line["label"]).lower()
            if label not in LABELS:
                raise ValueError(
                    f"the label of {identifier} is {line['label']!r}, not True or False"
                )
            split, image_set, pair, sentence = identifier.split("-")
            splits.add(split)
            key = f"{split}-{image_set}-{pair}"
            if key not in entries:
                left = _image(images, f"{key}-img0.png", split, line)
                right = _image(images, f"{key}-img1.png", split, line)
                entries[key] = Entry(key, (left, right), {"image_id": key, "questions": []})
            statement = {
                "id": identifier,
                "question": line["sentence"],
                "answers": [LABELS[label]],
                "type": "statement",
                "answer_type": "yes/no",
                "group": f"{split}-{image_set}-{sentence}",
            }
            entries[key].annotations["questions"].append(statement)
        if not splits:
            raise ValueError("it holds no statement")
        if len(splits) > 1:
            raise ValueError(f"it mixes the splits {', '.join(sorted(splits))}")
    # Named by the file and not by the split, which has a balanced and an unbalanced subset.
    name = f"nlvr2-{statements.stem}"
    source = source_of(name, "nlvr2", splits.pop(), "nlvr2", [statements])
    return list(entries.values()), source


def _image(images: Path, name: str, split: str, line: dict[str, Any]) -> Path:
    names = [name, f"{split}/{name}"]
    if "directory" in line:
        names += [f"{line['directory']}/{name}", f"{split}/{line['directory']}/{name}"]
    return file_in(images, *names)
