"""What a line of `samples.jsonl` holds: a true and a false caption of an image and their scores."""

from __future__ import annotations

from typing import NotRequired, TypedDict


class ChoiceRecord(TypedDict):
    """A choice between two captions; also the record of SugarCrepe."""

    query: int | str
    image: str
    picture: NotRequired[str]
    """Image that intervals resample, if several samples show the same one; else `image`."""
    kind: str
    """How the false caption was made."""
    true: str
    false: str
    contrastive: list[float]
    """Scores of the true and of the false caption."""
    matching: list[float]
