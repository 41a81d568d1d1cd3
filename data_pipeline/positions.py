"""Which samples a rank reads at which step: keys, micro-batches and the state that is saved.

In: the manifests of the data sets, a seed and the division of the global batch. Out: the order over
them (`order.py`), the full keys of planned samples, and a small JSON state with which a resumed run
checks that it continues with the same samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError, UsageError
from data_pipeline.order import Order, Source, StepDraws, check_lanes, default_lanes
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.store import Store

STATE_FORMAT = "glscl-data-state/1"
FINGERPRINT = 8  # number of next keys that a state remembers


@dataclass(frozen=True)
class Division:
    """How a global batch is divided: over `world` ranks, and on each rank into `micro_batches`.

    Raises UsageError unless every part gets the same number of samples.
    """

    global_batch: int
    world: int = 1
    rank: int = 0
    micro_batches: int = 1

    def __post_init__(self) -> None:
        """Check that the parts are equal."""
        parts = self.world * self.micro_batches
        if (
            min(self.global_batch, self.world, self.micro_batches) < 1
            or not 0 <= self.rank < self.world
        ):
            raise UsageError(
                f"a global batch of {self.global_batch} on rank {self.rank} of {self.world} ranks, "
                f"{self.micro_batches} micro-batches each: all must be at least 1, "
                "and ranks count from 0"
            )
        if self.global_batch % parts:
            raise UsageError(
                f"a global batch of {self.global_batch} cannot be divided over {self.world} ranks "
                f"x {self.micro_batches} micro-batches: choose a multiple of {parts}"
            )

    @property
    def micro_batch(self) -> int:
        """Number of samples of one micro-batch."""
        return self.global_batch // (self.world * self.micro_batches)

    @property
    def of_rank(self) -> slice:
        """Part of the global batch that the rank holds."""
        size = self.global_batch // self.world
        return slice(self.rank * size, (self.rank + 1) * size)

    def of_micro_batch(self, number: int) -> slice:
        """Part of the global batch that micro-batch `number` of a step holds."""
        first = self.of_rank.start + number * self.micro_batch
        return slice(first, first + self.micro_batch)


def open_order(
    manifests: Sequence[Manifest],
    *,
    seed: int,
    global_batch: int,
    lanes: int | None,
    weights: Sequence[float] | None,
) -> Order:
    """Return the order over data sets.

    Without `weights`, each is drawn in proportion to its samples.
    """
    lanes = default_lanes(global_batch) if lanes is None else lanes
    check_lanes(lanes, global_batch)
    if weights is None:
        weights = [float(manifest.samples) for manifest in manifests]
    if len(weights) != len(manifests):
        raise UsageError(f"{len(manifests)} data sets need as many weights, not {len(weights)}")
    sources = []
    for manifest, weight in zip(manifests, weights, strict=True):
        shard_sizes = tuple(shard.samples for shard in manifest.shards)
        sources.append(Source(manifest.name, shard_sizes, weight))
    return Order(sources, seed, lanes)


def open_manifests(dirs: Sequence[str | Path]) -> list[Manifest]:
    """Load the manifests of data sets and check the size of every shard.

    Raises DataError naming what is missing, and UsageError when two folders have the same name,
    because their samples would have the same keys.
    """
    manifests = [Manifest.load(Path(folder)) for folder in dirs]
    folder_by_name: dict[str, Path] = {}
    for manifest in manifests:
        manifest.check_sizes()
        # The same folder may be given twice, to weight it in a mixture.
        other = folder_by_name.setdefault(manifest.name, manifest.root)
        if other.resolve() != manifest.root.resolve():
            raise UsageError(
                f'{other} and {manifest.root} are both named "{manifest.name}", so their samples '
                "cannot be told apart: rename one with "
                f'"glscl data index {manifest.root} --name NAME"'
            )
    return manifests


def keys_of(draws: StepDraws, store: Store) -> list[str]:
    """Return the full keys of planned samples; nothing is decoded."""
    places = zip(draws.source.tolist(), draws.sample.tolist(), strict=True)
    return [store.key(source, sample) for source, sample in places]


def planned_keys(
    dirs: Sequence[str | Path],
    *,
    seed: int,
    global_batch: int,
    world: int = 1,
    rank: int = 0,
    start_step: int = 0,
    steps: int = 1,
    weights: Sequence[float] | None = None,
    lanes: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield {"step": n, "keys": [...]}: what a rank will read at each step.

    Workers and micro-batches do not matter for that.
    """
    division = Division(global_batch, world, rank)
    manifests = open_manifests(dirs)
    order = open_order(
        manifests, seed=seed, global_batch=global_batch, lanes=lanes, weights=weights
    )
    store = Store(manifests)
    for step in range(start_step, start_step + steps):
        draws = order.step(step, global_batch)[division.of_rank]
        yield {"step": step, "keys": keys_of(draws, store)}


def order_state(order: Order, store: Store, *, seed: int, draw: int) -> dict[str, Any]:
    """Return the loader's whole state after `draw` consumed samples: one small JSON object."""
    sources = []
    for manifest, quota in zip(store.manifests, order.quotas, strict=True):
        source = {"name": manifest.name, "digest": manifest.digest}
        sources.append(source | {"samples": manifest.samples, "quota": quota})
    # The next keys catch what the other fields cannot, such as an order computed differently by
    # another version of this code.
    fingerprint = keys_of(order.draws(draw, FINGERPRINT), store)
    return {
        "format": STATE_FORMAT,
        "seed": seed,
        "lanes": order.lanes,
        "sources": sources,
        "draw": draw,
        "next": fingerprint,
    }


def check_order_state(saved: dict[str, Any], current: dict[str, Any]) -> None:
    """Compare a saved state with the one that this run computes for the same draw.

    Raises DataError naming the first thing that differs.
    """
    meanings = {
        "format": "format of the state",
        "seed": "seed",
        "lanes": "number of lanes",
        "sources": "data sets (name, content, samples or share)",
        "questions": "labels of the answers (sha256)",
        "group": "size of the matching groups",
        "tokenizer": "contents of the tokenizer (sha256)",
        "draw": "position in the order",
        "next": "next samples",
    }
    for name, meaning in meanings.items():
        if saved.get(name) != current.get(name):
            raise DataError(
                f"the data state does not fit this run: the {meaning} differ; "
                f"saved {saved.get(name)}, here {current.get(name)}"
            )
