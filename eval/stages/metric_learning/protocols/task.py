"""What a protocol makes of embedded images: queries, gallery, and what is right for whom."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError

# Gallery positions that are right for a query, and those that leave its ranking.
Judged = tuple[NDArray[np.intp], NDArray[np.intp]]


@dataclass(frozen=True)
class EmbeddedImages:
    """Images with their ``embedding`` (images, width).

    The other fields are those of `eval.encoding.labelled_images.ImageTokens`.
    """

    keys: Sequence[str]
    labels: Sequence[tuple[str, ...]]
    annotations: Sequence[Mapping[str, Any]]
    embedding: Any

    def rows(self, rows: NDArray[np.intp]) -> EmbeddedImages:
        """Return the images at ``rows``."""
        positions = rows.tolist()
        return EmbeddedImages(
            keys=[self.keys[row] for row in positions],
            labels=[self.labels[row] for row in positions],
            annotations=[self.annotations[row] for row in positions],
            embedding=self.embedding[positions],
        )

    def only_labels(self) -> list[str]:
        """Return the label of each image; raises DataError for a sample with none or several."""
        for key, names in zip(self.keys, self.labels, strict=True):
            if len(names) != 1:
                raise DataError(
                    f'sample {key} has {len(names)} "labels"; a query needs exactly one'
                )
        return [names[0] for names in self.labels]


@dataclass(frozen=True)
class Task:
    """Queries and gallery of a protocol.

    ``judge(row, setting)`` returns for a query the gallery positions that are right and those that
    leave its ranking. ``clusters`` names for each query its class (identity, place), which
    intervals resample. ``identities`` (gallery,) are given if the ranks of identities count beside
    those of images.
    """

    query: EmbeddedImages
    gallery: EmbeddedImages
    clusters: Sequence[str]
    judge: Callable[[int, str], Judged]
    settings: Sequence[str] = ("",)
    identities: NDArray[np.str_] | None = None
