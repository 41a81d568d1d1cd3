"""One step of the loop: micro-batches in, one optimizer update and a row of metrics out.

Dropout is seeded from (seed, step, micro-batch, rank) before each forward pass, and the learning
rate is a function of the step, so that a step depends on nothing that was drawn before it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data_pipeline.collate import Batch
from data_pipeline.errors import NumericsError
from data_pipeline.randomness import hash_key
from data_pipeline.sample import Kind

from .accumulate import accumulate_exactly, accumulate_plainly
from .config import TrainingConfig
from .model import GLSCLModel
from .optim import learning_rate, set_learning_rate
from .parallel.engines import Engine
from .protocols import Stop, Task

# Updates in a row without a finite gradient that a run survives; fp16 needs some to find its scale.
MOST_SKIPPED = {"fp32": 3, "bf16": 3, "fp16": 20}


class StepResult(NamedTuple):
    """What a step reports, equal on every rank."""

    row: dict[str, Any]  # part of a row of metrics.jsonl; None for a value that is not finite
    stopped: bool  # whether any rank was asked to stop


class _Gathered(NamedTuple):
    """Losses and flags of a step, over all ranks."""

    losses: dict[Kind, dict[str, float]]  # `total` among them
    gradient_norm: float
    temperature: float
    stopped: bool
    waits: dict[str, float]  # for data: which rank was slowest, longest and shortest wait


class Stepper:
    """Takes the steps of a run; holds what stays the same from step to step."""

    def __init__(
        self, config: TrainingConfig, task: Task, model: GLSCLModel, engine: Engine, stop: Stop
    ):
        self.config, self.task, self.model, self.engine = config, task, model, engine
        self.stop = stop
        self.exact = config.accumulates_exactly and task.contrasts
        self.names = (*task.loss_names, "total")
        self.skipped_in_a_row = 0

    def warm_up(self, batches: list[Batch]) -> None:
        """Run a zero-weight backward pass, if the first one of a process sums in another order.

        DDP rebuilds its buckets after its first backward pass, which changes the order of its sums
        on 3 or more ranks. Without this warm-up before the first step of every start, a resumed run
        would not be bitwise the same.
        """
        if not self.engine.warms_up:
            return
        self.engine.wrapped.train()
        features = self.engine.wrapped("features", batches[-1])
        counts = self.task.counts(batches)[-1]
        losses = self.task.similarity_losses(features, counts)
        losses |= self.task.pair_losses(features, counts)
        self.engine.backward(self.task.weighted(losses) * 0)
        self.engine.optimizer.zero_grad()

    def take(self, step: int, batches: list[Batch], waited: float) -> StepResult:
        """Update the weights once; `waited` is how many seconds this rank waited for its data.

        Raises NumericsError when too many updates in a row had no finite gradient.
        """
        config, engine = self.config, self.engine
        rate = learning_rate(step, config.steps, config.optimizer)
        set_learning_rate(engine.optimizer, rate)
        engine.wrapped.train()
        gathered = self._gather(*self._accumulate(step, batches), waited)
        norm = gathered.gradient_norm
        row = self._losses_row(gathered.losses) | {"lr": rate, "grad_norm": norm}
        learns_temperature = self.model.temperature.requires_grad
        if learns_temperature:
            row["temperature"] = gathered.temperature

        skipped = engine.update(math.isfinite(norm))
        self._refuse_skipping(step, skipped, row, batches)
        if learns_temperature and self.task.temperature_bounds and not skipped:
            engine.clamp(self.model.temperature, self.task.temperature_bounds)
        if config.optimizer.ema and not skipped:
            engine.average(config.optimizer.ema)

        # JSON has no NaN.
        finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
        return StepResult(
            finite | gathered.waits | {"skipped": int(skipped)}, stopped=gathered.stopped
        )

    def _accumulate(self, step: int, batches: list[Batch]) -> tuple[dict[Kind, Tensor], Tensor]:
        """Leave the step's gradient in the weights; return this rank's mean losses of each kind."""
        config = self.config
        counts = self.task.counts(batches)
        shares = [self._share(batch.kind) / config.micro_batches for batch in batches]
        accumulate = accumulate_exactly if self.exact else accumulate_plainly

        def seed(micro: int) -> None:
            self._seed_dropout(step, micro)

        losses_of_batches, temperature = accumulate(
            self.task, self.engine, batches, counts, shares, seed
        )
        device = self.engine.accelerator.device
        means = {kind: torch.zeros(len(self.names), device=device) for kind in config.mixtures}
        for batch, losses in zip(batches, losses_of_batches, strict=True):
            losses["total"] = self.task.weighted(losses)
            values = [losses[name].float().reshape(()) for name in self.names]
            means[batch.kind] += torch.stack(values) / config.micro_batches
        return means, temperature.float()

    def _gather(self, means: dict[Kind, Tensor], temperature: Tensor, waited: float) -> _Gathered:
        """Average everything that a step reports over the ranks, in one collective."""
        flags = torch.tensor(
            [float(self.stop.reason is not None), waited], device=temperature.device
        )
        local_values = torch.cat([*means.values(), self.engine.gradient_norm(), temperature, flags])
        by_rank = self.engine.accelerator.gather(local_values[None])
        seconds = by_rank[:, -1]
        waits = torch.stack([seconds.argmax().float(), seconds.max(), seconds.min()])
        # `tolist` waits for the device: the only time in a step.
        values = torch.cat([by_rank.mean(0), waits]).tolist()
        *flat, norm, mean_temperature, stopping, _, slowest, longest, shortest = values
        losses = {}
        for number, kind in enumerate(means):
            start = number * len(self.names)
            losses[kind] = dict(zip(self.names, flat[start : start + len(self.names)], strict=True))
        return _Gathered(
            losses,
            norm,
            mean_temperature,
            stopped=stopping > 0,
            waits={
                "slowest_rank": int(slowest),
                "data_wait_max": longest,
                "data_wait_min": shortest,
            },
        )

    def _refuse_skipping(
        self, step: int, skipped: bool, row: dict[str, Any], batches: list[Batch]
    ) -> None:
        """Count skipped updates; raise NumericsError after too many, or if the last one is skipped.

        A run must not end with an update missing, except under fp16, where single skips are normal.
        """
        config = self.config
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        ends_skipped = skipped and step + 1 == config.steps and config.precision != "fp16"
        if self.skipped_in_a_row <= MOST_SKIPPED[config.precision] and not ends_skipped:
            return
        broken = [name for name, value in row.items() if not math.isfinite(value)]
        first_keys = []
        for batch in batches:
            first_keys += batch.keys[:2]
        raise NumericsError(
            f"step {step + 1}: {', '.join(broken or ['the gradient'])} not finite, "
            f"{self.skipped_in_a_row} skipped in a row; "
            f"the samples of this rank were {', '.join(first_keys)}, ..."
        )

    def _seed_dropout(self, step: int, micro: int) -> None:
        rank = self.engine.accelerator.process_index
        torch.manual_seed(hash_key(self.config.seed, "dropout", step, micro, rank))

    def _share(self, kind: Kind) -> float:
        """Fraction of the step's samples that are of this kind, which weighs its losses."""
        return float(self.config.mixtures[kind].global_batch / self.config.batch.total)

    def _losses_row(self, losses: dict[Kind, dict[str, float]]) -> dict[str, float]:
        """Name losses as in metrics.jsonl: over all samples and, with two kinds, over each."""
        row: dict[str, float] = {}
        for name in self.names:
            value = sum(self._share(kind) * of_kind[name] for kind, of_kind in losses.items())
            row["loss" if name == "total" else f"loss/{name}"] = value
        if len(losses) > 1:
            for kind, of_kind in losses.items():
                row |= {f"loss/{kind}/{name}": value for name, value in of_kind.items()}
        return row
