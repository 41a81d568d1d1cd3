"""Five captions of a scene, each as a structured statement and as the text that says it.

In: a scene and a generator. Out: statements; `render(statement)` is the caption. A statement names every object of the
scene, and its form says what else it tells: `names`, `full` or `counted`; `sizes`; `fills`; `places`; and `relation`
(for a single object `whole`). Together the five tell everything but pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from data_pipeline.scenes.graph import MAX_OBJECTS

MAX_WORDS = 22
CAPTIONS = 5
# Relations hold between cells of the grid: a shift inside a cell never makes one.
RELATION_TESTS = {
    "left": lambda one, other: one["column"] < other["column"],
    "right": lambda one, other: one["column"] > other["column"],
    "above": lambda one, other: one["row"] < other["row"],
    "below": lambda one, other: one["row"] > other["row"],
}

_TOLD = {
    "names": ("colour", "shape"),
    "counted": ("shape",),
    "sizes": ("size", "colour", "shape"),
    "fills": ("fill", "colour", "shape"),
    "full": ("size", "fill", "colour", "shape"),
    "places": ("colour", "shape", "column", "row"),
    "relation": ("colour", "shape"),
    "whole": ("size", "fill", "colour", "shape", "column", "row"),
}
_SYNONYMS = {"small": "little", "large": "big", "solid": "filled", "hollow": "outlined", "middle": "center"}
_OPENINGS = ("there is", "a picture of", "an image of", "a photo of", "this shows", "we see", "only", "just")
_PLACES = (
    ("top left", "top", "top right"),
    ("left", "middle", "right"),
    ("bottom left", "bottom", "bottom right"),
)
_PREPOSITIONS = {"top": "at", "bottom": "at", "left": "on", "right": "on"}
_NUMBERS = ("", "one", "two", "three", "four")
_RELATIONS = {"left": "left of", "right": "right of", "above": "above", "below": "below"}
_RELATION_SYNONYMS = {"left of": "to the left of", "right of": "to the right of", "above": "over", "below": "under"}


def statements_of(scene: dict[str, Any], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Five statements that fit the scene, in random order, with random wording."""
    several = len(scene["objects"]) > 1
    kind = float(rng.random())
    plain = "names" if kind < 0.5 else "full" if kind < 0.8 else "counted"
    forms = [plain, "sizes", "fills", "places", "relation" if several else "whole"]
    return [_statement(scene["objects"], forms[k], rng) for k in rng.permutation(CAPTIONS).tolist()]


def _statement(objects: list[dict[str, Any]], form: str, rng: np.random.Generator) -> dict[str, Any]:
    count = len(objects)
    order = rng.permutation(count).tolist()
    statement: dict[str, Any] = {
        "form": form,
        "objects": [{name: objects[k][name] for name in _TOLD[form]} for k in order],
        "relations": [],
        "opening": _OPENINGS[int(rng.integers(len(_OPENINGS)))] if rng.random() < 0.7 else "",
        "synonyms": [word for word in _SYNONYMS if rng.random() < 0.3],
        "variant": int(rng.integers(2)),
    }
    if form == "counted":  # equal shapes are counted together, so they must stand together
        statement["objects"].sort(key=lambda named: [objects[k]["shape"] for k in order].index(named["shape"]))
    if form == "relation":
        told = [(0, 1), (0, 2)] if count > 2 and rng.random() < 0.5 else [(0, 1)]
        statement["relations"] = [
            [one, _relation(objects[order[one]], objects[order[other]], rng), other] for one, other in told
        ]
    if _opens_itself(statement) or len(render(statement).split()) > MAX_WORDS:
        statement["opening"] = ""
    return statement


def _opens_itself(statement: dict[str, Any]) -> bool:
    """Whether no opening can stand before the text: it begins with a place, or has no articles."""
    return statement["form"] == "places" and (statement["variant"] == 1 or len(statement["objects"]) == MAX_OBJECTS)


def _relation(one: dict[str, Any], other: dict[str, Any], rng: np.random.Generator) -> str:
    """One of the relations that hold; cells differ, so one always does."""
    holding = [name for name in RELATION_TESTS if RELATION_TESTS[name](one, other)]
    return holding[int(rng.integers(len(holding)))]


def render(statement: dict[str, Any]) -> str:
    """Text of a statement: lower case, at most 22 words."""
    form, opening = statement["form"], statement["opening"]
    if form == "places":
        text = _places(statement)
    elif form == "relation":
        text = _relations(statement)
    elif form == "counted":
        text = _joined(_counted(statement["objects"]))
    elif form == "whole":
        text = f"{_named(statement, 0)} {_place(statement, 0)}"
    else:
        text = _joined([_named(statement, k) for k in range(len(statement["objects"]))])
    return f"{opening} {text}" if opening else text


def _named(statement: dict[str, Any], k: int, article: bool = True) -> str:
    told = statement["objects"][k]
    words = " ".join(_word(statement, told[name]) for name in ("size", "fill", "colour", "shape") if name in told)
    return _with_article(words) if article else words


def _word(statement: dict[str, Any], word: str) -> str:
    return _SYNONYMS[word] if word in statement["synonyms"] else word


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _counted(objects: list[dict[str, Any]]) -> list[str]:
    shapes = [told["shape"] for told in objects]
    parts = []
    for shape in dict.fromkeys(shapes):
        count = shapes.count(shape)
        plural = shape + ("es" if shape == "cross" else "s")
        parts.append(_with_article(shape) if count == 1 else f"{_NUMBERS[count]} {plural}")
    return parts


def _places(statement: dict[str, Any]) -> str:
    count = len(statement["objects"])
    if count == MAX_OBJECTS:  # articles would pass the limit of words
        parts = [f"{_named(statement, k, article=False)} {_place(statement, k, article=False)}" for k in range(count)]
    elif statement["variant"]:
        parts = [f"{_place(statement, k)} {_named(statement, k)}" for k in range(count)]
    else:
        parts = [f"{_named(statement, k)} {_place(statement, k)}" for k in range(count)]
    return _joined(parts)


def _place(statement: dict[str, Any], k: int, article: bool = True) -> str:
    told = statement["objects"][k]
    cell = _word(statement, _PLACES[told["row"]][told["column"]])
    preposition = _PREPOSITIONS.get(cell, "in")
    return f"{preposition} the {cell}" if article else f"{preposition} {cell}"


def _relations(statement: dict[str, Any]) -> str:
    relations, count = statement["relations"], len(statement["objects"])
    words = [_RELATIONS[name] for _, name, _ in relations]
    if len(relations) == 1 and statement["variant"]:
        words = [_RELATION_SYNONYMS[words[0]]]
    text = f"{_named(statement, 0)} {words[0]} {_named(statement, 1)}"
    if len(relations) == 2:
        text += f" and {words[1]} {_named(statement, 2)}"
    rest = [_named(statement, k) for k in range(1 + len(relations), count)]
    return f"{text} with {_joined(rest)}" if rest else text
