"""Seven questions about a scene, whose answers follow from the scene graph alone.

In: a scene and a generator. Out: questions in VQA's form with ten equal answers each. Objects are
named by what only they have. Questions are drawn so that their words do not give the answer away:
of the two about existence one is answered yes, and a comparison of two things is equally likely in
both directions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from operator import itemgetter
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

PEOPLE = 10  # annotators, who all give the same answer
Kind = tuple[str, str] | None
"""What can be counted: objects with a value of an attribute, or (None) all objects."""
FAMILIES: dict[str, tuple[Kind, ...]] = {
    "all": (None,),
    "size": tuple(("size", value) for value in SIZES),
    "fill": tuple(("fill", value) for value in FILLS),
    "colour": tuple(("colour", value) for value in COLOURS),
    "shape": tuple(("shape", value) for value in SHAPES),
}
_COMPARED = ("size", "fill", "colour", "shape")
Objects = list[dict[str, Any]]
_QuestionAndAnswer = tuple[str, str]
_Item = TypeVar("_Item")


def questions_of(
    scene: dict[str, Any], image_id: str, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Return questions in the form of a sample's JSON member.

    Two are about existence, and there is one of each other type.
    """
    objects = scene["objects"]
    drawn = [("existence", question) for question in _existence(objects, rng)]
    others: dict[str, Callable[[Objects, np.random.Generator], _QuestionAndAnswer]] = {
        "count": _count,
        "colour": _colour,
        "shape": _shape,
        "relation": _relation,
        "comparison": _comparison,
    }
    drawn += [(name, ask(objects, rng)) for name, ask in others.items()]
    questions = []
    for number, (name, (question, answer)) in enumerate(drawn):
        record = {
            "id": f"{image_id}-{number}",
            "question": f"{question}?",
            "answers": [answer] * PEOPLE,
            "type": name,
            "answer_type": _answer_type(answer),
        }
        questions.append(record)
    return questions


def _answer_type(answer: str) -> str:
    """Return the type that VQA gives an answer."""
    if answer.isdigit():
        return "number"
    return "yes/no" if answer in ("yes", "no") else "other"


def how_many(objects: Objects, kind: Kind) -> int:
    """Count the objects of a kind."""
    return sum(kind is None or item[kind[0]] == kind[1] for item in objects)


def several(kind: Kind) -> str:
    """Return the plural of a kind."""
    if kind is None:
        return "shapes"
    return plural(kind[1]) if kind[0] == "shape" else f"{kind[1]} shapes"


def pick(items: Sequence[_Item], rng: np.random.Generator) -> _Item:
    """Draw one of the items, all with the same probability."""
    return items[int(rng.random() * len(items))]  # ten times as fast as rng.integers


def _existence(objects: Objects, rng: np.random.Generator) -> list[_QuestionAndAnswer]:
    """Return one question with yes and one with no, about the same two attributes."""
    attribute = "colour" if rng.random() < 0.5 else "fill"
    values = COLOURS if attribute == "colour" else FILLS
    present = {(item[attribute], item["shape"]) for item in objects}
    shown = pick(sorted(present), rng)
    values_present = {value for value, _ in present}
    shapes_present = {shape for _, shape in present}
    absent, nearly_present = [], []
    for value in values:
        for shape in SHAPES:
            pair = (value, shape)
            # No training image holds a held-out pair, so a question about one would give its "no"
            # away. Ask about an absent one only where the "yes" is about another held-out pair.
            if pair in present or (pair in HELD_OUT) != (shown in HELD_OUT):
                continue
            absent.append(pair)
            same_value = attribute == "colour" and value in values_present
            if shape in shapes_present or same_value:
                nearly_present.append(pair)
    drawn = [(shown, "yes"), (pick(nearly_present or absent, rng), "no")]
    questions = []
    for k in rng.permutation(2).tolist():
        pair, answer = drawn[k]
        questions.append((f"is there {with_article(' '.join(pair))}", answer))
    return questions


def _count(objects: Objects, rng: np.random.Generator) -> _QuestionAndAnswer:
    """Ask for a number of objects.

    All numbers that a family of kinds allows are equally likely, or most answers would be 0 or 1.
    """
    kinds_by_number: dict[int, list[Kind]] = {}
    for kind in FAMILIES[pick(list(FAMILIES), rng)]:
        # Grouped by number, so that the number is drawn before the kind.
        kinds_by_number.setdefault(how_many(objects, kind), []).append(kind)
    number = pick(sorted(kinds_by_number), rng)
    kind = pick(kinds_by_number[number], rng)
    return f"how many {several(kind)} are there", str(number)


