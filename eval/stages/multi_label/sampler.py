"""Draws of support images for labels; all other images of the data set are the queries.

In: which image has which label. Out: rows of support and query images. A draw takes a number of
images for every label. Their other labels count too, so that a label may have more support images
than that. A draw depends on the seed and its number alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError, UsageError
from data_pipeline.randomness import generator_at


@dataclass(frozen=True)
class Draw:
    """Rows of support and query images, which share no image and no copy of one."""

    support: NDArray[np.int64]
    query: NDArray[np.int64]


class MultiLabelEpisodeSampler:
    """Draws of ``shot`` support images for every label, with all other images as queries.

    Parameters
    ----------
    truth
        Which image has which label (images, labels).
    names
        Names of the labels.
    shot, draws, seed
        Support images per label, number of draws, and the seed. With the same seed and draw, the
        support of fewer shots is part of the support of more.
    media
        Hash of every image's file; without it no image is a copy of another.
    name
        What messages call the data set, such as `--val`.

    Raises
    ------
    UsageError
        For a shot or a number of draws below 1.
    DataError
        For labels with too few different images, by name, and for a draw without any query that
        has a label.
    """

    def __init__(
        self,
        truth: NDArray[np.bool_],
        names: Sequence[str],
        *,
        shot: int,
        draws: int,
        seed: int,
        media: Sequence[str] | None = None,
        name: str = "the data",
    ):
        if shot < 1 or draws < 1:
            raise UsageError(f"{draws} draws of {shot} images per label: both must be 1 or more")
        self.truth, self.shot, self.draws, self.seed, self.name = truth, shot, draws, seed, name
        if media is None:
            self.file_numbers = np.arange(len(truth))
        else:
            # Copies of an image get the same number: none is a query for the other.
            self.file_numbers = np.unique(np.asarray(media), return_inverse=True)[1]
        too_few = []
        for column, label in enumerate(names):
            different = len(np.unique(self.file_numbers[truth[:, column]]))
            if different <= shot:  # one more is needed as a query
                too_few.append(f"{label} ({different})")
        if too_few:
            raise DataError(
                f"{name} has too few different images for {self._support_in_words} and a query: "
                f"{', '.join(too_few)}: leave these labels out with a list of labels, "
                f"{self._advice}"
            )

    @property
    def _support_in_words(self) -> str:
        images = "image" if self.shot == 1 else "images"
        return f"{self.shot} support {images} of each label"

    @property
    def _advice(self) -> str:
        return "add images" if self.shot == 1 else "add images, or use fewer shots"

    def all(self) -> Iterator[Draw]:
        """Yield every draw."""
        return (self[number] for number in range(self.draws))

    def __len__(self) -> int:
        return self.draws

    def __getitem__(self, number: int) -> Draw:
        if not 0 <= number < self.draws:
            raise IndexError(number)
        rng = generator_at(self.seed, number)
        support_rows = []
        for label in range(self.truth.shape[1]):
            # More shots read further into the same permutation, and so keep the earlier images.
            rows = rng.permutation(np.flatnonzero(self.truth[:, label]))
            # One copy of every image, in the order of the permutation.
            distinct = np.sort(np.unique(self.file_numbers[rows], return_index=True)[1])
            support_rows.append(rows[distinct[: self.shot]])
        support = np.unique(np.concatenate(support_rows))
        is_shown = np.isin(self.file_numbers, self.file_numbers[support])
        query = np.flatnonzero(~is_shown)
        if not self.truth[query].any():
            raise DataError(
                f"{self.name} leaves no image with a label to find beside "
                f"{self._support_in_words} (draw {number}): {self._advice}"
            )
        return Draw(support, query)
