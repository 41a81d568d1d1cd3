"""Records of few-shot classification: an episode with the answers to its queries on each line.

The stage writes these records; metrics and the report read them.
"""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict, get_args

Kind = Literal["closed_world", "open_world"]
"""Whether the episodes of a list may share images (closed world) or share none (open world)."""
KINDS: tuple[Kind, ...] = get_args(Kind)


class EpisodeRecord(TypedDict):
    """One episode, and what every method answered in it."""

    query: str
    """Form and number, such as `5way-1shot/17`."""
    kind: Kind
    way: int
    shot: int
    classes: list[str]
    predicted: dict[str, list[int]]
    """By method the predicted index in ``classes`` of each query, class after class."""
    support_pictures: NotRequired[list[str]]
    """Keys of the support images, class after class; only of the episodes that the report shows."""
    query_pictures: NotRequired[list[str]]
    weights: NotRequired[list[list[float]]]
    """GLIML's weight of each patch, of the support images and then of the queries."""
