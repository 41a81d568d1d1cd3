"""What a line of `samples.jsonl` holds: a query, the answer of a probe, or a map of attention."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict


class RankedQuery(TypedDict):
    """A query whose gallery a protocol ranked, by some descriptor."""

    protocol: str
    query: str
    label: str
    """Class, identity or place of the query; intervals resample it."""
    setting: str
    """Setup of Revisited, or number of a drawn gallery of SYSU-MM01; else empty."""
    positives: int
    """Right images in the gallery."""
    candidates: int
    """Images that were ranked."""
    identities: NotRequired[int]
    """Identities that were ranked, where a protocol ranks them."""
    values: NotRequired[dict[str, float]]
    """Value of each metric, in 0..1; absent if the gallery holds no right image."""
    top: list[tuple[str, float, bool]]
    """Nearest images, best first: key, cosine, and whether it is right."""
    clusters: NotRequired[list[int]]
    """Cluster of the image in each run of k-means."""


class QueryRecord(RankedQuery):
    """A query of one method and training seed."""

    kind: Literal["query"]
    method: str
    seed: int | None
    """None for methods without training."""


class ProbeRecord(TypedDict):
    """What a fresh probe says of a training image that it was not fitted on."""

    kind: Literal["probe"]
    method: str
    seed: int
    probe: str
    query: str
    label: str
    said: str
    """Class that the probe predicts."""


class AttentionRecord(TypedDict):
    """Where the trained head looks in an image."""

    kind: Literal["attention"]
    query: str
    grid: list[int]
    """Rows and columns of patches."""
    weights: dict[str, list[float]]
    """By block, the weight of each patch, row by row."""


Record = QueryRecord | ProbeRecord | AttentionRecord
