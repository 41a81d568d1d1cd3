"""Which patches and which tokens of a sample are masked, drawn per sample from its own generator.

Rates and rules are those of GLSCL (arXiv 2306.07096), with two deliberate differences from its published code: text
positions are drawn without replacement (there "40 %" is 35 to 42 %), and words of several tokens are masked as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import UsageError
from data_pipeline.text import Encoding, Tokenizer

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class MaskingConfig:
    """Shares of what is hidden: patches dropped, patches masked, tokens masked, words of masked language modelling."""

    drop: float = 0.8
    patches: float = 0.3
    text: float = 0.4
    mlm: float = 0.15

    def __post_init__(self) -> None:
        """Raise UsageError for a rate outside 0 .. 1."""
        for name in ("drop", "patches", "text", "mlm"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"masking.{name} must be at least 0 and below 1, not {getattr(self, name)}")

    def kept(self, patches: int) -> int:
        """Patches that the dropped view keeps."""
        # 25 * (1 - 0.8) is 4.999... in floating point; the rate meant is 0.2.
        return int(patches * round(1 - self.drop, 9))

    def masked(self, patches: int) -> int:
        """Patches that the masked view replaces."""
        return int(patches * self.patches)


@dataclass(frozen=True)
class Masks:
    """What is hidden of one sample; positions count patches or tokens of that sample, ascending."""

    keep_patches: Integers
    masked_patches: Integers
    masked_tokens: Integers
    mlm_positions: Integers
    mlm_inputs: Integers  # what stands at mlm_positions instead of the token


def draw_masks(
    random: np.random.Generator, encoding: Encoding, patches: int, tokenizer: Tokenizer, config: MaskingConfig
) -> Masks:
    """Draw everything that is masked of one sample, always in the same order."""
    keep = choose(random, patches, config.kept(patches))
    masked = choose(random, patches, config.masked(patches))
    length = len(encoding.ids)
    # int(n * rate) + 1 is the published count: at least one token, whatever the length.
    tokens = min(int((length - 2) * config.text) + 1, length - 2)
    masked_tokens = 1 + choose(random, length - 2, tokens)
    positions = choose_words(random, encoding.words, config.mlm)
    return Masks(keep, masked, masked_tokens, positions, replace_tokens(random, encoding.ids, positions, tokenizer))


def choose(random: np.random.Generator, size: int, count: int) -> Integers:
    """`count` different numbers of 0 .. size - 1, ascending."""
    # argsort of uniform noise: needs only `random`, the one method whose stream numpy has never changed
    return np.sort(np.argsort(random.random(size), kind="stable")[:count])


def choose_words(random: np.random.Generator, words: Sequence[int | None], rate: float) -> Integers:
    """Positions of all tokens of the chosen words: `rate` of the words, rounded, and at least one."""
    numbers = sorted({word for word in words if word is not None})
    count = max(1, round(len(numbers) * rate))
    chosen = {numbers[n] for n in choose(random, len(numbers), count)}
    return np.array([position for position, word in enumerate(words) if word in chosen], dtype=np.int64)


def replace_tokens(
    random: np.random.Generator, ids: Sequence[int], positions: Integers, tokenizer: Tokenizer
) -> Integers:
    """Draw what stands at the positions to predict: 80 % the mask, 10 % a random token, 10 % the token itself."""
    dice, which = random.random((2, len(positions)))
    ordinary = tokenizer.ordinary_ids
    shown = np.array(ids, dtype=np.int64)[positions]
    shown = np.where(dice < 0.9, ordinary[(which * len(ordinary)).astype(np.int64)], shown)
    return np.where(dice < 0.8, tokenizer.mask_id, shown)
