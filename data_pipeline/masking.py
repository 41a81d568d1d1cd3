"""Which patches and which tokens of a sample are masked, drawn per sample from its own generator.

Rates and rules are those of GLSCL (arXiv 2306.07096), with two deliberate differences from its
published code: text positions are drawn without replacement, and words of several tokens are masked
as a whole. Both can be switched back. For a clip the patches are those of one frame: the same are
hidden in all (tubes).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import UsageError
from data_pipeline.text import Encoding, Tokenizer

Integers = NDArray[np.int64]


LONGEST_WORD = 16  # tokens


@dataclass(frozen=True)
class MaskingConfig:
    """Shares of what is hidden: patches dropped, patches masked, tokens masked, words of masked language modelling.

    `replacement` draws the masked tokens with replacement, as published: of "40 %" 35 to 42 % are
    left. `mlm_unit` "token" draws the targets of masked language modelling as published: so many of
    all `max_text_length` positions, those on padding and special tokens dropped, so that a short
    caption often has no target.
    """

    drop: float = 0.8
    patches: float = 0.3
    text: float = 0.4
    mlm: float = 0.15
    replacement: bool = False
    mlm_unit: Literal["word", "token"] = "word"

    def __post_init__(self) -> None:
        """Raise UsageError for a rate outside 0 .. 1 or an unknown unit."""
        for name in ("drop", "patches", "text", "mlm"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(
                    f"masking.{name} must be at least 0 and below 1, not {getattr(self, name)}"
                )
        if self.mlm_unit not in ("word", "token"):
            raise UsageError(f'masking.mlm_unit must be "word" or "token", not {self.mlm_unit!r}')

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
    negative_patches: (
        Integers | None
    )  # rows of masked_patches and masked_tokens, None unless negatives are sampled
    negative_tokens: Integers | None


def draw_masks(
    random: np.random.Generator,
    encoding: Encoding,
    patches: int,
    tokenizer: Tokenizer,
    config: MaskingConfig,
    *,
    max_text_length: int,
    local_negatives: int | None = None,
) -> Masks:
    """Draw everything that is masked of one sample, always in the same order.

    `local_negatives` samples up to so many of the masked patches and of the masked tokens.
    """
    keep = choose(random, patches, config.kept(patches))
    masked = choose(random, patches, config.masked(patches))
    masked_tokens = choose_tokens(random, len(encoding.ids) - 2, config)
    if config.mlm_unit == "word":
        positions = choose_words(random, encoding.words, config.mlm)
    else:
        positions = choose_of_all_positions(random, encoding.words, config.mlm, max_text_length)
    shown = replace_tokens(random, encoding.ids, positions, tokenizer)
    negatives: list[Integers | None] = [None, None]
    if local_negatives is not None:  # last, so that everything before is the same without it
        negatives = [
            choose(random, len(hidden), local_negatives) for hidden in (masked, masked_tokens)
        ]
    return Masks(keep, masked, masked_tokens, positions, shown, *negatives)


def choose(random: np.random.Generator, size: int, count: int) -> Integers:
    """`count` different numbers of 0 .. size - 1, ascending; all of them where there are no more."""
    # argsort of uniform noise: needs only `random`, the one method whose stream numpy has never
    # changed
    return np.sort(np.argsort(random.random(size), kind="stable")[:count])


def choose_tokens(random: np.random.Generator, tokens: int, config: MaskingConfig) -> Integers:
    """Positions to mask in a text of `tokens` tokens beside the special ones at its ends."""
    # int(n * rate) + 1 is the published count: at least one token, whatever the length.
    count = int(tokens * config.text) + 1
    if config.replacement and tokens:
        return 1 + np.unique((random.random(count) * tokens).astype(np.int64))
    return 1 + choose(random, tokens, min(count, tokens))


def choose_words(random: np.random.Generator, words: Sequence[int | None], rate: float) -> Integers:
    """Positions of all tokens of the chosen words: `rate` of the words, rounded, and at least one.

    Of a "word" of more than 16 tokens each token counts as one: scripts without spaces make one of
    a whole sentence.
    """
    length = Counter(words)
    units = [
        (word, n if length[word] > LONGEST_WORD else 0)
        for n, word in enumerate(words)
        if word is not None
    ]
    places = [n for n, word in enumerate(words) if word is not None]
    distinct = sorted(set(units))
    count = max(1, round(len(distinct) * rate))
    chosen = {distinct[n] for n in choose(random, len(distinct), count)}
    return np.array(
        [place for place, unit in zip(places, units, strict=True) if unit in chosen], dtype=np.int64
    )


def choose_of_all_positions(
    random: np.random.Generator, words: Sequence[int | None], rate: float, max_text_length: int
) -> Integers:
    """Of `rate` of all positions that a text may have, those that hold a token of a word; perhaps none.

    This is what transformers' whole-word collator does with a byte-level tokenizer, whose pieces it
    takes for words.
    """
    chosen = choose(random, max_text_length, max(1, round(max_text_length * rate))).tolist()
    return np.array([n for n in chosen if n < len(words) and words[n] is not None], dtype=np.int64)


def replace_tokens(
    random: np.random.Generator, ids: Sequence[int], positions: Integers, tokenizer: Tokenizer
) -> Integers:
    """Draw what stands at the positions to predict: 80 % the mask, 10 % a random token, 10 % the token itself."""
    dice, which = random.random((2, len(positions)))
    ordinary = tokenizer.ordinary_ids
    shown = np.array(ids, dtype=np.int64)[positions]
    shown = np.where(dice < 0.9, ordinary[(which * len(ordinary)).astype(np.int64)], shown)
    return np.where(dice < 0.8, tokenizer.mask_id, shown)
