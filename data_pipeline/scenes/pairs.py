"""Statements about two images, each true of half of the pairs that it is made for, as in NLVR2.

In: the images of a split, eight at a time. Out: records of pairs. Each eight images make a set of
four pairs, and each statement of a set is true of two of them. So neither the words of a statement
nor how often they occur give the answer away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from data_pipeline.sample import annotations_member
from data_pipeline.scenes.captions import NUMBERS, with_article
from data_pipeline.scenes.questions import FAMILIES, Kind, Objects, how_many, pick, several
from data_pipeline.shards.write import Record

STATEMENTS = 4  # per set
_SET = 8  # images
_ARRANGEMENTS = 20  # how many ways to pair the images are tried

Image = tuple[bytes, dict[str, Any]]
"""An encoded image and its annotations."""
_Test = Callable[[int, int], bool]


def _total(number: int) -> _Test:
    return lambda left, right: left + right == number


# What a statement says about the numbers of a kind in the left and in the right image. The words
# are data, not messages: changing them changes the generated data sets.
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
    {f"there are exactly {NUMBERS[n]} {{several}} in all": _total(n) for n in (2, 3, 4)},
)


def pair_count(images: int) -> int:
    """Return how many pairs that many images make.

    A full set of eight makes four pairs. If four or more images remain, four of them make two.
    """
    pairs = images // _SET * (_SET // 2)
    return pairs + 2 if images % _SET >= 4 else pairs


def pair_records(
    split: str,
    images: Iterable[Image],
    stream: Callable[[int], np.random.Generator],
) -> Iterator[Record]:
    """Yield the pairs of a split's images, in order; `stream(n)` is the generator of set n."""
    iterator = iter(images)
    number = 0
    while True:
        members = list(islice(iterator, _SET))
        if len(members) < 4:
            return
        if len(members) < _SET:
            members = members[:4]
        yield from _set(f"{split}-{number}", members, stream(number))
        number += 1


def _set(name: str, members: list[Image], rng: np.random.Generator) -> Iterator[Record]:
    # Not every arrangement has enough statements that are true of half of its pairs.
    for _ in range(_ARRANGEMENTS):
        order = rng.permutation(len(members)).tolist()
        pairs, objects = [], []
        for left, right in zip(order[::2], order[1::2], strict=True):
            pairs.append((members[left], members[right]))
            scenes = members[left][1]["scene"], members[right][1]["scene"]
            objects.append((scenes[0]["objects"], scenes[1]["objects"]))
        statements = _statements(objects, rng)
        if len(statements) == STATEMENTS:
            break
    for k, ((left_jpeg, left_about), (right_jpeg, right_about)) in enumerate(pairs):
        questions = []
        for j, (statement, truth) in enumerate(statements):
            question = {
                "id": f"{name}-{k}-{j}",
                "question": statement,
                "answers": [str(truth[k])],
                "type": "statement",
                "group": f"{name}-{j}",
            }
            questions.append(question)
        image_ids = [left_about["image_id"], right_about["image_id"]]
        annotations = {
            "image_id": "+".join(image_ids),
            "images": image_ids,
            "questions": questions,
        }
        content = annotations_member(annotations)
        yield f"{name}-{k}", {"0.jpg": left_jpeg, "1.jpg": right_jpeg, "json": content}


def _statements(
    pairs: list[tuple[Objects, Objects]], rng: np.random.Generator
) -> list[tuple[str, list[bool]]]:
    """Draw up to STATEMENTS statements, each true of half of the pairs, with that truth.

    Forms and families of kinds take turns, so that all of them occur.
    """
    counts: dict[Kind, list[tuple[int, int]]] = {}
    for kinds in FAMILIES.values():
        for kind in kinds:
            counts[kind] = [(how_many(left, kind), how_many(right, kind)) for left, right in pairs]
    families = tuple(FAMILIES.values())
    truth_of: dict[str, list[bool]] = {}
    for turn in range(2 * STATEMENTS):
        form = _FORMS[turn % len(_FORMS)]
        for place in rng.permutation(len(families)).tolist():
            fitting = []
            for kind in families[place]:
                for words, test in form.items():
                    truth = [test(left, right) for left, right in counts[kind]]
                    text = _text(words, kind)
                    # Half of the pairs, so that a statement alone does not give its answer away.
                    if 2 * sum(truth) == len(pairs) and text not in truth_of:
                        fitting.append((text, truth))
            if fitting:
                text, truth = pick(fitting, rng)
                truth_of[text] = truth
                break
        if len(truth_of) == STATEMENTS:
            break
    return list(truth_of.items())


def _text(words: str, kind: Kind) -> str:
    if kind is None:
        name = "shape"
    else:
        attribute, value = kind
        name = value if attribute == "shape" else f"{value} shape"
    return words.format(one=with_article(name), several=several(kind))
