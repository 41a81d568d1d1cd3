"""Revisited Oxford and Paris by hand, and against the official evaluator's steps in plain loops."""

import math

import numpy as np
import pytest

from data_pipeline.errors import DataError
from eval.metrics.relevant_ranks import rank_relevant
from eval.stages.metric_learning.protocols.ranking import metrics_of, rank_gallery
from eval.stages.metric_learning.protocols.revisited import (
    SETUPS,
    judge,
    relevance,
    values,
)
from eval.stages.metric_learning.protocols.task import EmbeddedImages

from .tie_orders import orders

KAPPAS = (1, 5, 10)


def official(order: list[int], right: set[int], junk: set[int]) -> dict[str, float] | None:
    """Score one query in plain steps: remove junk, add trapezoids, cut precision at the last."""
    ranked = [item for item in order if item not in junk]
    at = [place for place, item in enumerate(ranked) if item in right]
    if not at:
        return None
    area = 0.0
    for number, place in enumerate(at):
        before = 1.0 if place == 0 else number / place
        area += (before + (number + 1) / (place + 1)) / (2 * len(at))
    result = {"map": area}
    for kappa in KAPPAS:
        cut = min(max(at) + 1, kappa)
        result[f"mp@{kappa}"] = sum(place < cut for place in at) / cut
    return result


def values_by_setup(lists: np.ndarray, relevant: list) -> dict[str, dict[str, np.ndarray]]:
    """Score rank lists (queries, gallery) of gallery positions in every setup."""
    scores = np.empty(lists.shape)
    np.put_along_axis(scores, lists, -np.arange(lists.shape[1], dtype=float)[None], axis=1)
    by_setup = {}
    for setup in SETUPS:
        judged = [judge(groups, setup) for groups in relevant]
        remaining = scores.copy()
        for row, (_, removed) in zip(remaining, judged, strict=True):
            row[removed] = -np.inf
        by_setup[setup] = values(rank_relevant(remaining, [right for right, _ in judged]))
    return by_setup


def positions(*items: int) -> np.ndarray:
    return np.array(items, dtype=np.intp)


def test_a_hand_made_list_with_junk() -> None:
    # 4 is junk; medium: right at places 1 and 3 of what remains.
    relevant = [{"easy": positions(0), "hard": positions(2), "junk": positions(4)}]
    result = values_by_setup(np.array([[4, 0, 1, 2, 3]]), relevant)
    assert result["medium"]["map"][0] == pytest.approx(((1 + 1) / 2 + (1 / 2 + 2 / 3) / 2) / 2)
    assert result["easy"]["map"][0] == 1  # the hard image left the ranking
    assert result["hard"]["map"][0] == pytest.approx((0 + 1 / 2) / 2)  # 0 left it: 1, 2, 3 remain
    assert [result["medium"][f"mp@{k}"][0] for k in KAPPAS] == [
        1,
        pytest.approx(2 / 3),
        pytest.approx(2 / 3),
    ]


@pytest.mark.parametrize("ties", [False, True])
def test_agrees_with_the_official_steps_on_1000_random_cases(ties: bool) -> None:
    generator = np.random.default_rng(int(ties))
    left_out = 0
    for _ in range(1000):
        size = int(generator.integers(1, 8 if ties else 40))
        scores = (
            generator.choice([0.0, 0.5, 1.0, 1.5], size=size)
            if ties
            else generator.permutation(size) / 64
        )
        kind = generator.choice(4, p=[0.25, 0.15, 0.25, 0.35], size=size)
        relevant = {
            "easy": np.flatnonzero(kind == 0),
            "hard": np.flatnonzero(kind == 1),
            "junk": np.flatnonzero(kind == 2),
        }
        judged = [judge(relevant, setup) for setup in SETUPS]
        rows = np.repeat(scores[None], len(SETUPS), axis=0)
        for row, (_, out) in zip(rows, judged, strict=True):
            row[out] = -np.inf
        result = rank_relevant(rows, [right for right, _ in judged])
        got = values(result)
        every_order = orders(scores.tolist()) if ties else [np.argsort(-scores).tolist()]
        for number, (right, out) in enumerate(judged):
            right_items, removed = set(right.tolist()), set(out.tolist())
            expected = [official(order, right_items, removed) for order in every_order]
            if expected[0] is None:
                left_out += 1
                assert result.positives[number] == 0 and np.isnan(got["map"][number])
                continue
            for name, column in got.items():
                mean = math.fsum(scored[name] for scored in expected if scored) / len(expected)
                assert abs(column[number] - mean) < 1e-9, (name, number)
    assert left_out > 20


def gallery_of(size: int, width: int = 4) -> EmbeddedImages:
    embedding = np.random.default_rng(0).standard_normal((size, width))
    return EmbeddedImages(
        [f"s/{i}" for i in range(size)],
        [()] * size,
        [{"image_id": f"i{i}"} for i in range(size)],
        embedding,
    )


def test_records_of_the_three_setups_give_their_metrics() -> None:
    gallery = gallery_of(12)
    named = [
        {"easy": ["i1", "i2"], "hard": ["i3"], "junk": ["i4"]},
        {"easy": ["i5"], "hard": [], "junk": []},
    ]
    query = EmbeddedImages(
        ["q0", "q1"],
        [("hall",), ()],
        [{"relevance": groups} for groups in named],
        gallery.embedding[[1, 6]],
    )
    lines = rank_gallery("revisited", gallery, query)
    assert [(line["setting"], line["positives"], line["candidates"]) for line in lines] == [
        ("easy", 2, 10),
        ("easy", 1, 12),
        ("medium", 3, 11),
        ("medium", 1, 12),
        ("hard", 1, 9),
        ("hard", 0, 11),
    ]
    result = {metric.name: metric for metric in metrics_of(lines)}
    assert (
        result["hard/left_out"].value == 1
        and result["hard/map"].n == 1
        and result["easy/mp@10"].n == 2
    )
    cosines = (
        gallery.embedding @ query.embedding.T / np.linalg.norm(gallery.embedding, axis=1)[:, None]
    )
    lists = np.argsort(-cosines.T, axis=1)
    direct = values_by_setup(lists, relevance(query.keys, query.annotations, gallery.annotations))
    assert result["easy/map"].value == pytest.approx(100 * direct["easy"]["map"].mean())
    assert result["medium/mp@5"].value == pytest.approx(100 * direct["medium"]["mp@5"].mean())


def test_relevance_is_checked_against_the_gallery() -> None:
    gallery = gallery_of(3).annotations
    with pytest.raises(DataError, match='query q has no "relevance"'):
        relevance(["q"], [{}], gallery)
    with pytest.raises(DataError, match="query q names 'i9'"):
        relevance(["q"], [{"relevance": {"easy": ["i9"]}}], gallery)
    with pytest.raises(DataError, match="names an image twice"):
        relevance(["q"], [{"relevance": {"easy": ["i1"], "junk": ["i1"]}}], gallery)
    with pytest.raises(DataError, match="two gallery images"):
        relevance([], [], [*gallery, {"image_id": "i1"}])
