"""Batches for training (in the run's order, from any step) and for evaluation (in data set order).

In: folders of data sets, a seed and the division of the global batch. Out: `Batch`es of tensors.
The only state is the number of consumed samples: workers and read-ahead never appear in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from data_pipeline.augment import AugmentConfig, write_evaluation_pixels
from data_pipeline.collate import Batch
from data_pipeline.decode import Pixels
from data_pipeline.errors import DataError, UsageError
from data_pipeline.masking import MaskingConfig
from data_pipeline.micro_batch import MicroBatch, NothingReadable, Reader, ReaderConfig
from data_pipeline.order import default_lanes
from data_pipeline.positions import (
    Division,
    check_order_state,
    keys_of,
    open_manifests,
    order_state,
)
from data_pipeline.quarantine import Quarantine
from data_pipeline.questions import QuestionConfig
from data_pipeline.sample import BadSample, Kind, Sample, Texts
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.store import Store
from data_pipeline.text import Tokenizer
from data_pipeline.workers import Workers


class Reading(Protocol):
    """Where micro-batches come from, in rising order: this process or workers."""

    def next(self, number: int) -> tuple[MicroBatch, Pixels]:
        """Return micro-batch `number` and its pixels, which then belong to the caller."""

    def close(self) -> None:
        """Free everything."""


class Loader:
    """Iterates over this rank's micro-batches without end; `micro_batches` of them make a step."""

    def __init__(
        self,
        config: ReaderConfig,
        *,
        start_step: int,
        workers: int,
        quarantine: Path | None,
        max_bad_fraction: float,
    ) -> None:
        """Use `open_loader`, which checks and completes the configuration."""
        self._config = config
        self._store = Store(config.manifests)
        self._order = config.open_order()
        self._quarantine = Quarantine(quarantine, max_bad_fraction)
        self._number = start_step * config.division.micro_batches
        self._reading: Reading
        if workers:
            self._reading = Workers(config, self._number, workers)
        else:
            self._reading = _InProcess(config)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """Return the next micro-batch.

        Raises DataError when the data cannot be read or too much of it is bad.
        """
        try:
            read, pixels = self._reading.next(self._number)
        except NothingReadable as error:
            # Listed before the error ends the run, so that the user sees which samples were bad.
            self._quarantine.note(1, error.bad)
            raise
        self._number += 1
        self._quarantine.note(len(pixels), read.bad)  # not len(keys): negatives are read too
        return Batch.of(read.keys, pixels, read.arrays, self._config.pairs)

    def step_keys(self, step: int) -> list[str]:
        """List the keys planned for a step's global batch, the same on every rank.

        Stand-ins for bad samples do not appear, because only reading finds bad samples.
        """
        return keys_of(self._order.step(step, self._config.division.global_batch), self._store)

    def state(self, step: int) -> dict[str, Any]:
        """Return the state to save after `step` steps: a small JSON object."""
        draw = step * self._config.division.global_batch
        state = order_state(self._order, self._store, seed=self._config.seed, draw=draw)
        # Also what changes batches without changing the order of samples.
        state["group"] = self._config.group
        state["tokenizer"] = _sha256_of_text(self._config.tokenizer)
        if self._config.questions is not None:
            state["questions"] = _sha256_of_text(json.dumps(asdict(self._config.questions)))
        return state

    def check_state(self, state: dict[str, Any]) -> None:
        """Check that a saved state leads to the same samples here.

        Raises DataError naming what differs.
        """
        step, rest = divmod(int(state.get("draw", 0)), self._config.division.global_batch)
        if rest:
            raise DataError(
                f"the data state is at sample {state['draw']}, which is not a step boundary "
                f"of a global batch of {self._config.division.global_batch}"
            )
        check_order_state(state, self.state(step))

    def close(self) -> None:
        """End the workers and close all files."""
        self._reading.close()
        self._store.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_loader(
    dirs: Sequence[str | Path],
    *,
    seed: int,
    global_batch: int,
    tokenizer: str | Path | Tokenizer,
    size: int,
    frames: int | None = None,
    pairs: bool = False,
    questions: QuestionConfig | None = None,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    start_step: int = 0,
    patch_size: int = 16,
    max_text_length: int = 50,
    micro_batches: int = 1,
    weights: Sequence[float] | None = None,
    lanes: int | None = None,
    group: int | None = None,
    masking: MaskingConfig = MaskingConfig(),  # noqa: B008 (frozen)
    augment: AugmentConfig = AugmentConfig(),  # noqa: B008 (frozen)
    dataset_negatives: bool = False,
    local_negatives: int | None = None,
    quarantine: str | Path | None = None,
    max_bad_fraction: float = 0.01,
) -> Loader:
    """Open data sets for training.

    Parameters
    ----------
    dirs, weights
        Folders of the data sets, and their shares of the draws (default: in proportion to their
        samples).
    seed, lanes
        They determine the order and must stay the same during a run. The default number of lanes is
        gcd(global_batch, 64).
    global_batch, rank, world, micro_batches
        Samples of a step over all ranks, and how they are divided.
    tokenizer, max_text_length
        A folder or a `Tokenizer`, and the longest text in tokens, special ones included.
    size, patch_size
        Sides of the images and of their patches in pixels.
    frames, pairs
        Samples are images, clips of `frames` frames, or image pairs if `pairs`.
    questions
        If given, the text of each sample is one of its questions that have answers, and
        `Batch.targets` holds soft targets; a sample without such a question is bad. Without it, the
        text is one of the captions.
    workers
        Number of processes that read ahead. With 0, this process reads. It changes no sample.
    start_step
        Number of steps that were done before.
    group
        Size of the groups inside which images and texts are matched. The default is the smallest
        number above 1 that divides the global batch, 2 for even ones. With `questions`, which are
        not matched, it is always 1.
    masking, augment
        Rates of masking, and the random crop.
    dataset_negatives
        Read another sample of the same source for every row that does not keep its image.
    local_negatives
        The largest number of masked patches, and of masked tokens, of a sample that serve as
        negatives (see `Batch`). None uses all.
    quarantine, max_bad_fraction
        A file that lists bad samples, and the share of them above which reading stops.

    Raises
    ------
    UsageError
        If the batch cannot be divided so.
    DataError
        If data is missing or cut.
    """
    division = Division(global_batch, world, rank, micro_batches)
    if size % patch_size:
        raise UsageError(f"patches of {patch_size} pixels do not fill an image of {size} pixels")
    if max_text_length < 3:
        raise UsageError(
            "max_text_length must leave room for a token between two special ones, "
            f"not {max_text_length}"
        )
    if workers < 0 or start_step < 0:
        raise UsageError(
            f"workers and start_step cannot be negative, not {workers} and {start_step}"
        )
    kind = _kind(frames, pairs)
    if local_negatives is not None and local_negatives < 1:
        raise UsageError(
            f"local_negatives must be at least 1 (omit it to use all), not {local_negatives}"
        )
    manifests = tuple(open_manifests(dirs))
    for manifest in manifests:
        manifest.check_kind(kind)
        if dataset_negatives and manifest.samples < 2:
            raise DataError(
                f"{manifest.root} holds a single sample, so dataset_negatives finds no other in it"
            )
    # As a string in the configuration, because worker processes get it over a socket.
    loaded = tokenizer if isinstance(tokenizer, Tokenizer) else Tokenizer.load(tokenizer)
    config = ReaderConfig(
        manifests=manifests,
        weights=None if weights is None else tuple(weights),
        seed=seed,
        lanes=default_lanes(global_batch) if lanes is None else lanes,
        division=division,
        group=matching_group(division, group) if questions is None else 1,
        tokenizer=loaded.to_str(),
        size=size,
        frames=frames,
        patch_size=patch_size,
        max_text_length=max_text_length,
        masking=masking,
        augment=augment,
        dataset_negatives=dataset_negatives,
        local_negatives=local_negatives,
        questions=questions,
        pairs=pairs,
    )
    path = Path(quarantine) if quarantine else None
    return Loader(
        config,
        start_step=start_step,
        workers=workers,
        quarantine=path,
        max_bad_fraction=max_bad_fraction,
    )


