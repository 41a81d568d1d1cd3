"""Classes of pictures: which of them are taken, what they are called in words, and a hash that tells class lists apart.

A class is named as the data set names it (a folder, a WordNet id); its label is what one would say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.importing.official import read_json, read_lines, reading


def choose_classes(known: Sequence[str], wanted: Path | None, where: object) -> list[str]:
    """Return the classes of a list, one a line (or the `class_names` of easyfsl's JSON), or all that are `known`.

    Raises `DataError` for a list that is empty, names a class twice, or names one that is not in
    `where`.
    """
    if wanted is None:
        return list(known)
    classes = read_classes(wanted)
    if unknown := sorted(set(classes) - set(known)):
        raise DataError(
            f"{wanted} names {len(unknown)} classes that are not in {where}: {', '.join(unknown[:5])}"
            f"{', ...' if len(unknown) > 5 else ''} (there are {', '.join(sorted(known)[:5])}, ...)"
        )
    return classes


def read_classes(path: Path) -> list[str]:
    """Read the names of classes, one a line (or the `class_names` of easyfsl's JSON); raises as `choose_classes`."""
    if path.suffix.lower() == ".json":
        document = read_json(path)
        with reading(path, 'a list of classes ({"class_names": [...]})'):
            classes = [name.strip() for name in document["class_names"]]
    else:
        classes = [name for (name,) in read_lines(path)]
    if not classes:
        raise DataError(f"{path} names no class: write one a line")
    if twice := sorted({name for name in classes if classes.count(name) > 1}):
        raise DataError(f"{path} names {twice[0]} twice")
    return classes


def read_names(path: Path) -> dict[str, str]:
    """Read what classes are called: a JSON object, or lines of a class and its name.

    Raises `DataError` for a file that is neither, and for a class that has two names.
    """
    if path.suffix.lower() != ".json":
        names: dict[str, str] = {}
        for name, called in read_lines(path, columns=2):
            if names.setdefault(name, called) != called:
                raise DataError(
                    f"{path} has two names for the class {name}: {names[name]!r} and {called!r}"
                )
        return names
    document = read_json(path)
    with reading(path, "an object of classes and their names"):
        if bad := [
            name for name in document.values() if not isinstance(name, str) or not name.strip()
        ]:
            raise ValueError(f"{bad[0]!r} is no name")
        return dict(document)


def labels_of(
    classes: Iterable[str], names: Mapping[str, str] | None = None, file: object = None
) -> dict[str, str]:
    """Return the label of each class: its name in `names` (of `file`) or its own one, with spaces for underscores.

    Raises `DataError` for a class without name, and for two classes of one label.
    """
    labels: dict[str, str] = {}
    of_label: dict[str, str] = {}
    for name in classes:
        if names is not None and name not in names:
            raise DataError(f"{file} has no name for the class {name}")
        label = (name if names is None else names[name]).replace("_", " ").strip()
        if not label:
            raise DataError(f"the class {name!r} has no letter in its name: give it another one")
        if of_label.setdefault(label, name) != name:
            raise DataError(
                f"the classes {of_label[label]} and {name} are both called {label!r}: give other names"
            )
        labels[name] = label
    return labels


def class_list(classes: Collection[str]) -> dict[str, Any]:
    """Say for the manifest how many classes there are, and the sha256 of their sorted names, one a line."""
    digest = hashlib.sha256("".join(f"{name}\n" for name in sorted(classes)).encode()).hexdigest()
    return {"classes": len(classes), "class_list": f"sha256:{digest}"}
