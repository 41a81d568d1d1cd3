"""What a line of `samples.jsonl` holds: two images, two captions and all four scores."""

from __future__ import annotations

from typing import TypedDict


class WinogroundRecord(TypedDict):
    """An example of Winoground; scores are [caption][image]."""

    query: str
    image: str
    """Key of the pair of images; intervals resample it."""
    captions: list[str]
    tag: str
    """What the captions swap, as the data set names it."""
    contrastive: list[list[float]]
    matching: list[list[float]]
