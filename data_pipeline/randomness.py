"""The one place where random generators and keys are made: each is a pure function of a position.

In: values that say what is drawn and where (a seed, a sample, an epoch, a purpose). Out: 64-bit
keys, and counter-based generators (Philox; Salmon et al., "Parallel random numbers: as easy as 1,
2, 3", 2011). No generator is ever saved, restored or shared, which is why a resumed run draws the
same values.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
from numpy.random import Generator, Philox, SeedSequence
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Words = NDArray[np.uint64]

# What a folded key is for. All purposes are numbered here, so that no two uses share a key.
EPOCH, SPANS, WINDOW, STAND_IN, SAMPLE = range(5)

_GOLDEN_RATIO = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / phi, the increment of splitmix64


def generator_at(*position: int) -> Generator:
    """Return the generator of a position, such as (seed, sample, purpose).

    NumPy mixes the integers. Positions of different lengths or values give independent streams.
    """
    return Generator(Philox(SeedSequence(position)))


def generator_with_key(key: Any) -> Generator:
    """Return the generator whose Philox key is ``key``, one or two words of 64 bits.

    The loader uses this: its keys are already mixed by `fold`, and one SeedSequence per sample
    would cost more than the draws themselves.
    """
    return Generator(Philox(key=key))


def hash_key(*parts: object) -> int:
    """Return a 64-bit key of any JSON values, the same on every machine and in every version."""
    text = json.dumps(parts, ensure_ascii=True, separators=(",", ":"))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def fold(key: int | Words, *values: int | Integers) -> Words:
    """Derive keys from keys and integers (scalars or arrays, which broadcast).

    Returns uint64 words, at least one.
    """
    words = np.atleast_1d(np.asarray(key, dtype=np.uint64))
    for value in values:
        integers = np.atleast_1d(np.asarray(value, dtype=np.int64)).view(np.uint64)
        # Mixed before the xor too, so that neighboring values give keys that differ everywhere.
        words = mix64(words ^ mix64(integers + _GOLDEN_RATIO))
    return words


def round_key(key: Words) -> Words:
    """Return the next key of a sequence of keys, such as the rounds of a cipher."""
    return mix64(key + _GOLDEN_RATIO)


def mix64(words: Words) -> Words:
    """Scatter every bit of 64-bit words by the bijection of splitmix64 (Steele et al., 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
