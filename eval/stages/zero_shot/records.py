"""What a line of `samples.jsonl` holds: one image and the rank of its class."""

from __future__ import annotations

from typing import TypedDict


class ZeroShotRecord(TypedDict):
    """An image, its class, and where the class stands among all classes."""

    query: str
    image: str
    """Key of the image; intervals resample it."""
    label: str
    candidates: int
    """Number of classes."""
    above: int
    """Classes that score higher than the right one."""
    tied: int
    """Classes that score the same, the right one included."""
    top: list[tuple[str, float]]
    """Names and scores of the best classes, best first."""
