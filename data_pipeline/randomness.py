"""The one place where random generators are made: each is a pure function of a position.

In: integers that say what is drawn and where (a seed, a sample, an epoch, a purpose). Out: a
counter-based generator (Philox; Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
No generator is ever saved, restored or shared, which is why a resumed run draws the same values.
"""

from __future__ import annotations

from typing import Any

from numpy.random import Generator, Philox, SeedSequence


def generator_at(*position: int) -> Generator:
    """Return the generator of a position, such as (seed, sample, purpose); NumPy mixes the integers.

    Positions of different lengths or values give independent streams.
    """
    return Generator(Philox(SeedSequence(position)))


def generator_with_key(key: Any) -> Generator:
    """Return the generator whose Philox key is ``key``, one or two words of 64 bits.

    The data order uses this: its keys are already mixed by `data_pipeline.order.fold`, and one
    SeedSequence per sample would cost more than the draws themselves.
    """
    return Generator(Philox(key=key))
