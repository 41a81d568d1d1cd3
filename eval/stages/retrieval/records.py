"""What a line of `samples.jsonl` holds: one query of retrieval, in either direction."""

from __future__ import annotations

from typing import NotRequired, TypedDict


class Standing(TypedDict):
    """Where the best right candidate of a query stands, and the candidates ranked first."""

    above: int
    """Candidates that score higher than the best right one."""
    tied: int
    """Candidates that score the same, itself included; 0 if the query cannot be read."""
    tied_positives: int
    """Right candidates among the tied ones."""
    top: list[tuple[str, float]]
    """Ids and scores of the best candidates, best first."""


class ContrastiveStanding(Standing):
    """Ranking of all candidates by the contrastive score."""

    average_precision: float


class RerankedStanding(Standing):
    """Ranking after the matching head has scored the shortlist again."""

    k: int
    """Length of the shortlist."""
    cut_in_a_tie: bool
    """Whether candidates outside the shortlist score the same as the last one inside."""
    best_rank: NotRequired[int]
    """If cut in a tie: the lowest rank that another choice among equal scores could lead to."""
    worst_rank: NotRequired[int]
    """If cut in a tie: the highest such rank."""


class RetrievalRecord(TypedDict):
    """A query, its candidates and where the right ones stand."""

    direction: str
    """`text_to_image`, `image_to_text`, or the same with `video`."""
    query: str
    image: str
    """Key of the image or video that the query is, or belongs to; intervals resample it."""
    fold: int
    candidates: int
    positives: int
    """Right candidates."""
    text: NotRequired[str]
    """The query itself, if it is a caption."""
    unreadable: NotRequired[bool]
    """Present if the image or video cannot be read: the query counts as missed."""
    contrastive: ContrastiveStanding
    reranked: NotRequired[RerankedStanding]
