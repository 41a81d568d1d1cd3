"""Exact ranking against brute force over all orders of tied candidates.

The other tests reproduce mistakes of published evaluators, which report 100 % for a broken model.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError, NumericsError
from pretrain.ranking import (
    Ranks,
    chance_ranks,
    ranks,
    ranks_of_features,
    two_stage_ranks,
    unit_features,
)


def brute_force(scores: np.ndarray, positives: set[int], k: int) -> tuple[int, float, int, float]:
    """Try every order of the candidates that the scores allow."""
    best_ranks = []
    for order in permutations(range(len(scores))):
        if (np.diff(scores[list(order)]) <= 0).all():
            best_ranks.append(1 + min(order.index(i) for i in positives))
    hits = [rank <= k for rank in best_ranks]
    return min(best_ranks), float(np.mean(best_ranks)), max(best_ranks), float(np.mean(hits))


def images_and_captions(images: int, captions: int) -> tuple[list[np.ndarray], list[int]]:
    """Positives of both directions when caption ``i`` belongs to image ``i // captions``."""
    captions_of = [np.arange(i * captions, (i + 1) * captions) for i in range(images)]
    image_of = [i // captions for i in range(images * captions)]
    return captions_of, image_of


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_ranks_equal_the_mean_over_all_orders_of_tied_candidates(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 6))
    scores = np.array(
        data.draw(st.lists(st.integers(0, 2), min_size=size, max_size=size)), dtype=np.float32
    )
    positives = data.draw(st.sets(st.integers(0, size - 1), min_size=1))
    k = data.draw(st.integers(1, 8))
    result = ranks(scores[None], [sorted(positives)])
    low, mean, high, hit = brute_force(scores, positives, k)
    assert (result.optimistic[0], result.pessimistic[0]) == (low, high)
    assert result.expected[0] == pytest.approx(mean, abs=1e-12)
    assert result.hits(k)[0] == pytest.approx(hit, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_two_stage_ranks_equal_a_written_out_two_level_order(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 6))
    first = np.array(
        data.draw(st.lists(st.integers(0, 2), min_size=size, max_size=size)), dtype=np.float32
    )
    second = np.array(
        data.draw(st.lists(st.integers(-1000, -998), min_size=size, max_size=size)),
        dtype=np.float32,
    )
    positives = data.draw(st.sets(st.integers(0, size - 1), min_size=1))
    k = data.draw(st.integers(1, size))
    shortlist = np.argsort(-first, kind="stable")[:k]
    # Every candidate of the shortlist ranks above all others, whatever its second score is.
    level = np.empty(size, dtype="f4,f4")
    for i in range(size):
        level[i] = (1, second[i]) if i in shortlist else (0, first[i])
    key = np.unique(level, return_inverse=True)[1]
    result = two_stage_ranks(
        first[None], [sorted(positives)], shortlist[None], second[shortlist][None]
    )
    low, mean, high, _ = brute_force(key, positives, 1)
    assert (result.optimistic[0], result.pessimistic[0]) == (low, high)
    assert result.expected[0] == pytest.approx(mean, abs=1e-12)


def test_constant_scores_give_chance_and_are_flagged() -> None:
    captions_of, image_of = images_and_captions(100, 5)
    retrieve_text = ranks(np.zeros((100, 500), np.float32), captions_of)
    retrieve_image = ranks(np.zeros((500, 100), np.float32), image_of)
    assert [round(100 * retrieve_text.recall(k), 2) for k in (1, 5, 10)] == [1.0, 4.92, 9.65]
    assert [round(100 * retrieve_image.recall(k), 2) for k in (1, 5, 10)] == [1.0, 5.0, 10.0]
    assert retrieve_text.degenerate and retrieve_image.degenerate
    assert retrieve_text.tie_rate == 1.0
    assert chance_ranks(captions_of, 500).recall(5) == retrieve_text.recall(5)


