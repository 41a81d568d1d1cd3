"""Five captions of a scene or clip, each as a structured statement and as its text.

In: a scene and a generator. Out: statements; `render(statement)` is the caption. A statement names
every object of the scene, and its form says what else it tells: `names`, `full` or `counted`;
`sizes`; `fills`; `places`; and `relation` (for a single object `whole`). Together the five of an
image tell everything except the pixels.

Statements about a clip are true of all of it. They may also tell each object's motion; the form
`travels` tells where it comes from, too.
"""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np

from data_pipeline.scenes.graph import MAX_OBJECTS
from data_pipeline.scenes.motion import STILL, moments

MAX_WORDS = 22
CAPTIONS = 5
# Relations hold between cells of the grid: a shift inside a cell never makes one.
RELATION_TESTS = {
    "left": lambda item, other: item["column"] < other["column"],
    "right": lambda item, other: item["column"] > other["column"],
    "above": lambda item, other: item["row"] < other["row"],
    "below": lambda item, other: item["row"] > other["row"],
}

# What each form tells of every object.
_TOLD = {
    "names": ("colour", "shape"),
    "counted": ("shape",),
    "sizes": ("size", "colour", "shape"),
    "fills": ("fill", "colour", "shape"),
    "full": ("size", "fill", "colour", "shape"),
    "places": ("colour", "shape", "column", "row"),
    "relation": ("colour", "shape"),
    "whole": ("size", "fill", "colour", "shape", "column", "row"),
    "travels": ("colour", "shape", "motion", "from"),
}
_SYNONYMS = {
    "small": "little",
    "large": "big",
    "solid": "filled",
    "hollow": "outlined",
    "middle": "center",
}
_OPENINGS = (
    # Data, not messages: changing one changes the captions of every generated data set.
    "there is",
    "a picture of",
    "an image of",
    "a photo of",
    "this shows",
    "we see",
    "only",
    "just",
)
_PLACES = (
    ("top left", "top", "top right"),
    ("left", "middle", "right"),
    ("bottom left", "bottom", "bottom right"),
)
_PREPOSITIONS = {"top": "at", "bottom": "at", "left": "on", "right": "on"}
NUMBERS = ("", "one", "two", "three", "four")
_MOVING = ("moving", "going")
_STAYING = ("standing still", "not moving")
_RESTING = ("staying", "resting")  # before a place
RELATIONS = {"left": "left of", "right": "right of", "above": "above", "below": "below"}
OPPOSITE = {
    "left": "right",
    "right": "left",
    "above": "below",
    "below": "above",
    "up": "down",
    "down": "up",
}
_RELATION_SYNONYMS = {
    "left of": "to the left of",
    "right of": "to the right of",
    "above": "over",
    "below": "under",
}


