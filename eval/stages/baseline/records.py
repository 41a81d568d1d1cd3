"""What a line of `samples.jsonl` holds: one caption and where its image stands."""

from __future__ import annotations

from typing import NotRequired, TypedDict


class BaselineStanding(TypedDict):
    """Where the image of a caption stands among all images."""

    above: int
    tied: int
    tied_positives: int


class BaselineRecord(TypedDict):
    """A caption as a query."""

    direction: str
    query: int
    image: str
    """Key of the caption's image; intervals resample it."""
    text: str
    candidates: int
    positives: int
    nearest_text: str
    """Training caption with the closest bag of words."""
    baseline: BaselineStanding
    fits: NotRequired[int]
    """Images of the gallery that the caption is true of; known for generated scenes."""
