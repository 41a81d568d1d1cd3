"""What is masked: how many patches and tokens, whole words, by the sample's generator alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.collate import collate
from data_pipeline.errors import UsageError
from data_pipeline.masking import MaskingConfig, Masks, choose_words, replace_tokens
from data_pipeline.masking import draw_masks as draw_any_masks
from data_pipeline.text import Encoding

CONFIG = MaskingConfig()
PUBLISHED = MaskingConfig(replacement=True, mlm_unit="token")


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


def encoding_of(word_lengths: list[int]) -> Encoding:
    words = []
    for number, length in enumerate(word_lengths):
        for _ in range(length):
            words.append(number)
    return Encoding([0, *range(10, 10 + len(words)), 2], [None, *words, None])


def draw_masks(*arguments: object, **options: object) -> Masks:
    return draw_any_masks(*arguments, **{"max_text_length": 50} | options)


@pytest.mark.parametrize(
    ("patches", "keep", "masked"), [(324, 64, 97), (196, 39, 58), (25, 5, 7), (36, 7, 10)]
)
def test_patches_are_kept_and_masked_at_the_published_counts(patches, keep, masked, tokenizer):
    masks = draw_masks(generator(), encoding_of([1, 2]), patches, tokenizer, CONFIG)
    assert (len(masks.keep_patches), len(masks.masked_patches)) == (keep, masked)
    for positions in (masks.keep_patches, masks.masked_patches):
        assert sorted(set(positions.tolist())) == positions.tolist()
        assert positions.min() >= 0 and positions.max() < patches


@given(lengths=st.lists(st.integers(1, 4), min_size=1, max_size=20), seed=st.integers(0, 1000))
def test_text_masks_never_touch_special_tokens_and_cover_whole_words(lengths, seed, tokenizer):
    encoding = encoding_of(lengths)
    tokens = len(encoding.ids) - 2
    masks = draw_masks(generator(seed), encoding, 36, tokenizer, CONFIG)
    assert (
        len(masks.masked_tokens)
        == min(int(tokens * 0.4) + 1, tokens)
        == len(set(masks.masked_tokens.tolist()))
    )
    for positions in (masks.masked_tokens, masks.mlm_positions):
        assert positions.min() >= 1 and positions.max() <= tokens
        assert sorted(positions.tolist()) == positions.tolist()
    chosen = {encoding.words[position] for position in masks.mlm_positions.tolist()}
    assert len(chosen) == max(1, round(len(lengths) * 0.15))
    assert len(masks.mlm_positions) == sum(lengths[word] for word in chosen)


def test_masks_come_from_the_generator_alone(tokenizer):
    def drawn(seed):
        encoding = encoding_of([3] * 9)
        return draw_masks(generator(seed), encoding, 36, tokenizer, CONFIG, local_negatives=3)

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert all((getattr(first, name) == getattr(again, name)).all() for name in vars(first))
    assert (first.keep_patches != other.keep_patches).any()


def test_all_words_are_equally_likely_to_be_chosen():
    words = [None, *range(10), None]
    counts = np.zeros(12)
    random = generator()
    for _ in range(2000):
        counts[choose_words(random, words, 0.2)] += 1
    assert counts[[0, 11]].sum() == 0
    assert abs(counts[1:11] / 2000 - 0.2).max() < 0.05


def test_a_text_without_spaces_is_not_one_word():
    positions = choose_words(generator(), [None, *[0] * 24, None], 0.25)
    assert len(positions) == 6
    assert choose_words(generator(), [None, *[0] * 9, None], 0.25).tolist() == list(range(1, 10))


def test_chosen_tokens_are_mostly_masked_sometimes_random_sometimes_kept(tokenizer):
    ids = [int(tokenizer.ordinary_ids[5])] * 20_000
    shown = replace_tokens(generator(), ids, np.arange(20_000), tokenizer)
    masked = (shown == tokenizer.mask_id).mean()
    share_kept = (shown == ids[0]).mean()
    assert abs(masked - 0.8) < 0.01 and abs(share_kept - 0.1) < 0.01
    assert np.isin(shown[shown != tokenizer.mask_id], tokenizer.ordinary_ids).all()


def test_a_text_without_words_gets_no_targets(tokenizer):
    masks = draw_masks(generator(), Encoding([0, 2], [None, None]), 36, tokenizer, CONFIG)
    assert len(masks.masked_tokens) == len(masks.mlm_positions) == len(masks.mlm_inputs) == 0


@pytest.mark.parametrize(("tokens", "share"), [(10, 0.41), (20, 0.37), (30, 0.36)])
def test_masks_drawn_with_replacement_hide_fewer_tokens(tokens, share, tokenizer):
    random, encoding = generator(), encoding_of([1] * tokens)
    masks = []
    for _ in range(1500):
        masks.append(draw_masks(random, encoding, 36, tokenizer, MaskingConfig(replacement=True)))
    assert (
        abs(np.mean([len(masks_of_text.masked_tokens) for masks_of_text in masks]) / tokens - share)
        < 0.01
    )
    for masks_of_text in masks:
        positions = masks_of_text.masked_tokens.tolist()
        assert sorted(set(positions)) == positions and 1 <= positions[0] <= positions[-1] <= tokens


@pytest.mark.parametrize(("tokens", "without"), [(8, 0.22), (10, 0.15), (12, 0.09)])
def test_the_published_unit_draws_positions_and_leaves_short_texts_without_target(
    tokens, without, tokenizer
):
    """As in the authors' collator: some captions have no target, on average 16 % of the tokens."""
    random, encoding = generator(), encoding_of([2] * (tokens // 2))
    counts = np.zeros(tokens + 2)
    none = 0
    for _ in range(3000):
        masks = draw_masks(random, encoding, 36, tokenizer, PUBLISHED)
        counts[masks.mlm_positions] += 1
        none += len(masks.mlm_positions) == 0
    assert counts[[0, -1]].sum() == 0
    assert abs(counts[1:-1] / 3000 - 0.16).max() < 0.025
    assert abs(none / 3000 - without) < 0.025


def test_a_batch_may_hold_rows_without_targets_or_none_at_all(tokenizer):
    encodings = [encoding_of([1, 2, 1]), encoding_of([2])]
    whole = draw_masks(generator(), encodings[0], 36, tokenizer, CONFIG)
    with_text = encodings[1]
    seeds = (draw_masks(generator(n), with_text, 36, tokenizer, PUBLISHED) for n in range(99))
    empty = next(masks for masks in seeds if len(masks.mlm_positions) == 0)
    for masks, targets in (([whole, empty], len(whole.mlm_positions)), ([empty, empty], 0)):
        arrays = collate(encodings, masks, patches=36, max_length=50, tokenizer=tokenizer)
        assert len(arrays["mlm_positions"]) == len(arrays["mlm_labels"]) == targets
        assert arrays["mlm_positions"].dtype == arrays["mlm_labels"].dtype == np.int64
        assert (arrays["mlm_ids"][1] == arrays["text_ids"][1]).all()


def test_sampled_negatives_are_rows_of_what_is_masked_and_change_nothing_else(tokenizer):
    encodings = [encoding_of([1] * tokens) for tokens in (3, 20)]
    drawn = {}
    for number in (None, 4):
        drawn[number] = []
        for encoding in encodings:
            masks = draw_masks(
                generator(2), encoding, 36, tokenizer, CONFIG, local_negatives=number
            )
            drawn[number].append(masks)
    options = {"patches": 36, "max_length": 50, "tokenizer": tokenizer}
    plain = collate(encodings, drawn[None], **options)
    sampled = collate(encodings, drawn[4], **options)
    assert sampled.keys() - plain.keys() == {"negative_patches", "negative_tokens"}
    assert all((sampled[name] == plain[name]).all() for name in plain)
    per_row = {
        "negative_patches": ("masked_patches", 36, [4, 4]),
        "negative_tokens": ("masked_tokens", 24, [2, 4]),
    }
    for name, (hidden, width, counts) in per_row.items():
        rows = sampled[name]
        assert sorted(set(rows.tolist())) == rows.tolist()
        assert np.bincount(sampled[hidden][rows] // width).tolist() == counts


def test_impossible_rates_and_units_are_refused():
    with pytest.raises(UsageError, match="masking.drop"):
        MaskingConfig(drop=1.0)
    with pytest.raises(UsageError, match="masking.mlm_unit .* not .piece."):
        MaskingConfig(mlm_unit="piece")
