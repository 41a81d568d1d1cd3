"""The order: every sample once per epoch, exact shares, and never a different order."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError, UsageError
from data_pipeline.order import (
    BLOCK,
    SPAN,
    WINDOW_SPANS,
    Order,
    Source,
    default_lanes,
    permute,
    quotas,
)
from data_pipeline.randomness import fold, hash_key

# What the first version drew: a change here is a change of every run that was ever started.
GOLDEN = {
    "laned": [1146, 585, 783, 1361, 411, 1571, 2099, 1880],
    "later": [
        1317,
        991,
        2367,
        2291,
        2083,
        2217,
        1142,
        1247,
        312,
        1760,
        563,
        562,
        1914,
        668,
        88,
        153,
    ],
    "small": [1, 37, 2, 3, 18, 42, 37, 9],
    "blend": [(0, 226, 0), (0, 612, 0), (1, 1337, 0), (1, 1440, 0), (0, 791, 0), (0, 506, 0)],
    "key": 12151581311987838735,
    "fold": [15605743234654214599],
}

shard_sizes = st.lists(st.integers(0, 700), min_size=1, max_size=6).filter(sum)


def identity(draws) -> list[tuple[int, int, int]]:
    return list(
        zip(draws.source.tolist(), draws.sample.tolist(), draws.epoch.tolist(), strict=True)
    )


def test_the_order_is_that_of_the_first_version():
    laned = Order([Source("scenes-train", (1000, 1000, 400))], seed=0, lanes=8)
    small = Order([Source("small", (70, 30))], seed=7, lanes=4)
    blend = Order([Source("a", (900,), 0.3), Source("b", (5000,), 0.7)], seed=3, lanes=2)
    assert laned.draws(0, 8).sample.tolist() == GOLDEN["laned"]
    assert laned.step(301, 16).sample.tolist() == GOLDEN["later"]
    assert small.draws(96, 8).sample.tolist() == GOLDEN["small"]
    assert identity(blend.draws(998, 6)) == GOLDEN["blend"]
    assert hash_key(0, "scenes-train", 0) == GOLDEN["key"]
    assert fold(1, 2, 3).tolist() == GOLDEN["fold"]


@given(size=st.integers(1, 5000), key=st.integers(0, 2**64 - 1))
def test_a_keyed_permutation_sends_no_two_indices_to_one_place(size, key):
    image = permute(np.arange(size), np.full(size, size), np.array([key], dtype=np.uint64))
    assert sorted(image.tolist()) == list(range(size))


def test_keyed_permutations_mix():
    keys = fold(5, np.arange(20_000))
    first = permute(np.zeros(20_000, dtype=np.int64), np.full(20_000, 10), keys)
    counts = np.bincount(first, minlength=10)
    assert abs(counts - 2000).max() < 5 * np.sqrt(2000 * 0.9)


@settings(max_examples=60, deadline=None)
@given(shards=shard_sizes, lanes=st.integers(1, 16), seed=st.integers(0, 2**40))
def test_every_sample_comes_exactly_once_an_epoch(shards, lanes, seed):
    total = sum(shards)
    draws = Order([Source("a", tuple(shards))], seed, lanes).draws(0, 3 * total)
    for epoch in range(3):
        assert sorted(draws.sample[draws.epoch == epoch].tolist()) == list(range(total))


@settings(max_examples=30, deadline=None)
@given(samples=st.integers(1, 20_000), lanes=st.integers(1, 64))
def test_lanes_of_an_epoch_differ_by_at_most_one_sample(samples, lanes):
    draws = Order([Source("a", (samples,))], 0, lanes).draws(0, 2 * samples)
    for epoch in range(2):
        lane = np.flatnonzero(draws.epoch == epoch) % lanes
        sizes = np.bincount(lane, minlength=lanes)
        assert sizes.max() - sizes.min() <= 1


@settings(max_examples=30, deadline=None)
@given(weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=8))
def test_quotas_are_the_nearest_whole_shares(weights):
    names = [str(n) for n in range(len(weights))]
    shares = [weight / sum(weights) * BLOCK for weight in weights]
    if min(shares) < 1:
        return
    dealt = quotas(weights, names)
    assert sum(dealt) == BLOCK
    assert all(abs(got - share) < 1 for got, share in zip(dealt, shares, strict=True))


def test_a_mixture_keeps_its_shares_in_every_block_of_every_lane():
    lanes = 4
    order = Order(
        [Source("a", (3000,), 0.3), Source("b", (500,), 0.45), Source("c", (77,), 0.25)], 1, lanes
    )
    draws = order.draws(0, 3 * BLOCK * lanes)
    source = draws.source.reshape(3, BLOCK, lanes)
    for block in range(3):
        for lane in range(lanes):
            assert np.bincount(source[block, :, lane]).tolist() == [300, 450, 250]


def test_a_mixture_draws_every_sample_of_a_source_once_in_its_epoch():
    sizes = (3000, 500, 77)
    order = Order(
        [Source(name, (size,), size**0.5) for name, size in zip("abc", sizes, strict=True)], 1, 4
    )
    draws = order.draws(0, 40_000)
    for number, size in enumerate(sizes):
        epochs = Counter(draws.epoch[draws.source == number].tolist())
        # A late epoch may be unfinished, and lanes enter a new one at slightly different draws.
        for epoch in [epoch for epoch, count in epochs.items() if count == size]:
            here = (draws.source == number) & (draws.epoch == epoch)
            assert sorted(draws.sample[here].tolist()) == list(range(size))
        assert sum(count == size for count in epochs.values()) >= len(epochs) - 2


def test_a_step_takes_the_same_number_of_draws_from_every_lane():
    order = Order([Source("a", (2000, 2000))], 0, lanes=8)
    step = order.step(5, 32)
    planned = order.draws(5 * 32, 32)
    by_lane = [identity(planned)[lane::8] for lane in range(8)]
    assert identity(step) == sum(by_lane, [])


def test_other_batch_sizes_consume_the_same_samples():
    order = Order([Source("a", (900,), 1), Source("b", (800,), 2)], 0, lanes=8)
    expected = sorted(identity(order.draws(0, 192)))
    for batch in (8, 24, 48, 96):
        taken = []
        for step in range(192 // batch):
            for draw in identity(order.step(step, batch)):
                taken.append(draw)
        assert sorted(taken) == expected


def test_a_lane_reads_from_few_spans_at_a_time():
    lanes = 2
    order = Order([Source("a", (40 * SPAN,) * 20)], 0, lanes)
    lane = order.draws(0, lanes * SPAN * WINDOW_SPANS).sample[::lanes]
    assert len(np.unique(lane // SPAN)) == WINDOW_SPANS
    assert len(np.unique(lane[:200] // SPAN)) > WINDOW_SPANS // 2


def test_order_depends_on_seed_source_occurrence_and_epoch():
    samples = 1000

    def first(name: str = "a", seed: int = 0, start: int = 0, sources: int = 1) -> list[int]:
        order = Order([Source(name, (samples,))] * sources, seed, lanes=2)
        draws = order.draws(start, 400)
        return draws.sample[draws.source == sources - 1][:100].tolist()

    orders = [first(), first(seed=1), first(name="b"), first(start=samples), first(sources=2)]
    assert len({tuple(order) for order in orders}) == len(orders)
    assert first() == first()


def test_wrong_mixtures_and_batches_are_refused():
    with pytest.raises(UsageError, match="8 lanes do not divide the global batch of 12"):
        Order([Source("a", (100,))], 0, lanes=8).step(0, 12)
    with pytest.raises(UsageError, match="positive"):
        Order([Source("a", (100,), 0.0)], 0, lanes=1)
    with pytest.raises(UsageError, match="source b has less than 1/1000"):
        Order([Source("a", (100,), 1.0), Source("b", (100,), 1e-6)], 0, lanes=1)
    with pytest.raises(DataError, match="source a has no samples"):
        Order([Source("a", (0,))], 0, lanes=1)
    assert default_lanes(256) == 64 and default_lanes(24) == 8
