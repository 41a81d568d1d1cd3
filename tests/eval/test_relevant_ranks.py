"""Average precision with ties, against brute force over all orders of tied candidates."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.metrics.relevant_ranks import rank_relevant, ranks_of_constant_score


def average_precision(scores: np.ndarray, relevant: list[np.ndarray]) -> np.ndarray:
    return rank_relevant(scores, relevant).average_precision()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_average_precision_equals_the_mean_over_all_orders_of_tied_candidates(
    data: st.DataObject,
) -> None:
    size = data.draw(st.integers(1, 6))
    drawn = data.draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))
    scores = np.array(drawn, dtype=np.float32)
    relevant = np.array(sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1))))
    of_orders = []
    for order in permutations(range(size)):
        if (np.diff(scores[list(order)]) <= 0).all():
            is_relevant = np.isin(order, relevant)
            precision = np.cumsum(is_relevant) / np.arange(1, size + 1)
            of_orders.append(precision[is_relevant].mean())
    # A second query, with another number of relevant candidates, must not change the first.
    other = (scores.max() - scores)[None]
    both = average_precision(np.concatenate([scores[None], other]), [relevant, np.array([0])])
    assert both[0] == pytest.approx(np.mean(of_orders), abs=1e-12)
    assert average_precision(scores[None], [relevant])[0] == both[0]


def test_average_precision_of_a_perfect_order_is_exactly_one() -> None:
    captions_of = [np.arange(i * 5, (i + 1) * 5) for i in range(50)]
    scores = np.eye(50, dtype=np.float32).repeat(5, axis=1) + np.arange(250) * 1e-6
    assert (average_precision(scores, captions_of) == 1).all()


def test_chance_is_what_constant_and_random_scores_reach() -> None:
    captions_of = [np.arange(i * 5, (i + 1) * 5) for i in range(50)]
    constant = average_precision(np.full((50, 250), -0.5), captions_of)
    chance = ranks_of_constant_score([5], [250]).average_precision()[0]
    np.testing.assert_allclose(constant, chance, atol=1e-12)
    random_scores = np.random.default_rng(0).random((3000, 40))
    chance = ranks_of_constant_score([3], [40]).average_precision()[0]
    reached = average_precision(random_scores, [np.arange(3)] * 3000).mean()
    assert reached == pytest.approx(chance, abs=0.01)
