"""What is masked: how many patches and tokens, whole words, and from the sample's generator alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import UsageError
from data_pipeline.masking import MaskingConfig, choose_words, draw_masks, replace_tokens
from data_pipeline.text import Encoding

CONFIG = MaskingConfig()


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


def encoding_of(word_lengths: list[int]) -> Encoding:
    words = [number for number, length in enumerate(word_lengths) for _ in range(length)]
    return Encoding([0, *range(10, 10 + len(words)), 2], [None, *words, None])


@pytest.mark.parametrize(("patches", "kept", "masked"), [(324, 64, 97), (196, 39, 58), (25, 5, 7), (36, 7, 10)])
def test_patches_are_kept_and_masked_at_the_published_counts(patches, kept, masked, tokenizer):
    masks = draw_masks(generator(), encoding_of([1, 2]), patches, tokenizer, CONFIG)
    assert (len(masks.keep_patches), len(masks.masked_patches)) == (kept, masked)
    for positions in (masks.keep_patches, masks.masked_patches):
        assert sorted(set(positions.tolist())) == positions.tolist()
        assert positions.min() >= 0 and positions.max() < patches


@given(lengths=st.lists(st.integers(1, 4), min_size=1, max_size=20), seed=st.integers(0, 1000))
def test_text_masks_never_touch_special_tokens_and_cover_whole_words(lengths, seed, tokenizer):
    encoding = encoding_of(lengths)
    tokens = len(encoding.ids) - 2
    masks = draw_masks(generator(seed), encoding, 36, tokenizer, CONFIG)
    assert len(masks.masked_tokens) == min(int(tokens * 0.4) + 1, tokens) == len(set(masks.masked_tokens.tolist()))
    for positions in (masks.masked_tokens, masks.mlm_positions):
        assert positions.min() >= 1 and positions.max() <= tokens
        assert sorted(positions.tolist()) == positions.tolist()
    chosen = {encoding.words[position] for position in masks.mlm_positions.tolist()}
    assert len(chosen) == max(1, round(len(lengths) * 0.15))
    assert len(masks.mlm_positions) == sum(lengths[word] for word in chosen)


def test_masks_come_from_the_generator_alone(tokenizer):
    first, again, other = (
        draw_masks(generator(seed), encoding_of([3] * 9), 36, tokenizer, CONFIG) for seed in (1, 1, 2)
    )
    assert all((getattr(first, name) == getattr(again, name)).all() for name in vars(first))
    assert (first.keep_patches != other.keep_patches).any()


def test_words_are_chosen_evenly():
    words = [None, *range(10), None]
    counts = np.zeros(12)
    random = generator()
    for _ in range(2000):
        counts[choose_words(random, words, 0.2)] += 1
    assert counts[[0, 11]].sum() == 0
    assert abs(counts[1:11] / 2000 - 0.2).max() < 0.05


def test_chosen_tokens_are_mostly_masked_sometimes_random_sometimes_kept(tokenizer):
    ids = [int(tokenizer.ordinary_ids[5])] * 20_000
    shown = replace_tokens(generator(), ids, np.arange(20_000), tokenizer)
    masked = (shown == tokenizer.mask_id).mean()
    kept = (shown == ids[0]).mean()
    assert abs(masked - 0.8) < 0.01 and abs(kept - 0.1) < 0.01
    assert np.isin(shown[shown != tokenizer.mask_id], tokenizer.ordinary_ids).all()


def test_a_text_without_words_gets_no_targets(tokenizer):
    masks = draw_masks(generator(), Encoding([0, 2], [None, None]), 36, tokenizer, CONFIG)
    assert len(masks.masked_tokens) == len(masks.mlm_positions) == len(masks.mlm_inputs) == 0


def test_impossible_rates_are_refused():
    with pytest.raises(UsageError, match="masking.drop"):
        MaskingConfig(drop=1.0)
