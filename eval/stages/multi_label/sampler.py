"""Support pictures for labels, drawn again and again; what is left of the data set are the queries of every draw.

In: which picture has which label. A draw takes so many pictures of every label; their other labels count too, so that a
label may have more. Out: rows of the pictures. A draw depends on the seed and its number alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError, UsageError


@dataclass(frozen=True)
class Draw:
    """Rows of the support pictures and of the queries, which share no picture and no copy of one."""

    support: NDArray[np.int64]
    query: NDArray[np.int64]


class MultiLabelEpisodeSampler:
    """Draws of ``shot`` support pictures for every label, with the whole rest as queries.

    Parameters
    ----------
    truth
        Which picture has which label (pictures, labels).
    names
        Of the labels.
    shot, draws, seed
        Support pictures of a label, number of draws, and what they depend on. With the same seed and draw the support
        of fewer shots is part of that of more.
    media
        The same for copies of a picture; without it all pictures differ.

    Raises
    ------
    UsageError, DataError
        For a shot or a number of draws below 1; for labels with too few different pictures, by name.
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
    ):
        if shot < 1 or draws < 1:
            raise UsageError(f"{draws} draws of {shot} pictures a label: both must be 1 or more")
        self.truth, self.shot, self.draws, self.seed = truth, shot, draws, seed
        self.same = np.unique(np.arange(len(truth)) if media is None else np.asarray(media), return_inverse=True)[1]
        counts = {name: len(np.unique(self.same[truth[:, c]])) for c, name in enumerate(names)}
        few = [f"{name} ({count})" for name, count in counts.items() if count <= shot]
        if few:
            raise DataError(
                f"too few different pictures for {shot} support pictures and a query: {', '.join(few)}: "
                "leave these labels out with a list of labels, or use fewer shots"
            )

    def all(self) -> Iterator[Draw]:
        """Yield every draw."""
        return (self[number] for number in range(self.draws))

    def __len__(self) -> int:
        return self.draws

    def __getitem__(self, number: int) -> Draw:
        if not 0 <= number < self.draws:
            raise IndexError(number)
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, number])))
        chosen = []
        for label in range(self.truth.shape[1]):
            rows = rng.permutation(np.flatnonzero(self.truth[:, label]))
            first = np.sort(
                np.unique(self.same[rows], return_index=True)[1]
            )  # of every picture one copy, in this order
            chosen.append(rows[first[: self.shot]])
        support = np.unique(np.concatenate(chosen))
        query = np.flatnonzero(~np.isin(self.same, self.same[support]))
        return Draw(support, query)
