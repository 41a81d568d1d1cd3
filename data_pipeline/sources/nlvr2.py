"""NLVR2: a file of statements (one JSON a line: train, dev, test1, ...) and the pictures.

A sample is a pair of pictures with all statements about it. A statement's `identifier` is
SPLIT-SET-PAIR-SENTENCE; its pictures are SPLIT-SET-PAIR-img0.png (left) and -img1.png (right). The
same sentence is about up to four pairs, which are its `group` (the identifier without its third
part): consistency is counted by groups.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipeline.importing.entries import Entry, file_in
from data_pipeline.importing.official import check_folder, read_json_lines, reading, source_of

LABELS = {"true": "True", "false": "False"}


def read(statements: Path, pictures: Path) -> tuple[list[Entry], dict[str, Any]]:
    """List the pairs of a statements file; the split is what its identifiers begin with.

    Pictures are looked for below `pictures`, and there in the folder of the split and in the
    numbered folders of train (`directory`). Raises `DataError` for files that are missing or no
    file of NLVR2, and for an identifier that comes twice.
    """
    check_folder(pictures, "pictures")
    lines = read_json_lines(statements)
    found: dict[str, Entry] = {}
    seen: set[str] = set()
    with reading(statements, "a statements file of NLVR2"):
        for line in lines:
            identifier = line["identifier"]
            if identifier in seen:
                raise ValueError(f"{identifier} comes twice")
            seen.add(identifier)
            if (label := str(line["label"]).lower()) not in LABELS:
                raise ValueError(
                    f"the label of {identifier} is {line['label']!r}, not True or False"
                )
            split, numbered, pair, sentence = identifier.split("-")
            key = f"{split}-{numbered}-{pair}"
            if key not in found:
                media = tuple(
                    _picture(pictures, f"{key}-img{side}.png", split, line) for side in (0, 1)
                )
                found[key] = Entry(key, media, {"image_id": key, "questions": []})
            found[key].annotations["questions"].append(
                {
                    "id": identifier,
                    "question": line["sentence"],
                    "answers": [LABELS[label]],
                    "type": "statement",
                    "answer_type": "yes/no",
                    "group": f"{split}-{numbered}-{sentence}",
                }
            )
        splits = sorted({key.split("-")[0] for key in found})
        if len(splits) != 1:
            raise ValueError(
                f"it mixes the splits {', '.join(splits)}" if splits else "it holds no statement"
            )
    # By file, as balanced and unbalanced subsets of a split are.
    source = source_of(f"nlvr2-{statements.stem}", "nlvr2", splits[0], "nlvr2", [statements])
    return list(found.values()), source


def _picture(pictures: Path, name: str, split: str, line: dict[str, Any]) -> Path:
    numbered = (
        [f"{line['directory']}/{name}", f"{split}/{line['directory']}/{name}"]
        if "directory" in line
        else []
    )
    return file_in(pictures, name, f"{split}/{name}", *numbered)