def _sha256_of_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def matching_group(division: Division, group: int | None) -> int:
    """Return the size of the matching groups.

    It is `group`, or the smallest number above 1 that divides the global batch. Raises UsageError
    if groups would not fill a micro-batch.
    """
    total = division.global_batch
    size = group
    if size is None:
        # The default must not depend on ranks and micro-batches, because who is matched with whom
        # is part of the run.
        size = next((n for n in range(2, total) if total % n == 0), total)
    if size < 2 or division.micro_batch % size:
        raise UsageError(
            f"matching groups of {size} samples must hold at least 2 and divide the micro-batch "
            f"of {division.micro_batch} ({total} samples over {division.world} ranks x "
            f"{division.micro_batches} micro-batches): set another group"
        )
    return size


def _kind(frames: int | None, pairs: bool) -> Kind:
    if frames is not None and frames < 1:
        raise UsageError(f"frames must be at least 1 (omit it to read images), not {frames}")
    if frames is not None and pairs:
        raise UsageError("pairs hold images, not videos: give either frames or pairs")
    if pairs:
        return "pair"
    return "image" if frames is None else "video"


class _InProcess:
    """Reads in the process that uses the batches (workers = 0)."""

    def __init__(self, config: ReaderConfig) -> None:
        self._reader = Reader(config)
        self._shape = config.pixels_shape

    def next(self, number: int) -> tuple[MicroBatch, Pixels]:
        # A new array each time, because the batch shares its memory.
        pixels = np.empty(self._shape, dtype=np.uint8)
        return self._reader.read(number, pixels), pixels

    def close(self) -> None:
        self._reader.close()


