"""Statements about two pictures, each true of half of the pairs that it is made for, as in NLVR2.

In: the pictures of a split, eight at a time. Out: records of pairs. Each eight make a set of four
pairs, and each of a set's statements is true of two of them: neither its words nor how often it is
met tell the answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from data_pipeline.scenes.captions import NUMBERS, with_article
from data_pipeline.scenes.questions import FAMILIES, Kind, choose, how_many, several
from data_pipeline.shards.write import Record

STATEMENTS = 4  # of a set
_SET = 8  # pictures
_ARRANGEMENTS = 20  # ways to pair the pictures that are tried

_Test = Callable[[int, int], bool]


def _total(number: int) -> _Test:
    return lambda left, right: left + right == number


# What a statement says of the numbers of a kind in the left and in the right picture.
_FORMS: tuple[dict[str, _Test], ...] = (
    {
        "at least one picture shows {one}": lambda left, right: left + right > 0,
        "both pictures show {one}": lambda left, right: left > 0 and right > 0,
        "only one picture shows {one}": lambda left, right: (left > 0) != (right > 0),
        "no picture shows {one}": lambda left, right: left + right == 0,
    },
    {
        "the left picture shows more {several} than the right one": lambda left, right: (
            left > right
        ),
        "the left picture shows fewer {several} than the right one": lambda left, right: (
            left < right
        ),
        "both pictures show the same number of {several}": lambda left, right: left == right,
    },
    {
        f"there are exactly {NUMBERS[number]} {{several}} in all": _total(number)
        for number in (2, 3, 4)
    },
)


def pair_count(pictures: int) -> int:
    """How many pairs so many pictures make: half as many in sets of eight; of what remains, two of four pictures."""
    return pictures // _SET * (_SET // 2) + (2 if pictures % _SET >= 4 else 0)


def pair_records(
    split: str,
    pictures: Iterable[tuple[bytes, dict[str, Any]]],
    stream: Callable[[int], np.random.Generator],
) -> Iterator[Record]:
    """Yield the pairs of a split's pictures, (JPEG, annotations) in their order; `stream(n)` is set n's generator."""
    iterator = iter(pictures)
    number = 0
    while len(members := list(islice(iterator, _SET))) >= 4:
        members = members if len(members) == _SET else members[:4]
        yield from _set(f"{split}-{number}", members, stream(number))
        number += 1


def _set(
    name: str, members: list[tuple[bytes, dict[str, Any]]], rng: np.random.Generator
) -> Iterator[Record]:
    for _ in range(_ARRANGEMENTS):
        order = rng.permutation(len(members)).tolist()
        pairs = [
            (members[left], members[right])
            for left, right in zip(order[::2], order[1::2], strict=True)
        ]
        objects = [tuple(picture[1]["scene"]["objects"] for picture in pair) for pair in pairs]
        statements = _statements(objects, rng)
        if len(statements) == STATEMENTS:
            break
    for k, (left, right) in enumerate(pairs):
        asked = [
            {
                "id": f"{name}-{k}-{j}",
                "question": statement,
                "answers": [str(truth[k])],
                "type": "statement",
                "group": f"{name}-{j}",
            }
            for j, (statement, truth) in enumerate(statements)
        ]
        images = [picture["image_id"] for _, picture in (left, right)]
        annotations = {"image_id": "+".join(images), "images": images, "questions": asked}
        content = json.dumps(annotations, separators=(",", ":")).encode()
        yield f"{name}-{k}", {"0.jpg": left[0], "1.jpg": right[0], "json": content}


def _statements(
    pairs: list[tuple[Any, ...]], rng: np.random.Generator
) -> list[tuple[str, list[bool]]]:
    """Up to STATEMENTS statements, each true of half of the pairs, with that truth; forms and kinds take turns."""
    counts = {
        kind: [(how_many(left, kind), how_many(right, kind)) for left, right in pairs]
        for kinds in FAMILIES.values()
        for kind in kinds
    }
    found: dict[str, list[bool]] = {}
    for turn in range(2 * STATEMENTS):
        for place in rng.permutation(len(FAMILIES)).tolist():
            fitting = [
                (text, truth)
                for kind in tuple(FAMILIES.values())[place]
                for words, test in _FORMS[turn % len(_FORMS)].items()
                if 2 * sum(truth := [test(left, right) for left, right in counts[kind]])
                == len(pairs)
                and (text := _said(words, kind)) not in found
            ]
            if fitting:
                text, truth = choose(fitting, rng)
                found[text] = truth
                break
        if len(found) == STATEMENTS:
            break
    return list(found.items())


def _said(words: str, kind: Kind) -> str:
    one = "shape" if kind is None else kind[1] if kind[0] == "shape" else f"{kind[1]} shape"
    return words.format(one=with_article(one), several=several(kind))