def statements_of(scene: dict[str, Any], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Return five statements that fit the scene, in random order and with random wording."""
    several = len(scene["objects"]) > 1
    forms = [_plain(rng), "sizes", "fills", "places", "relation" if several else "whole"]
    return [_statement(scene["objects"], forms[k], rng) for k in rng.permutation(CAPTIONS).tolist()]


def clip_statements_of(scene: dict[str, Any], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Return five statements that fit all of a clip, in random order and with random wording.

    The form `names` always tells the motion.
    """
    objects = scene["objects"]
    related = []
    for first, second in permutations(range(len(objects)), 2):
        if relations_of(objects[first], objects[second]):
            related.append([first, second])
    # A relation may not hold during the whole clip, so there may be none to tell.
    travels = len(objects) == 1 or (len(objects) == 2 and rng.random() < 0.5)
    last = "travels" if travels or not related else "relation"
    forms = [_plain(rng), "sizes", "fills", "names", last]
    few = len(objects) < 3  # so that the texts of sizes and fills with motions stay short
    tells_motion = [False, few, few, True, False]
    statements = []
    for k in rng.permutation(CAPTIONS).tolist():
        order = None
        if forms[k] == "relation":
            pair = related[int(rng.integers(len(related)))]
            order = pair + [n for n in rng.permutation(len(objects)).tolist() if n not in pair]
        statements.append(_statement(objects, forms[k], rng, order=order, moving=tells_motion[k]))
    return statements


def relations_of(item: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Return the relations of an object to another that hold, in a clip from start to end."""
    relations = list(RELATION_TESTS)
    for item_then, other_then in zip(moments(item), moments(other), strict=True):
        relations = [name for name in relations if RELATION_TESTS[name](item_then, other_then)]
    return relations


def _plain(rng: np.random.Generator) -> str:
    draw = float(rng.random())
    if draw < 0.5:
        return "names"
    return "full" if draw < 0.8 else "counted"


def _statement(
    objects: list[dict[str, Any]],
    form: str,
    rng: np.random.Generator,
    *,
    order: list[int] | None = None,
    moving: bool = False,
) -> dict[str, Any]:
    count = len(objects)
    order = rng.permutation(count).tolist() if order is None else order
    told_of_each = _TOLD[form]
    if moving:
        told_of_each += ("motion",)
    described = []
    for k in order:
        described.append({name: objects[k][name] for name in told_of_each})
    statement: dict[str, Any] = {
        "form": form,
        "objects": described,
        "relations": [],
        "opening": _OPENINGS[int(rng.integers(len(_OPENINGS)))] if rng.random() < 0.7 else "",
        "synonyms": [word for word in _SYNONYMS if rng.random() < 0.3],
        "variant": int(rng.integers(2)),
    }
    if form == "counted":
        # Equal shapes are counted together, so they must be next to each other.
        shapes = [objects[k]["shape"] for k in order]
        statement["objects"].sort(key=lambda told: shapes.index(told["shape"]))
    if form == "relation":
        pairs = [(0, 1)]
        if count > 2 and rng.random() < 0.5:
            pairs.append((0, 2))
        for first, second in pairs:
            relations = relations_of(objects[order[first]], objects[order[second]])
            # Objects of an image are always related, because their cells differ. The second pair of
            # a clip may not be.
            if relations:
                relation = relations[int(rng.integers(len(relations)))]
                statement["relations"].append([first, relation, second])
    if _opens_itself(statement) or len(render(statement).split()) > MAX_WORDS:
        statement["opening"] = ""
    return statement


def _opens_itself(statement: dict[str, Any]) -> bool:
    """Tell whether no opening fits, because the text begins with a place or has no articles."""
    without_articles = len(statement["objects"]) == MAX_OBJECTS
    begins_with_place = statement["variant"] == 1
    return statement["form"] == "places" and (begins_with_place or without_articles)


def render(statement: dict[str, Any]) -> str:
    """Return the text of a statement: lower case, at most MAX_WORDS words."""
    form, opening = statement["form"], statement["opening"]
    if form == "places":
        text = _places(statement)
    elif form == "relation":
        text = _relations(statement)
    elif form == "counted":
        shapes = counted([told["shape"] for told in statement["objects"]])
        parts = []
        for shape, words in shapes.items():
            parts.append(with_article(words) if words == shape else words)
        text = _joined(parts)
    elif form == "whole":
        text = f"{_named(statement, 0)} {_place(statement, 0)}"
    else:
        text = _joined([_named(statement, k) for k in range(len(statement["objects"]))])
    return f"{opening} {text}" if opening else text


def _named(statement: dict[str, Any], k: int, article: bool = True) -> str:
    told = statement["objects"][k]
    traits = [told[name] for name in ("size", "fill", "colour", "shape") if name in told]
    words = " ".join(_word(statement, trait) for trait in traits)
    if article:
        words = with_article(words)
    return f"{words} {_motion(statement, k)}" if "motion" in told else words


def _motion(statement: dict[str, Any], k: int) -> str:
    told, variant = statement["objects"][k], statement["variant"]
    still, going = told["motion"] == STILL, f"{_MOVING[variant]} {told['motion']}"
    if "from" not in told:
        return _STAYING[variant] if still else going
    place = _at(statement, *told["from"])
    return f"{_RESTING[variant]} {place}" if still else f"{going} from {place.split(maxsplit=1)[1]}"


def _word(statement: dict[str, Any], word: str) -> str:
    return _SYNONYMS[word] if word in statement["synonyms"] else word


def with_article(words: str) -> str:
    """Put a or an before words."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def counted(shapes: list[str]) -> dict[str, str]:
    """Return for each shape the words that count it, without an article.

    For example "star" or "two circles".
    """
    words = {}
    for shape in shapes:
        count = shapes.count(shape)
        words[shape] = shape if count == 1 else f"{NUMBERS[count]} {plural(shape)}"
    return words


def plural(shape: str) -> str:
    """Return the plural of a shape."""
    return shape + ("es" if shape == "cross" else "s")


def _places(statement: dict[str, Any]) -> str:
    count = len(statement["objects"])
    article = count < MAX_OBJECTS  # with articles, the longest texts would pass MAX_WORDS
    parts = []
    for k in range(count):
        name, place = _named(statement, k, article), _place(statement, k, article)
        place_first = article and statement["variant"]
        parts.append(f"{place} {name}" if place_first else f"{name} {place}")
    return _joined(parts)


def _place(statement: dict[str, Any], k: int, article: bool = True) -> str:
    told = statement["objects"][k]
    return _at(statement, told["column"], told["row"], article)


def _at(statement: dict[str, Any], column: int, row: int, article: bool = True) -> str:
    return at_place(_word(statement, place_of(column, row)), article)


def place_of(column: int, row: int) -> str:
    """Name a cell of the grid."""
    return _PLACES[row][column]


def at_place(place: str, article: bool = True) -> str:
    """Put the preposition before a place."""
    preposition = _PREPOSITIONS.get(place, "in")
    return f"{preposition} the {place}" if article else f"{preposition} {place}"


def _relations(statement: dict[str, Any]) -> str:
    relations, count = statement["relations"], len(statement["objects"])
    words = [RELATIONS[name] for _, name, _ in relations]
    if len(relations) == 1 and statement["variant"]:
        words = [_RELATION_SYNONYMS[words[0]]]
    text = f"{_named(statement, 0)} {words[0]} {_named(statement, 1)}"
    if len(relations) == 2:
        text += f" and {words[1]} {_named(statement, 2)}"
    rest = [_named(statement, k) for k in range(1 + len(relations), count)]
    return f"{text} with {_joined(rest)}" if rest else text