@dataclass
class EvaluationBatch:
    """Samples in data set order: their indices, the samples, and pixels as in `Batch`."""

    indices: list[int]
    samples: list[Sample]
    pixels: Tensor


def evaluation_batches(
    manifest: Manifest,
    *,
    size: int,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    start: int = 0,
    limit: int | None = None,
    frames: int | None = None,
    pairs: bool = False,
    texts: Texts = "captions",
    boxes: bool = False,
) -> Iterator[EvaluationBatch]:
    """Yield samples start + rank, start + rank + world, ... of the first `limit`, each once.

    Images are squashed to size x size; nothing is padded. With `frames` the samples are clips of
    that many evenly spaced frames, with the first and the last among them. With `pairs` they are
    image pairs. `texts` says what each must have: captions, questions or none. With `boxes` an
    image whose annotations have a "box" [x1, y1, x2, y2] is cropped to it first.

    Raises DataError naming the sample that cannot be read: an evaluation replaces nothing.
    """
    kind = _kind(frames, pairs)
    manifest.check_kind(kind)
    views = 2 if pairs else frames
    shape = (size, size, 3) if views is None else (views, size, size, 3)
    total = manifest.samples if limit is None else min(limit, manifest.samples)
    mine = list(range(start + rank, total, world))
    with closing(Store([manifest])) as store:
        for first in range(0, len(mine), batch_size):
            indices = mine[first : first + batch_size]
            pixels = np.empty((len(indices), *shape), dtype=np.uint8)
            samples = []
            for row, index in enumerate(indices):
                try:
                    samples.append(store.read(0, index, kind, texts))
                    write_evaluation_pixels(samples[-1], pixels[row], boxes=boxes)
                except BadSample as error:
                    raise DataError(
                        f"sample {store.key(0, index)} cannot be evaluated: {error}"
                    ) from error
            yield EvaluationBatch(indices, samples, torch.from_numpy(pixels))