def _colour(objects: Objects, rng: np.random.Generator) -> _QuestionAndAnswer:
    item, words = _single_out(objects, "shape", rng)
    return f"what colour is {words}", item["colour"]


def _shape(objects: Objects, rng: np.random.Generator) -> _QuestionAndAnswer:
    item, words = _single_out(objects, "colour", rng)
    return f"what shape is {words}", item["shape"]


def _relation(objects: Objects, rng: np.random.Generator) -> _QuestionAndAnswer:
    """Ask whether a relation holds, what is there, or where an object is in the image."""
    form = "where"
    if len(objects) > 1:
        form = pick(["whether", "whether", "what", "where"], rng)
    if form == "where":
        item = pick(objects, rng)
        return f"where is {_the(item)}", place_of(item["column"], item["row"])
    related = []
    for item, other in permutations(objects, 2):
        for name in relations_of(item, other):
            related.append((item, name, other))
    if form == "what":
        # Ask only where a single object is on that side of the other.
        sides = [(name, _the(other)) for _, name, other in related]
        alone = []
        for relation, side in zip(related, sides, strict=True):
            if sides.count(side) == 1:
                alone.append(relation)
        if alone:
            item, name, other = pick(alone, rng)
            return f"what shape is {RELATIONS[name]} {_the(other)}", item["shape"]
    item, name, other = pick(related, rng)
    holds = rng.random() < 0.5
    words = RELATIONS[name if holds else OPPOSITE[name]]
    return f"is {_the(item)} {words} {_the(other)}", _yes_or_no(holds)


def _comparison(objects: Objects, rng: np.random.Generator) -> _QuestionAndAnswer:
    """Ask which of two objects is larger, or of which kind there are more; they are never equal."""
    differ = []
    for item, other in permutations(objects, 2):
        if item["size"] != other["size"]:
            differ.append((item, other))
    if differ and rng.random() < 0.5:
        item, other = pick(differ, rng)
        word = pick(["larger", "smaller"], rng)
        holds = (item["size"] == "large") == (word == "larger")
        return f"is {_the(item)} {word} than {_the(other)}", _yes_or_no(holds)
    unequal: list[Any] = []
    # This ends, because there are more colors than objects, so their numbers differ.
    while not unequal:
        counted = [(kind, how_many(objects, kind)) for kind in FAMILIES[pick(_COMPARED, rng)]]
        for first, second in permutations(counted, 2):
            if first[1] != second[1]:
                unequal.append((first, second))
    (kind, number), (other_kind, other_number) = pick(unequal, rng)
    question = f"are there more {several(kind)} than {several(other_kind)}"
    return question, _yes_or_no(number > other_number)


def _yes_or_no(holds: bool) -> str:
    return "yes" if holds else "no"


def _the(item: dict[str, Any]) -> str:
    """Name an object by color and shape, which no two objects of a scene share."""
    return f"the {item['colour']} {item['shape']}"


def _single_out(objects: Objects, by: str, rng: np.random.Generator) -> tuple[dict[str, Any], str]:
    """Draw an object and words that fit no other object.

    They are its color or shape (`by`), perhaps with another attribute, or its place.
    """
    named = []
    for item in objects:
        names = list(_unique_names(item, objects, by))
        if names:
            named.append((item, names))
    item, names = pick(named, rng)
    return item, pick(names, rng)


def _unique_names(item: dict[str, Any], objects: Objects, by: str) -> Iterator[str]:
    for attributes in ((by,), ("size", by), ("fill", by)):
        traits = itemgetter(*attributes)
        sharing = [other for other in objects if traits(other) == traits(item)]
        if len(sharing) == 1:
            words = " ".join(item[name] for name in attributes)
            yield f"the {words}" if by == "shape" else f"the {words} one"
    # Some people call the top left "left" too, so "left" must fit no object at the top left.
    place = place_of(item["column"], item["row"]).split()
    sharing = []
    for other in objects:
        if set(place) <= set(place_of(other["column"], other["row"]).split()):
            sharing.append(other)
    if len(sharing) == 1:
        yield f"the one {at_place(' '.join(place))}"