def test_equal_features_tie_exactly_whatever_the_block() -> None:
    """A collapsed encoder reaches chance, though matrix products round columns differently."""
    feature = np.random.default_rng(0).normal(size=(1, 37)).astype(np.float32)
    result = ranks_of_features(feature.repeat(50, 0), feature.repeat(101, 0), [0] * 50, block=7)
    assert result.degenerate
    assert (result.tied == 101).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_non_finite_score_is_refused_by_name(bad: float) -> None:
    scores = np.zeros((2, 3), np.float32)
    scores[1, 2] = bad
    with pytest.raises(NumericsError, match="query b and candidate z"):
        ranks(scores, [0, 1], query_ids=["a", "b"], candidate_ids=["x", "y", "z"])
    with pytest.raises(NumericsError, match="6 of 6 scores"):
        ranks(np.full((2, 3), bad), [0, 1])


def test_non_finite_features_are_refused_by_name() -> None:
    features = torch.zeros(3, 4)
    features[2, 1] = float("nan")
    with pytest.raises(NumericsError, match="1 of 3: c"):
        ranks_of_features(features, torch.ones(3, 4), [0, 1, 2], query_ids=["a", "b", "c"])
    with pytest.raises(NumericsError, match="1 of 3: c"):
        unit_features(features, ["a", "b", "c"])


def test_perfect_and_worst_orders_reach_the_ends_of_the_scale() -> None:
    captions_of, image_of = images_and_captions(4, 5)
    scores = np.eye(4, dtype=np.float32).repeat(5, axis=0)
    assert ranks(scores, image_of).recall(1) == 1.0
    assert list(ranks(scores.T, captions_of).expected) == [1.0] * 4
    assert ranks(-scores, image_of).recall(3) == 0.0
    assert list(ranks(-scores, image_of).expected) == [4.0] * 20


def test_a_hit_needs_only_one_of_several_positives() -> None:
    assert ranks([[5, 4, 3, 2, 1, 0]], [[1, 2, 5]]).hits(2)[0] == 1.0


def test_unequal_numbers_of_positives_count_every_query_once() -> None:
    result = ranks(
        np.array([[3, 2, 1, 0], [3, 2, 1, 0], [0, 1, 2, 3]], np.float32), [[0], [1, 2, 3], [0, 1]]
    )
    assert list(result.optimistic) == [1, 2, 3]
    with pytest.raises(DataError, match="query q2 has no positive"):
        ranks(np.zeros((2, 2)), [[0], []], query_ids=["q1", "q2"])
    with pytest.raises(DataError, match="outside the 2 candidates"):
        ranks(np.zeros((1, 2)), [[2]])
    with pytest.raises(DataError, match="2 queries but positives for 1"):
        ranks(np.zeros((2, 2)), [[1]])


def test_order_of_queries_and_candidates_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    # Integers from 0 to 3, so that many candidates tie.
    scores = rng.integers(0, 4, size=(30, 20)).astype(np.float32)
    positives = [rng.choice(20, size=rng.integers(1, 4), replace=False) for _ in range(30)]
    rows, columns = rng.permutation(30), rng.permutation(20)
    place = np.argsort(columns)
    shuffled = ranks(scores[rows][:, columns], [place[positives[i]] for i in rows])
    straight = ranks(scores, positives)
    np.testing.assert_array_equal(shuffled.expected, straight.expected[rows])
    assert shuffled.recall(3) == pytest.approx(straight.recall(3), abs=1e-12)


def test_block_size_does_not_change_a_rank() -> None:
    """Candidates are duplicated, and their ties must survive the division into blocks."""
    rng = np.random.default_rng(2)
    queries, candidates = (unit_features(rng.normal(size=(n, 24))) for n in (65, 80))
    candidates[40:] = candidates[:40]
    positives = [i % 40 for i in range(65)]
    whole = ranks_of_features(queries, candidates, positives, block=66)
    for block in (1, 7, 64, 65):
        part = ranks_of_features(queries, candidates, positives, block=block)
        np.testing.assert_array_equal(part.expected, whole.expected)
    assert (whole.tied == 2).all()


def test_a_perfect_model_reaches_exactly_100() -> None:
    """A positive never loses to itself by one bit of rounding."""
    features = unit_features(np.random.default_rng(3).normal(size=(500, 64)))
    assert ranks_of_features(features, features, list(range(500)), block=33).recall(1) == 1.0


