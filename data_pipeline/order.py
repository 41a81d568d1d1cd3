"""Which sample stands at each draw of a run: a pure function of (sources, seed, lanes), without any buffer or state.

In come the shard sizes and weights of the sources, out go arrays (source, sample, epoch). Ranks,
workers and micro-batches do not appear here: they only divide a step's batch.

Each epoch of a source: its shards are cut into spans, the spans laid in a keyed random line, the
line cut into one part for each lane, and each part mixed completely in windows of spans. So every
sample comes exactly once an epoch, and what is read soon lies close together. Several sources: each
block of a lane's draws is dealt to them with exact quotas.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError, UsageError

SPAN = 256  # consecutive samples of one shard that stay neighbours in an epoch's line
WINDOW = 64  # spans of a lane that are mixed completely
BLOCK = 1000  # draws of a lane in which every source has its exact quota
UNLANED = 100  # a source with fewer samples per lane than this is walked by all lanes together
ROUNDS = 6

Integers = NDArray[np.int64]
Words = NDArray[np.uint64]

# What a key is for, so that no two uses share one: quarantine.py and micro_batch.py go on counting.
_EPOCH, _SPANS, _IN_WINDOW = 0, 1, 2

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Source:
    """One data set of the mixture: its name, the samples of each shard, its share of the draws."""

    name: str
    shards: tuple[int, ...]
    weight: float = 1.0


@dataclass(frozen=True)
class StepDraws:
    """Some draws: number of the source, index of the sample in it, epoch of the source; int64 (draws,)."""

    source: Integers
    sample: Integers
    epoch: Integers

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, part: slice) -> StepDraws:
        return StepDraws(self.source[part], self.sample[part], self.epoch[part])


class Order:
    """The order of a run: what every lane draws, and how a step's global batch is made of the lanes."""

    def __init__(self, sources: Sequence[Source], seed: int, lanes: int) -> None:
        if not sources:
            raise UsageError("a mixture needs at least one source")
        if lanes < 1:
            raise UsageError(f"lanes must be at least 1, not {lanes}")
        names = [source.name for source in sources]
        self.lanes = lanes
        self.keys = tuple(
            hash_key(seed, name, names[:n].count(name)) for n, name in enumerate(names)
        )
        self._lines = [
            _Line(source, key, lanes) for source, key in zip(sources, self.keys, strict=True)
        ]
        self.quotas = tuple(quotas([source.weight for source in sources], names))
        self._quotas = np.array(self.quotas, dtype=np.int64)
        self._mixture_key = hash_key(seed, "mixture", names)
        self._block = lru_cache(maxsize=4)(self._deal)
        self._steps = lru_cache(maxsize=4)(self._compute_steps)

    def draws(self, start: int, count: int) -> StepDraws:
        """Locate global draws start .. start + count - 1, where draw t is draw t // lanes of lane t % lanes."""
        number = np.arange(start, start + count, dtype=np.int64)
        return self._locate(number // self.lanes, number % self.lanes)

    def step(self, step: int, global_batch: int) -> StepDraws:
        """Locate the global batch of a step: the same number of draws from every lane, ordered by lane.

        Raises UsageError unless the number of lanes divides the batch.
        """
        check_lanes(self.lanes, global_batch)
        # Steps are computed some thousands of draws at a time: numpy's cost per call would dominate
        # small batches. Of tiny sources fewer, because each of their epochs costs such calls.
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
        """Draw number and lane of each element -> what stands there."""
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
        """One block's slots dealt to the sources: source, and rank among its draws in the block; (lanes, BLOCK)."""
        slot = np.tile(np.arange(BLOCK, dtype=np.int64), self.lanes)
        lane = np.repeat(np.arange(self.lanes, dtype=np.int64), BLOCK)
        place = permute(slot, np.full_like(slot, BLOCK), fold(self._mixture_key, block, lane))
        source = np.searchsorted(np.cumsum(self._quotas), place, side="right").reshape(
            self.lanes, BLOCK
        )
        rank = np.zeros_like(source)
        for number in range(len(self._quotas)):
            here = source == number
            rank[here] = (np.cumsum(here, axis=1) - 1)[here]
        return source, rank


class _Line:
    """One source: its spans in a keyed random line in every epoch, cut into a part for each lane."""

    def __init__(self, source: Source, key: int, lanes: int) -> None:
        sizes = np.array(source.shards, dtype=np.int64)
        self.samples = int(sizes.sum())
        if self.samples == 0:
            raise DataError(f"source {source.name} has no samples")
        self.key, self.lanes = key, lanes
        self.laned = self.samples >= UNLANED * lanes
        spans = -(-sizes // SPAN)
        within = np.arange(int(spans.sum()), dtype=np.int64) - np.repeat(
            np.cumsum(spans) - spans, spans
        )
        self._span_start = np.repeat(np.cumsum(sizes) - sizes, spans) + within * SPAN
        self._span_size = np.minimum(SPAN, np.repeat(sizes, spans) - within * SPAN)
        self._epoch = lru_cache(maxsize=3)(self._lay_out)

    def locate(self, nth: Integers, lane: Integers) -> tuple[Integers, Integers]:
        """Source-local draw number of each lane -> (sample, epoch)."""
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
            position = part[lane] + nth - _ceil_divide(epoch * self.samples - lane, self.lanes)
        else:
            lane, position = np.zeros_like(lane), draw - epoch * self.samples
        first_span = np.searchsorted(ends, part[:-1], side="right")[lane]
        window = (np.searchsorted(ends, position, side="right") - first_span) // WINDOW
        edges = np.concatenate(([0], ends))
        begin = np.maximum(part[lane], edges[first_span + window * WINDOW])
        end = np.minimum(
            part[lane + 1], edges[np.minimum(first_span + (window + 1) * WINDOW, len(ends))]
        )
        mixed = begin + permute(position - begin, end - begin, fold(key, _IN_WINDOW, window, lane))
        span = np.searchsorted(ends, mixed, side="right")
        return starts[span] + mixed - edges[span]

    def _lay_out(self, epoch: int) -> tuple[int, Integers, Integers, Integers]:
        """Key of an epoch, first sample of each span in the line's order, end of each in the line, the lanes' cuts."""
        key = int(fold(self.key, _EPOCH, epoch)[0])
        spans = len(self._span_start)
        order = permute(
            np.arange(spans, dtype=np.int64),
            np.full(spans, spans, dtype=np.int64),
            fold(key, _SPANS),
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
    """Lanes of a run that names none: gcd(global batch, 64)."""
    return math.gcd(global_batch, 64)


def check_lanes(lanes: int, global_batch: int) -> None:
    """Raise UsageError unless the number of lanes divides the global batch."""
    if lanes < 1:
        raise UsageError(f"lanes must be at least 1, not {lanes}")
    if global_batch < 1 or global_batch % lanes:
        raise UsageError(
            f"{lanes} lanes must divide the global batch of {global_batch}: choose another batch"
        )


def quotas(weights: Sequence[float], names: Sequence[str]) -> list[int]:
    """Draws of each source in a block of BLOCK, by the largest remainder.

    Raises UsageError for a weight that is not positive, or too small to get a single draw.
    """
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise UsageError(f"weights must be positive numbers, not {', '.join(map(str, weights))}")
    exact = [Fraction(weight) * BLOCK / sum(map(Fraction, weights)) for weight in weights]
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


def hash_key(*parts: object) -> int:
    """64-bit key of any JSON values, the same on every machine and in every version."""
    text = json.dumps(parts, ensure_ascii=True, separators=(",", ":"))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def fold(key: int | Words, *values: int | Integers) -> Words:
    """Keys derived from keys and integers (scalars or arrays, broadcast); uint64, at least one element."""
    words = np.atleast_1d(np.asarray(key, dtype=np.uint64))
    for value in values:
        words = mix64(
            words
            ^ mix64(np.atleast_1d(np.asarray(value, dtype=np.int64)).view(np.uint64) + _GOLDEN)
        )
    return words


def mix64(words: Words) -> Words:
    """Finaliser of splitmix64 (Steele, Lea and Flood, 2014): a bijection that scatters every bit."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def permute(index: Integers, size: Integers, key: Words) -> Integers:
    """Where a keyed permutation of 0 .. size - 1 sends each index, without a table.

    A Feistel network over a x b >= size, a = ceil(sqrt(size)), b = ceil(size / a), with cycle
    walking (Black and Rogaway, 2002). a * b exceeds the size by less than a, so that almost no
    index has to walk twice. All arguments broadcast.
    """
    index, size, key = np.broadcast_arrays(index, size, key)
    result = _feistel(index.astype(np.uint64), size, key)
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
        key = mix64(key + _GOLDEN)
        if number % 2:
            row = (row + mix64(column ^ key) % rows) % rows
        else:
            column = (column + mix64(row ^ key) % columns) % columns
    result: Integers = (row * columns + column).astype(np.int64)
    return result


def _ceil_divide(value: Integers, divisor: int) -> Integers:
    return -(-value // divisor)
