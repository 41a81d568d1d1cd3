"""What is true of a scene: whether statements fit it, false captions, and the best possible recall.

In: the `scene` and `statements` of samples' annotations. Out: exact answers, without looking at
pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

from data_pipeline.scenes.captions import OPPOSITE, relations_of, render
from data_pipeline.scenes.graph import HELD_OUT
from data_pipeline.scenes.motion import moments

# Attributes that a false caption exchanges between two objects; a place has two coordinates.
_EXCHANGED_TOGETHER = (
    ("colour",),
    ("shape",),
    ("size",),
    ("fill",),
    ("column", "row"),
    ("motion", "from"),
)


def is_scene(annotation: dict[str, Any]) -> bool:
    """Tell whether annotations are of a generated scene; the other functions here need that."""
    has_texts = "statements" in annotation and "captions" in annotation
    return isinstance(annotation.get("scene"), dict) and has_texts


def fits(statement: dict[str, Any], scene: dict[str, Any]) -> bool:
    """Tell whether a caption's statement is true of a scene, or of all moments of a clip.

    A caption names every object of its image, so it fits no scene with more objects than it names.
    """
    named, objects = statement["objects"], scene["objects"]
    return len(named) == len(objects) and _assignable(named, statement["relations"], objects, [])


def _assignable(
    named: list[dict[str, Any]],
    relations: list[Any],
    objects: list[dict[str, Any]],
    chosen: list[int],
) -> bool:
    """Tell whether every named object can be assigned an object of the scene of its own.

    `chosen` are the objects assigned so far. All assignments are tried, because a description such
    as "a circle" may fit several objects.
    """
    if len(chosen) == len(named):
        for first, name, second in relations:
            if name not in relations_of(objects[chosen[first]], objects[chosen[second]]):
                return False
        return True
    told = named[len(chosen)]
    for k, item in enumerate(objects):
        # Each named object needs an object of its own.
        if k in chosen or not _is_as_told(item, told):
            continue
        if _assignable(named, relations, objects, [*chosen, k]):
            return True
    return False


def _is_as_told(item: dict[str, Any], told: dict[str, Any]) -> bool:
    """Tell whether an object has these attributes, in a clip at its start and at its end."""
    for moment in moments(item):
        if any(moment.get(name) != value for name, value in told.items()):
            return False
    return True


def ceiling(annotations: Sequence[dict[str, Any]]) -> float:
    """Return the best possible text-to-image R@1 over this gallery, in 0..1.

    A caption that fits n of the gallery's scenes finds its own with probability 1/n. This is the
    mean over all captions.
    """
    counts = fitting(annotations)
    return sum(1 / count for count in counts) / len(counts)


def fitting(annotations: Sequence[dict[str, Any]]) -> list[int]:
    """Count for every caption, in the order of the gallery, the scenes that it fits."""
    scenes = [annotation["scene"] for annotation in annotations]
    counts = []
    for annotation in annotations:
        for statement in annotation["statements"]:
            counts.append(sum(fits(statement, scene) for scene in scenes))
    return counts


def swapped(annotation: dict[str, Any], caption_number: int) -> str | None:
    """Return a false version of a caption, always the same one for the same sample.

    Two objects have exchanged an attribute, or a relation or a motion is reversed. The text does
    not fit the scene, and names no held-out pair of color and shape that the scene does not hold.
    Returns None if there is none (a single object whose motion is not told).
    """
    scene, statement = annotation["scene"], annotation["statements"][caption_number]
    shown = {(item["colour"], item["shape"]) for item in scene["objects"]}
    false: dict[str, list[str]] = {}
    for kind, candidate in _one_change_away(statement):
        if not fits(candidate, scene) and _looks_familiar(candidate, shown):
            false.setdefault(kind, []).append(render(candidate))
    if not false:
        return None
    position = f"{annotation['image_id']}/{caption_number}".encode()
    key = int.from_bytes(hashlib.blake2b(position, digest_size=8).digest(), "big")
    which, number = divmod(key, 2**32)
    # First the kind of change and then the text, so that rare kinds are as likely as others.
    texts = false[sorted(false)[which % len(false)]]
    return texts[number % len(texts)]


def _looks_familiar(statement: dict[str, Any], shown: set[tuple[str, str]]) -> bool:
    """Tell whether the words alone could be those of a true caption.

    It must name no pair of color and shape twice, and none that only novel scenes hold, or a model
    could tell it from true captions without looking at the image.
    """
    pairs = [(told["colour"], told["shape"]) for told in statement["objects"] if "colour" in told]
    return len(set(pairs)) == len(pairs) and not set(pairs) & (HELD_OUT - shown)


def _one_change_away(statement: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (what was changed, changed statement), whether or not it became false."""
    for i, j in combinations(range(len(statement["objects"])), 2):
        for names in _EXCHANGED_TOGETHER:
            objects = [dict(told) for told in statement["objects"]]
            first, second = objects[i], objects[j]
            if names[0] not in first:
                continue
            for name in names:
                if name in first:  # a motion may be told without its start
                    first[name], second[name] = second[name], first[name]
            yield names[0], {**statement, "objects": objects}
    for number, told in enumerate(statement["objects"]):
        # With its start told, the reversed motion might lead out of the grid.
        if told.get("motion") in OPPOSITE and "from" not in told:
            objects = [dict(item) for item in statement["objects"]]
            objects[number]["motion"] = OPPOSITE[told["motion"]]
            yield "direction", {**statement, "objects": objects}
    for number, (first, name, second) in enumerate(statement["relations"]):
        relations = list(statement["relations"])
        relations[number] = [first, OPPOSITE[name], second]
        yield "relation", {**statement, "relations": relations}
