"""Seven questions about a scene, whose answers follow from the scene graph alone.

In: a scene and a generator. Out: questions in VQA's form, ten equal answers each. Objects are named
by what only they have. Questions are drawn so that their words do not tell the answer: of the two
about existence one is answered yes, and what is asked of one thing rather than of another is as
likely the other way round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from typing import Any, TypeVar

import numpy as np

from data_pipeline.scenes.captions import (
    OPPOSITE,
    RELATIONS,
    at_place,
    place_of,
    plural,
    relations_of,
    with_article,
)
from data_pipeline.scenes.graph import COLOURS, FILLS, HELD_OUT, SHAPES, SIZES

PEOPLE = 10  # of whom each gives the same answer
# What can be counted: everything, or what has a value of an attribute.
Kind = tuple[str, str] | None
FAMILIES: dict[str, tuple[Kind, ...]] = {
    "all": (None,),
    **{
        name: tuple((name, value) for value in values)
        for name, values in {
            "size": SIZES,
            "fill": FILLS,
            "colour": COLOURS,
            "shape": SHAPES,
        }.items()
    },
}
_COMPARED = ("size", "fill", "colour", "shape")
Objects = list[dict[str, Any]]
_Asked = tuple[str, str]  # a question and its answer
_Item = TypeVar("_Item")


def questions_of(
    scene: dict[str, Any], image_id: str, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Questions in the form of a sample's JSON member: two about existence, one of each other type."""
    objects = scene["objects"]
    asked = [("existence", one) for one in _existence(objects, rng)]
    others: dict[str, Callable[[Objects, np.random.Generator], _Asked]] = {
        "count": _count,
        "colour": _colour,
        "shape": _shape,
        "relation": _relation,
        "comparison": _comparison,
    }
    asked += [(name, ask(objects, rng)) for name, ask in others.items()]
    return [
        {
            "id": f"{image_id}-{number}",
            "question": f"{question}?",
            "answers": [answer] * PEOPLE,
            "type": name,
            "answer_type": "number"
            if answer.isdigit()
            else "yes/no"
            if answer in ("yes", "no")
            else "other",
        }
        for number, (name, (question, answer)) in enumerate(asked)
    ]


def how_many(objects: Objects, kind: Kind) -> int:
    """Objects of a kind."""
    return sum(kind is None or item[kind[0]] == kind[1] for item in objects)


def several(kind: Kind) -> str:
    """Name any number of a kind."""
    if kind is None:
        return "shapes"
    return plural(kind[1]) if kind[0] == "shape" else f"{kind[1]} shapes"


def choose(items: Sequence[_Item], rng: np.random.Generator) -> _Item:
    """One of the items, each as likely."""
    return items[int(rng.random() * len(items))]  # ten times as fast as rng.integers


def _existence(objects: Objects, rng: np.random.Generator) -> list[_Asked]:
    """One question with yes and one with no, about the same two attributes."""
    names = ("colour", "shape") if rng.random() < 0.5 else ("fill", "shape")
    there = {(item[names[0]], item["shape"]) for item in objects}
    shown = choose(sorted(there), rng)
    first, shapes = ({pair[place] for pair in there} for place in (0, 1))
    absent = [
        (one, shape)
        for one in (COLOURS if names[0] == "colour" else FILLS)
        for shape in SHAPES
        # What is held out stands in no training picture: it is asked for where it could be there,
        # as often in vain.
        if (one, shape) not in there and ((one, shape) in HELD_OUT) == (shown in HELD_OUT)
    ]
    near = [
        (one, shape)
        for one, shape in absent
        if shape in shapes or (names[0] == "colour" and one in first)
    ]
    asked = [(shown, "yes"), (choose(near or absent, rng), "no")]
    order = rng.permutation(2).tolist()
    return [(f"is there {with_article(' '.join(asked[k][0]))}", asked[k][1]) for k in order]


