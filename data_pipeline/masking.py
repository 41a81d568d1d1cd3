"""Which patches and tokens of a sample are masked, drawn from the sample's own generator.

In: a generator, an encoded text and the number of patches. Out: `Masks`. Rates and rules are those
of GLSCL (arXiv 2306.07096), with two deliberate differences from its published code: text positions
are drawn without replacement, and words of several tokens are masked as a whole. Both can be
switched back. The patches of a clip are those of one frame: the same ones are hidden in every frame
(tubes).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from data_pipeline.errors import UsageError
from data_pipeline.randomness import Integers
from data_pipeline.text import Encoding, Tokenizer

LONGEST_WORD = 16  # tokens; see `choose_words`


@dataclass(frozen=True)
class MaskingConfig:
    """Which shares are hidden: dropped patches, masked patches, masked tokens, words to predict.

    `replacement` draws the masked tokens with replacement, as published: a rate of 40 % then masks
    35 to 42 %. `mlm_unit` "token" draws the targets of masked language modeling as published: it
    draws from all `max_text_length` positions and drops those on padding and special tokens, so a
    short caption often has no target.
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
            rate = getattr(self, name)
            if not 0 <= rate < 1:
                raise UsageError(f"masking.{name} must be at least 0 and below 1, not {rate}")
        if self.mlm_unit not in ("word", "token"):
            raise UsageError(f'masking.mlm_unit must be "word" or "token", not {self.mlm_unit!r}')

    def kept(self, patches: int) -> int:
        """Return how many patches the dropped view keeps."""
        # 1 - 0.8 is 0.199... in floating point, which would keep 4 of 25 patches instead of 5.
        return int(patches * round(1 - self.drop, 9))

    def masked(self, patches: int) -> int:
        """Return how many patches the masked view replaces."""
        return int(patches * self.patches)


@dataclass(frozen=True)
class Masks:
    """What is hidden of one sample: ascending positions of its own patches or tokens."""

    keep_patches: Integers
    masked_patches: Integers
    masked_tokens: Integers
    mlm_positions: Integers
    mlm_inputs: Integers  # what the model sees at mlm_positions instead of the token
    # Rows of masked_patches and of masked_tokens; None unless negatives are sampled.
    negative_patches: Integers | None
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
    """Draw everything that is masked in one sample, always in the same order.

    `local_negatives` is the largest number of masked patches, and of masked tokens, that serve as
    negatives.
    """
    keep = choose_positions(random, patches, config.kept(patches))
    masked = choose_positions(random, patches, config.masked(patches))
    masked_tokens = choose_tokens(random, len(encoding.ids) - 2, config)
    if config.mlm_unit == "word":
        positions = choose_words(random, encoding.words, config.mlm)
    else:
        positions = choose_of_all_positions(random, encoding.words, config.mlm, max_text_length)
    shown = replace_tokens(random, encoding.ids, positions, tokenizer)
    negative_patches = negative_tokens = None
    if local_negatives is not None:  # last, so that everything above is the same without it
        negative_patches = choose_positions(random, len(masked), local_negatives)
        negative_tokens = choose_positions(random, len(masked_tokens), local_negatives)
    return Masks(keep, masked, masked_tokens, positions, shown, negative_patches, negative_tokens)


def choose_positions(random: np.random.Generator, size: int, count: int) -> Integers:
    """Choose `count` different numbers of 0 .. size - 1 in ascending order, or all if fewer."""
    # The argsort of uniform noise needs only `random`, the one method whose stream numpy has never
    # changed.
    return np.sort(np.argsort(random.random(size), kind="stable")[:count])


def choose_tokens(random: np.random.Generator, tokens: int, config: MaskingConfig) -> Integers:
    """Choose positions to mask in a text of `tokens` tokens between two special ones."""
    # int(n * rate) + 1 is the published count: at least one token, whatever the length.
    count = int(tokens * config.text) + 1
    if config.replacement and tokens:
        return 1 + np.unique((random.random(count) * tokens).astype(np.int64))
    return 1 + choose_positions(random, tokens, min(count, tokens))


def choose_words(random: np.random.Generator, words: Sequence[int | None], rate: float) -> Integers:
    """Choose words and return the positions of all their tokens.

    `rate` of the words are chosen, rounded, and at least one. In a "word" of more than LONGEST_WORD
    tokens each token counts as a word: in scripts without spaces a whole sentence is one word.
    """
    length = Counter(words)
    positions, units = [], []
    for position, word in enumerate(words):
        if word is not None:
            positions.append(position)
            units.append((word, position if length[word] > LONGEST_WORD else 0))
    distinct = sorted(set(units))
    count = max(1, round(len(distinct) * rate))
    chosen = {distinct[n] for n in choose_positions(random, len(distinct), count)}
    in_chosen = [unit in chosen for unit in units]
    return np.array(positions, dtype=np.int64)[in_chosen]


def choose_of_all_positions(
    random: np.random.Generator, words: Sequence[int | None], rate: float, max_text_length: int
) -> Integers:
    """Take `rate` of all positions up to `max_text_length`; keep those on tokens of words.

    Perhaps none remains. This is what transformers' whole-word collator does with a byte-level
    tokenizer, because it takes the pieces for words.
    """
    count = max(1, round(max_text_length * rate))
    on_words = []
    for position in choose_positions(random, max_text_length, count).tolist():
        if position < len(words) and words[position] is not None:
            on_words.append(position)
    return np.array(on_words, dtype=np.int64)


def replace_tokens(
    random: np.random.Generator, ids: Sequence[int], positions: Integers, tokenizer: Tokenizer
) -> Integers:
    """Draw what the model sees at the positions to predict.

    It is the mask in 80 % of the cases, a random token in 10 %, and the token itself in 10 %.
    """
    dice, which = random.random((2, len(positions)))
    ordinary = tokenizer.ordinary_ids
    shown = np.array(ids, dtype=np.int64)[positions]
    shown = np.where(dice < 0.9, ordinary[(which * len(ordinary)).astype(np.int64)], shown)
    return np.where(dice < 0.8, tokenizer.mask_id, shown)
