"""Classes of images: which of them are taken, how they are called in words, and a hash of a list.

In: classes as a data set names them (a folder, a WordNet id), and files with lists or names. Out:
for each class a label, which is the name that one would say. The hash tells class lists apart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.importing.official import read_json, read_lines, reading


def choose_classes(available: Sequence[str], list_file: Path | None, where: object) -> list[str]:
    """Return the classes that a file lists, or all that are `available` without a file.

    The file holds one class per line, or is easyfsl's JSON. `where` says for messages what the
    available classes belong to. Raises `DataError` for a list that is empty, names a class twice,
    or names one that is not available.
    """
    if list_file is None:
        return list(available)
    classes = read_classes(list_file)
    if unknown := sorted(set(classes) - set(available)):
        more = ", ..." if len(unknown) > 5 else ""
        examples = ", ".join(sorted(available)[:5])
        raise DataError(
            f"{list_file} names {len(unknown)} classes that are not in {where}: "
            f"{', '.join(unknown[:5])}{more} (there are {examples}, ...)"
        )
    return classes


def read_classes(path: Path) -> list[str]:
    """Read the names of classes, one per line, or the `class_names` of easyfsl's JSON.

    Raises `DataError` for a list that is empty or names a class twice.
    """
    if path.suffix.lower() == ".json":
        document = read_json(path)
        with reading(path, 'a list of classes ({"class_names": [...]})'):
            classes = [name.strip() for name in document["class_names"]]
    else:
        classes = [name for (name,) in read_lines(path)]
    if not classes:
        raise DataError(f"{path} names no class: write one per line")
    if repeated := sorted({name for name in classes if classes.count(name) > 1}):
        raise DataError(f"{path} names {repeated[0]} twice")
    return classes


def read_names(path: Path) -> dict[str, str]:
    """Read how classes are called: a JSON object, or lines of a class and its name.

    Raises `DataError` for a file that is neither, and for a class with two names.
    """
    if path.suffix.lower() != ".json":
        names: dict[str, str] = {}
        for class_, name in read_lines(path, columns=2):
            # A file may repeat a line, but must not contradict itself.
            if names.setdefault(class_, name) != name:
                raise DataError(
                    f"{path} has two names for the class {class_}: {names[class_]!r} and {name!r}"
                )
        return names
    document = read_json(path)
    with reading(path, "an object of classes and their names"):
        for name in document.values():
            if not isinstance(name, str) or not name.strip():
                raise ValueError(f"{name!r} is not a name")
        return dict(document)


def labels_of(
    classes: Iterable[str], names: Mapping[str, str] | None = None, file: object = None
) -> dict[str, str]:
    """Return the label of each class: its name, with spaces for underscores.

    With `names`, read from `file`, these are the names of the classes. Raises `DataError` for a
    class without a name, and for two classes with one label.
    """
    labels: dict[str, str] = {}
    class_by_label: dict[str, str] = {}
    for class_ in classes:
        if names is not None and class_ not in names:
            raise DataError(f"{file} has no name for the class {class_}")
        name = class_ if names is None else names[class_]
        label = name.replace("_", " ").strip()
        if not label:
            raise DataError(f"the class {class_!r} has no letter in its name: give it another one")
        other = class_by_label.setdefault(label, class_)
        if other != class_:
            raise DataError(
                f"the classes {other} and {class_} are both called {label!r}: give other names"
            )
        labels[class_] = label
    return labels


def class_list(classes: Collection[str]) -> dict[str, Any]:
    """Return for the manifest the number of classes and a sha256 of their sorted names."""
    # Different splits go by the same names ("novel"), which only this hash tells apart.
    text = "".join(f"{name}\n" for name in sorted(classes))
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"classes": len(classes), "class_list": f"sha256:{digest}"}