def _count(objects: Objects, rng: np.random.Generator) -> _Asked:
    """Every number that the family of kinds allows is as likely, so that few things are not the rule."""
    by_number: dict[int, list[Kind]] = {}
    for kind in FAMILIES[choose(list(FAMILIES), rng)]:
        by_number.setdefault(how_many(objects, kind), []).append(kind)
    number = choose(sorted(by_number), rng)
    return f"how many {several(choose(by_number[number], rng))} are there", str(number)


def _colour(objects: Objects, rng: np.random.Generator) -> _Asked:
    item, words = _singled_out(objects, "shape", rng)
    return f"what colour is {words}", item["colour"]


def _shape(objects: Objects, rng: np.random.Generator) -> _Asked:
    item, words = _singled_out(objects, "colour", rng)
    return f"what shape is {words}", item["shape"]


def _relation(objects: Objects, rng: np.random.Generator) -> _Asked:
    """Whether one object is on a side of another, what is there, or where an object is in the picture."""
    form = "where" if len(objects) == 1 else choose(["whether", "whether", "what", "where"], rng)
    if form == "where":
        item = choose(objects, rng)
        return f"where is {_the(item)}", place_of(item["column"], item["row"])
    related = [
        (one, name, other)
        for one, other in permutations(objects, 2)
        for name in relations_of(one, other)
    ]
    if form == "what":
        sides = [(name, _the(other)) for _, name, other in related]
        alone = [one for one in related if sides.count((one[1], _the(one[2]))) == 1]
        if alone:
            one, name, other = choose(alone, rng)
            return f"what shape is {RELATIONS[name]} {_the(other)}", one["shape"]
    one, name, other = choose(related, rng)
    holds = rng.random() < 0.5
    said = RELATIONS[name if holds else OPPOSITE[name]]
    return f"is {_the(one)} {said} {_the(other)}", "yes" if holds else "no"


def _comparison(objects: Objects, rng: np.random.Generator) -> _Asked:
    """Which of two objects is larger, or of which kind there are more; never about equal ones."""
    differ = [
        (one, other) for one, other in permutations(objects, 2) if one["size"] != other["size"]
    ]
    if differ and rng.random() < 0.5:
        one, other = choose(differ, rng)
        word = choose(["larger", "smaller"], rng)
        return f"is {_the(one)} {word} than {_the(other)}", _yes(
            (one["size"] == "large") == (word == "larger")
        )
    unequal: list[Any] = []
    while not unequal:  # there are more colours than objects: of some there are more than of others
        counted = [(kind, how_many(objects, kind)) for kind in FAMILIES[choose(_COMPARED, rng)]]
        unequal = [(one, other) for one, other in permutations(counted, 2) if one[1] != other[1]]
    (more, first), (fewer, second) = choose(unequal, rng)
    return f"are there more {several(more)} than {several(fewer)}", _yes(first > second)


def _yes(true: bool) -> str:
    return "yes" if true else "no"


def _the(item: dict[str, Any]) -> str:
    """Name an object: no two of a scene have both the same."""
    return f"the {item['colour']} {item['shape']}"


def _singled_out(objects: Objects, by: str, rng: np.random.Generator) -> tuple[dict[str, Any], str]:
    """Return an object and words that fit no other: its colour or shape, perhaps with another trait, or its place."""
    named = [(item, words) for item in objects if (words := list(_names(item, objects, by)))]
    item, words = choose(named, rng)
    return item, choose(words, rng)


def _names(item: dict[str, Any], objects: Objects, by: str) -> Iterator[str]:
    for traits in ((by,), ("size", by), ("fill", by)):
        if sum(all(other[name] == item[name] for name in traits) for other in objects) == 1:
            words = " ".join(item[name] for name in traits)
            yield f"the {words}" if by == "shape" else f"the {words} one"
    # What is at the top left is on the left as well, for some.
    place = place_of(item["column"], item["row"]).split()
    if (
        sum(set(place) <= set(place_of(other["column"], other["row"]).split()) for other in objects)
        == 1
    ):
        yield f"the one {at_place(' '.join(place))}"