def test_k_may_exceed_the_number_of_candidates() -> None:
    assert ranks([[1.0, 1.0, 0.0]], [[2]]).recall(10) == 1.0


def test_negative_and_tiny_scores_rank_like_any_other() -> None:
    rng = np.random.default_rng(4)
    scores = rng.integers(1, 50, size=(20, 30)).astype(np.float32)
    positives = list(range(20))
    straight = ranks(scores, positives)
    for other in (scores - 100, scores * np.float32(1e-30)):
        np.testing.assert_array_equal(ranks(other, positives).expected, straight.expected)
    coarse = ranks(torch.tensor(scores / 100).half() + 1e4, positives)
    assert coarse.tie_rate > straight.tie_rate


def test_a_shortlist_of_all_candidates_gives_the_second_ranking() -> None:
    rng = np.random.default_rng(5)
    first, second = rng.normal(size=(2, 12, 9)).astype(np.float32)
    positives = [i % 9 for i in range(12)]
    everything = np.tile(np.arange(9), (12, 1))
    result = two_stage_ranks(first, positives, everything, second)
    np.testing.assert_array_equal(result.expected, ranks(second, positives).expected)


def test_a_shortlist_of_one_keeps_the_first_ranking() -> None:
    """Even a second score of -1000 ranks above every candidate that was not scored again."""
    first = np.random.default_rng(6).normal(size=(12, 9)).astype(np.float32)
    positives = [i % 9 for i in range(12)]
    top = first.argmax(1)[:, None]
    result = two_stage_ranks(first, positives, top, np.full((12, 1), -1000.0))
    np.testing.assert_array_equal(result.expected, ranks(first, positives).expected)


def test_constant_second_scores_give_the_expected_value_inside_the_shortlist() -> None:
    first = np.array([[4, 3, 2, 1], [4, 3, 2, 1]], np.float32)
    result = two_stage_ranks(first, [0, 3], np.array([[0, 1], [0, 1]]), np.zeros((2, 2)))
    assert list(result.hits(1)) == [0.5, 0.0]
    assert list(result.expected) == [1.5, 4.0]
    assert result.degenerate


@pytest.mark.parametrize("seed", range(3))
def test_scores_that_differ_by_rounding_are_degenerate_even_where_they_are_near_zero(seed) -> None:
    random = np.random.default_rng(seed)
    of_queries = np.linspace(-7, 7, 30)[:, None]
    of_queries[10] = 0.01  # its rounding, that of terms as large as the others, is 1e-4 of it
    noise = 4 * np.finfo(np.float32).eps * 7 * random.uniform(-1, 1, (30, 16))
    assert ranks((of_queries + noise).astype(np.float32), [0] * 30).degenerate


def test_one_query_with_a_small_but_real_difference_is_not_degenerate() -> None:
    scores = np.linspace(-7, 7, 30, dtype=np.float32)[:, None].repeat(16, axis=1)
    assert ranks(scores, [0] * 30).degenerate
    scores[3, 5] += 1e-3
    assert not ranks(scores, [0] * 30).degenerate


def test_nothing_to_rank_is_an_error_and_a_single_candidate_is_not_degenerate() -> None:
    with pytest.raises(DataError, match="nothing to rank"):
        ranks(np.zeros((0, 5)), [])
    with pytest.raises(DataError, match="nothing to rank"):
        ranks_of_features(np.zeros((0, 5)), np.zeros((1, 5)), [])
    single = ranks([[0.3]], [[0]])
    assert single.recall(1) == 1.0 and not single.degenerate


def test_positives_may_be_a_boolean_array_or_one_index_each() -> None:
    scores = np.array([[1, 2, 3], [3, 2, 1]], np.float32)
    marked = torch.tensor([[False, True, False], [True, False, True]])
    optimistic, expected, pessimistic = ranks(torch.tensor(scores), marked)
    assert list(optimistic) == list(pessimistic) == [2, 1]
    np.testing.assert_array_equal(expected, ranks(scores, [{1}, (0, 2)]).expected)
    assert list(ranks(scores, np.array([2, 2])).optimistic) == [1, 3]
    assert isinstance(ranks(scores, [2, 2]), Ranks)
