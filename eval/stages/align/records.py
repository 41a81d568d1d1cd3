"""What a line of `samples.jsonl` holds: the attention of one caption or phrase, and its scores."""

from __future__ import annotations

from typing import Any, TypedDict

# Values of a map against regions: mass, pointing, IoU, and area and touched (see grounding.py).
Measures = dict[str, float]
# The grid and its values, as `eval.metrics.grounding.pack_map` writes them.
PackedMap = dict[str, Any]


class AlignRecord(TypedDict):
    """A caption (level `global`) or a phrase of it (level `local`)."""

    query: str
    level: str
    image: str
    """Key of the image; intervals resample it."""
    caption: str
    phrase: str | None
    regions: list[int]
    """Numbers of the regions in the sample."""
    tokens: list[int]
    """Positions of the tokens whose attention was added up; empty if the phrase is unmatched."""
    unmatched: int
    """1 if the caption does not hold the phrase."""
    background: int
    """Shapes that cover most of the image and were left out."""
    empty: int
    """Shapes without area."""
    zero_map: int
    """1 if the map has no mass."""
    map: PackedMap | None
    """None if the phrase is unmatched."""
    pixel: Measures | None
    """Scores against masks; None if there are none."""
    box: Measures | None
    """Scores against boxes; None if there are none."""
