"""What a line of `samples.jsonl` holds: one statement about a pair of images."""

from __future__ import annotations

from typing import TypedDict


class Nlvr2Record(TypedDict):
    """A statement, whether it is true, and what the model says."""

    query: int | str
    """Id of the statement."""
    statement: str
    pair: str
    """Key of the pair of images."""
    image: str
    """Set of pairs that share images; intervals resample it."""
    file: str
    """File of the data set, such as `test-P`."""
    group: str
    """Statements with the same sentence share a group."""
    label: str | None
    """`True` or `False`; None if labels are kept secret."""
    prediction: str | None
    """None if an image cannot be read: the statement counts as wrong."""
    score: float | None
    """Logit of the prediction."""
