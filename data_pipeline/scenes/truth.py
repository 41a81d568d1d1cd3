"""What is true of a scene: whether a statement fits it, how well captions can identify pictures, and false captions.

In: the `scene` and `statements` of samples' annotations. Out: exact answers; no pixels are looked
at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

from data_pipeline.scenes.captions import OPPOSITE, relations_of, render
from data_pipeline.scenes.graph import HELD_OUT
from data_pipeline.scenes.motion import moments

_EXCHANGED_TOGETHER = (
    ("colour",),
    ("shape",),
    ("size",),
    ("fill",),
    ("column", "row"),
    ("motion", "from"),
)


def is_scene(annotation: dict[str, Any]) -> bool:
    """Whether a sample's annotation is that of a generated scene, which the other functions here need."""
    return (
        isinstance(annotation.get("scene"), dict)
        and "statements" in annotation
        and "captions" in annotation
    )


def fits(statement: dict[str, Any], scene: dict[str, Any]) -> bool:
    """Whether a caption's statement is true of a scene, or of all of a clip's.

    A caption names every object of its picture, so it fits no scene with more objects than it
    names.
    """
    named, objects = statement["objects"], scene["objects"]
    return len(named) == len(objects) and _assignable(named, statement["relations"], objects, [])


def _assignable(
    named: list[dict[str, Any]],
    relations: list[Any],
    objects: list[dict[str, Any]],
    chosen: list[int],
) -> bool:
    """Whether the named objects after `chosen` can be found among the scene's objects, each another one."""
    if len(chosen) == len(named):
        return all(
            name in relations_of(objects[chosen[one]], objects[chosen[other]])
            for one, name, other in relations
        )
    wanted = named[len(chosen)].items()
    return any(
        k not in chosen
        and all(at.get(name) == value for at in moments(item) for name, value in wanted)
        and _assignable(named, relations, objects, [*chosen, k])
        for k, item in enumerate(objects)
    )


def ceiling(annotations: Sequence[dict[str, Any]]) -> float:
    """Best possible text-to-image R@1 over this gallery, in 0..1.

    A caption that fits n of the gallery's scenes finds its own with probability 1/n; the mean over
    all captions.
    """
    counts = fitting(annotations)
    return sum(1 / count for count in counts) / len(counts)


def fitting(annotations: Sequence[dict[str, Any]]) -> list[int]:
    """Count for every caption, in the order of the gallery, the scenes that it fits."""
    scenes = [annotation["scene"] for annotation in annotations]
    return [
        sum(fits(statement, scene) for scene in scenes)
        for annotation in annotations
        for statement in annotation["statements"]
    ]


def swapped(annotation: dict[str, Any], caption_number: int) -> str | None:
    """Return caption `caption_number` with an attribute exchanged between two objects, or a relation or motion turned.

    The text does not fit the scene, and names no held-out pair of colour and shape that the scene
    does not hold. Always the same one for the same sample; None where there is none (a single
    object whose motion is not told).
    """
    scene, statement = annotation["scene"], annotation["statements"][caption_number]
    shown = {(item["colour"], item["shape"]) for item in scene["objects"]}
    false: dict[str, list[str]] = {}
    for kind, candidate in _one_change_away(statement):
        if not fits(candidate, scene) and _looks_familiar(candidate, shown):
            false.setdefault(kind, []).append(render(candidate))
    if not false:
        return None
    key = hashlib.blake2b(
        f"{annotation['image_id']}/{caption_number}".encode(), digest_size=8
    ).digest()
    which, number = divmod(int.from_bytes(key, "big"), 2**32)
    texts = false[sorted(false)[which % len(false)]]
    return texts[number % len(texts)]


def _looks_familiar(statement: dict[str, Any], shown: set[tuple[str, str]]) -> bool:
    """Whether its words alone could be a true caption's: no pair twice, and none that only novel scenes hold."""
    pairs = [(told["colour"], told["shape"]) for told in statement["objects"] if "colour" in told]
    return len(set(pairs)) == len(pairs) and not set(pairs) & (HELD_OUT - shown)


def _one_change_away(statement: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (what was changed, changed statement), whether or not it became false."""
    for one, other in combinations(range(len(statement["objects"])), 2):
        for names in _EXCHANGED_TOGETHER:
            objects = [dict(told) for told in statement["objects"]]
            if names[0] not in objects[one]:
                continue
            for name in names if names[-1] in objects[one] else names[:1]:
                objects[one][name], objects[other][name] = objects[other][name], objects[one][name]
            yield names[0], {**statement, "objects": objects}
    for number, told in enumerate(statement["objects"]):
        if (
            told.get("motion") in OPPOSITE and "from" not in told
        ):  # there may be no way in that direction
            objects = [dict(item) for item in statement["objects"]]
            objects[number]["motion"] = OPPOSITE[told["motion"]]
            yield "direction", {**statement, "objects": objects}
    for number, (one, name, other) in enumerate(statement["relations"]):
        relations = list(statement["relations"])
        relations[number] = [one, OPPOSITE[name], other]
        yield "relation", {**statement, "relations": relations}
