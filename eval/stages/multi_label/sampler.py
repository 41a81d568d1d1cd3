"""Support pictures for labels, drawn again and again; what is left of the data set are the queries of every draw.

In: which picture has which label. A draw takes so many pictures of every label; their other labels
count too, so that a label may have more. Out: rows of the pictures. A draw depends on the seed and
its number alone.
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
        Support pictures of a label, number of draws, and what they depend on. With the same seed
        and draw the support of fewer shots is part of that of more.
    media
        The same for copies of a picture; without it all pictures differ.
    name
        What messages call the pictures, such as `--val`.

    Raises
    ------
    UsageError, DataError
        For a shot or a number of draws below 1; for labels with too few different pictures, by
        name, and for a draw that leaves no picture with a label to find.
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
            raise UsageError(f"{draws} draws of {shot} pictures a label: both must be 1 or more")
        self.truth, self.shot, self.draws, self.seed, self.name = truth, shot, draws, seed, name
        self.same = np.unique(
            np.arange(len(truth)) if media is None else np.asarray(media), return_inverse=True
        )[1]
        counts = {label: len(np.unique(self.same[truth[:, c]])) for c, label in enumerate(names)}
        few = [f"{label} ({count})" for label, count in counts.items() if count <= shot]
        if few:
            raise DataError(
                f"{name} has too few different pictures for {self._support} and a query: {', '.join(few)}: "
                f"leave these labels out with a list of labels, {self._more}"
            )

    @property
    def _support(self) -> str:
        return f"{self.shot} support picture{'s' * (self.shot > 1)} of each label"

    @property
    def _more(self) -> str:
        return "add pictures" + ", or use fewer shots" * (self.shot > 1)

    def all(self) -> Iterator[Draw]:
        """Yield every draw."""
        return (self[number] for number in range(self.draws))

    def __len__(self) -> int:
        return self.draws

    def __getitem__(self, number: int) -> Draw:
        if not 0 <= number < self.draws:
            raise IndexError(number)
        rng = generator_at(self.seed, number)
        chosen = []
        for label in range(self.truth.shape[1]):
            rows = rng.permutation(np.flatnonzero(self.truth[:, label]))
            first = np.sort(
                np.unique(self.same[rows], return_index=True)[1]
            )  # of every picture one copy, in this order
            chosen.append(rows[first[: self.shot]])
        support = np.unique(np.concatenate(chosen))
        query = np.flatnonzero(~np.isin(self.same, self.same[support]))
        if not self.truth[query].any():
            raise DataError(
                f"{self.name} leaves no picture with a label to find beside {self._support} (draw {number}): "
                f"{self._more}"
            )
        return Draw(support, query)
