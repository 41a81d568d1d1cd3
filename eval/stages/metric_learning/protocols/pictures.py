"""What a protocol makes of embedded pictures: who asks, who is ranked, and what is right for whom."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError

Judged = tuple[NDArray[np.intp], NDArray[np.intp]]


@dataclass(frozen=True)
class Pictures:
    """Embedded pictures: ``embedding`` (pictures, width), the other fields as in `eval.tokens.ImageTokens`."""

    keys: Sequence[str]
    labels: Sequence[tuple[str, ...]]
    annotations: Sequence[Mapping[str, Any]]
    embedding: Any

    def rows(self, rows: NDArray[np.intp]) -> Pictures:
        """Return the pictures at ``rows``."""
        some = rows.tolist()
        keys, labels, annotations = (
            [every[row] for row in some] for every in (self.keys, self.labels, self.annotations)
        )
        return Pictures(keys, labels, annotations, self.embedding[some])

    def only_labels(self) -> list[str]:
        """Return the one label of each picture; raises DataError for a sample with none or several."""
        for key, names in zip(self.keys, self.labels, strict=True):
            if len(names) != 1:
                raise DataError(
                    f'sample {key} has {len(names)} "labels"; a query needs exactly one'
                )
        return [names[0] for names in self.labels]


@dataclass(frozen=True)
class Task:
    """Queries and gallery of a protocol.

    ``judge(row, setting)`` gives for a query the gallery positions that are right and those that
    leave its ranking. ``clusters`` names for each query its class (identity, place), which
    intervals resample. ``identities`` (gallery,) are given where the places of identities are
    counted beside those of pictures.
    """

    query: Pictures
    gallery: Pictures
    clusters: Sequence[str]
    judge: Callable[[int, str], Judged]
    settings: Sequence[str] = ("",)
    identities: NDArray[np.str_] | None = None
