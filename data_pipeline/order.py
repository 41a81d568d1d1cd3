"""Which sample is read at each draw of a run: a pure function of (sources, seed, lanes).

In: the shard sizes and weights of the sources. Out: arrays (source, sample, epoch). There is no
buffer and no state. Ranks, workers and micro-batches do not appear here: they only divide a step's
batch.

In each epoch of a source its shards are cut into spans, the spans are put in a keyed random line,
the line is cut into one part per lane, and each part is shuffled completely inside windows of
spans. So every sample comes exactly once per epoch, and samples that are read at about the same
time lie close together. Of several sources, each gets an exact quota of every block of a lane's
draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np

from data_pipeline.errors import DataError, UsageError
from data_pipeline.randomness import (
    EPOCH,
    SPANS,
    WINDOW,
    Integers,
    Words,
    fold,
    hash_key,
    mix64,
    round_key,
)

# These numbers are part of the order: changing one changes which samples every run reads.
SPAN = 256  # consecutive samples of one shard that stay neighbors in an epoch's line
WINDOW_SPANS = 64  # spans of a lane that are shuffled together
BLOCK = 1000  # draws of a lane in which every source has its exact quota
UNLANED = 100  # a source with fewer samples per lane than this is walked by all lanes together
ROUNDS = 6  # of the Feistel network


@dataclass(frozen=True)
class Source:
    """One data set of the mixture: its name, the size of each shard, its share of the draws."""

    name: str
    shards: tuple[int, ...]
    weight: float = 1.0


@dataclass(frozen=True)
class StepDraws:
    """Some draws: source number, index of the sample in it, epoch of the source; int64 (draws,)."""

    source: Integers
    sample: Integers
    epoch: Integers

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, part: slice) -> StepDraws:
        return StepDraws(self.source[part], self.sample[part], self.epoch[part])


class Order:
    """The order of a run: what every lane draws, and how lanes make up a step's global batch."""

    def __init__(self, sources: Sequence[Source], seed: int, lanes: int) -> None:
        if not sources:
            raise UsageError("a mixture needs at least one source")
        if lanes < 1:
            raise UsageError(f"lanes must be at least 1, not {lanes}")
        names = [source.name for source in sources]
        self.lanes = lanes
        keys = []
        self._lines = []
        for number, source in enumerate(sources):
            # The same data set may be in the mixture twice, and must be shuffled differently then.
            earlier_uses = names[:number].count(source.name)
            key = hash_key(seed, source.name, earlier_uses)
            keys.append(key)
            self._lines.append(_Line(source, key, lanes))
        self.keys = tuple(keys)
        self.quotas = tuple(quotas([source.weight for source in sources], names))
        self._quotas = np.array(self.quotas, dtype=np.int64)
        self._mixture_key = hash_key(seed, "mixture", names)
        self._block = lru_cache(maxsize=4)(self._deal)
        self._steps = lru_cache(maxsize=4)(self._compute_steps)

    def draws(self, start: int, count: int) -> StepDraws:
        """Locate global draws start .. start + count - 1.

        Global draw t is draw t // lanes of lane t % lanes.
        """
        number = np.arange(start, start + count, dtype=np.int64)
        return self._locate(number // self.lanes, number % self.lanes)

    def step(self, step: int, global_batch: int) -> StepDraws:
        """Locate the global batch of a step: equally many draws from every lane, ordered by lane.

        Raises UsageError unless the number of lanes divides the batch.
        """
        check_lanes(self.lanes, global_batch)
        # Steps are computed some thousands of draws at a time, because numpy's cost per call would
        # dominate small batches. Tiny sources get fewer: each of their epochs costs such calls.
        samples = min(line.samples for line in self._lines)
        together = max(1, min(8192, 64 * samples) // global_batch)
        draws = self._steps(step // together, together, global_batch)
        first = step % together * global_batch
        return draws[first : first + global_batch]

    def _compute_steps(self, chunk: int, together: int, global_batch: int) -> StepDraws:
        per_lane = global_batch // self.lanes
        position = np.arange(global_batch, dtype=np.int64)
        steps = np.arange(chunk * together, (chunk + 1) * together, dtype=np.int64)[:, None]
        draw = steps * per_lane + position % per_lane
        lane = np.broadcast_to(position // per_lane, draw.shape)
        return self._locate(draw.ravel(), lane.ravel())

    def _locate(self, draw: Integers, lane: Integers) -> StepDraws:
        """Return the samples at the given draw numbers of the given lanes."""
        if len(self._lines) == 1:
            sample, epoch = self._lines[0].locate(draw, lane)
            return StepDraws(np.zeros_like(draw), sample, epoch)
        source, nth = np.empty_like(draw), np.empty_like(draw)
        sample, epoch = np.empty_like(draw), np.empty_like(draw)
        block = draw // BLOCK
        for number in np.unique(block):
            here = block == number
            dealt, rank = self._block(int(number))
            source[here] = dealt[lane[here], draw[here] % BLOCK]
            nth[here] = rank[lane[here], draw[here] % BLOCK] + number * self._quotas[source[here]]
        for number, line in enumerate(self._lines):
            here = source == number
            if here.any():
                sample[here], epoch[here] = line.locate(nth[here], lane[here])
        return StepDraws(source, sample, epoch)

    def _deal(self, block: int) -> tuple[Integers, Integers]:
        """Deal one block's slots to the sources.

        Returns (lanes, BLOCK) arrays: the source of each slot, and the slot's rank among the draws
        of that source in the block.
        """
        slot = np.tile(np.arange(BLOCK, dtype=np.int64), self.lanes)
        lane = np.repeat(np.arange(self.lanes, dtype=np.int64), BLOCK)
        place = permute(slot, np.full_like(slot, BLOCK), fold(self._mixture_key, block, lane))
        # The shuffled places 0 .. BLOCK - 1 are shared out in order, so quotas hold exactly.
        source = np.searchsorted(np.cumsum(self._quotas), place, side="right")
        source = source.reshape(self.lanes, BLOCK)
        rank = np.zeros_like(source)
        for number in range(len(self._quotas)):
            here = source == number
            rank[here] = (np.cumsum(here, axis=1) - 1)[here]
        return source, rank


class _Line:
    """One source: in every epoch a keyed random line of its spans, cut into a part per lane."""

    def __init__(self, source: Source, key: int, lanes: int) -> None:
        sizes = np.array(source.shards, dtype=np.int64)
        self.samples = int(sizes.sum())
        if self.samples == 0:
            raise DataError(f"source {source.name} has no samples")
        self.key, self.lanes = key, lanes
        self.laned = self.samples >= UNLANED * lanes
        spans = _ceil_divide(sizes, SPAN)
        # Number of each span inside its own shard: 0, 1, ... again for every shard.
        first_span = np.cumsum(spans) - spans
        within = np.arange(int(spans.sum()), dtype=np.int64) - np.repeat(first_span, spans)
        self._span_start = np.repeat(np.cumsum(sizes) - sizes, spans) + within * SPAN
        self._span_size = np.minimum(SPAN, np.repeat(sizes, spans) - within * SPAN)
        self._epoch = lru_cache(maxsize=3)(self._lay_out)

    def locate(self, nth: Integers, lane: Integers) -> tuple[Integers, Integers]:
        """Return (sample, epoch) of the nth draws that the given lanes make from this source."""
        draw = nth * self.lanes + lane
        epoch = draw // self.samples
        sample = np.empty_like(draw)
        for number in np.unique(epoch):
            here = epoch == number
            sample[here] = self._locate_in_epoch(int(number), nth[here], lane[here], draw[here])
        return sample, epoch

    def _locate_in_epoch(
        self, epoch: int, nth: Integers, lane: Integers, draw: Integers
    ) -> Integers:
        key, starts, ends, part = self._epoch(epoch)
        if self.laned:
            # Lane l makes the source's draws l, l + lanes, ...; subtract those of earlier epochs.
            position = part[lane] + nth - _ceil_divide(epoch * self.samples - lane, self.lanes)
        else:
            lane, position = np.zeros_like(lane), draw - epoch * self.samples
        first_span = np.searchsorted(ends, part[:-1], side="right")[lane]
        window = (np.searchsorted(ends, position, side="right") - first_span) // WINDOW_SPANS
        edges = np.concatenate(([0], ends))
        # A span that a cut divides belongs to two lanes, so a window ends at the lane's own cuts.
        begin = np.maximum(part[lane], edges[first_span + window * WINDOW_SPANS])
        last_span = np.minimum(first_span + (window + 1) * WINDOW_SPANS, len(ends))
        end = np.minimum(part[lane + 1], edges[last_span])
        shuffled = permute(position - begin, end - begin, fold(key, WINDOW, window, lane))
        place = begin + shuffled
        span = np.searchsorted(ends, place, side="right")
        return starts[span] + place - edges[span]

    def _lay_out(self, epoch: int) -> tuple[int, Integers, Integers, Integers]:
        """Lay out the line of an epoch.

        Returns the epoch's key, the first sample of each span and the end of each span in the line
        (both in the line's order), and where the line is cut into the parts of the lanes.
        """
        key = int(fold(self.key, EPOCH, epoch)[0])
        spans = len(self._span_start)
        order = permute(
            np.arange(spans, dtype=np.int64),
            np.full(spans, spans, dtype=np.int64),
            fold(key, SPANS),
        )
        if self.laned:
            lane = np.arange(self.lanes, dtype=np.int64)
            first = _ceil_divide(epoch * self.samples - lane, self.lanes)
            last = _ceil_divide((epoch + 1) * self.samples - lane, self.lanes)
            part = np.concatenate(([0], np.cumsum(last - first)))
        else:
            part = np.array([0, self.samples], dtype=np.int64)
        return key, self._span_start[order], np.cumsum(self._span_size[order]), part


def default_lanes(global_batch: int) -> int:
    """Return the lanes of a run that does not set them: gcd(global batch, 64)."""
    return math.gcd(global_batch, 64)


def check_lanes(lanes: int, global_batch: int) -> None:
    """Raise UsageError unless the number of lanes divides the global batch."""
    if lanes < 1:
        raise UsageError(f"lanes must be at least 1, not {lanes}")
    if global_batch < 1 or global_batch % lanes:
        raise UsageError(
            f"{lanes} lanes do not divide the global batch of {global_batch}: choose another batch"
        )


def quotas(weights: Sequence[float], names: Sequence[str]) -> list[int]:
    """Return the draws of each source in a block of BLOCK, by the method of largest remainders.

    Raises UsageError for a weight that is not positive, or that is too small for a single draw.
    """
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise UsageError(f"weights must be positive numbers, not {', '.join(map(str, weights))}")
    # Fractions, because the quotas must be the same on every machine.
    total = sum(map(Fraction, weights))
    exact = [Fraction(weight) * BLOCK / total for weight in weights]
    whole = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda n: (whole[n] - exact[n], n))
    for number in by_remainder[: BLOCK - sum(whole)]:
        whole[number] += 1
    for name, share in zip(names, whole, strict=True):
        if share == 0:
            raise UsageError(
                f"source {name} has less than 1/{BLOCK} of the weight and would never be drawn"
            )
    return whole


def permute(index: Integers, size: Integers, key: Words) -> Integers:
    """Return where a keyed permutation of 0 .. size - 1 sends each index, without a table.

    This is a Feistel network over a x b >= size with a = ceil(sqrt(size)) and b = ceil(size / a),
    and with cycle walking (Black and Rogaway, 2002). All arguments broadcast.
    """
    index, size, key = np.broadcast_arrays(index, size, key)
    result = _feistel(index.astype(np.uint64), size, key)
    # The network permutes 0 .. a * b - 1. What lands outside of the size is sent on until it lands
    # inside; a * b exceeds the size by less than a, so almost no index has to walk twice.
    outside = np.flatnonzero(result >= size)
    while len(outside):
        result[outside] = _feistel(result[outside].astype(np.uint64), size[outside], key[outside])
        outside = outside[result[outside] >= size[outside]]
    return result


def _feistel(index: Words, size: Integers, key: Words) -> Integers:
    rows = np.ceil(np.sqrt(size)).astype(np.uint64)
    columns = (size.astype(np.uint64) + rows - np.uint64(1)) // rows
    row, column = index // columns, index % columns
    for number in range(1, ROUNDS + 1):
        key = round_key(key)
        if number % 2:
            row = (row + mix64(column ^ key) % rows) % rows
        else:
            column = (column + mix64(row ^ key) % columns) % columns
    result: Integers = (row * columns + column).astype(np.int64)
    return result


def _ceil_divide(value: Integers, divisor: int) -> Integers:
    return -(-value // divisor)
