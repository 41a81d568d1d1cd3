"""The loop: resume, step, log, validate, checkpoint, stop. One process or many, through accelerate.

No generator state is saved: dropout is seeded from (seed, step, micro-step, rank) before each
forward, samples carry their own randomness, and the learning rate is a function of the step. That
is why a resumed run is bitwise the same.
"""

from __future__ import annotations

import hashlib
import math
import sys
import time
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate.utils import broadcast_object_list
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from data_pipeline.collate import Batch
from data_pipeline.errors import DataError, NumericsError, UsageError, UserError
from data_pipeline.loader import Loader, open_loader
from data_pipeline.randomness import hash_key
from data_pipeline.sample import Kind
from data_pipeline.shards.manifest import Manifest
from data_pipeline.text import Tokenizer

from .accumulate import accumulate_exactly, accumulate_plainly
from .config import RunConfig, TrainingConfig
from .job import Job, Pretraining
from .optim import build_optimizer, learning_rate, set_learning_rate
from .parallel.engines import Engine
from .parallel.gather import gather_counts
from .parallel.selfcheck import check_samples, start
from .planning.plan import flop_counter
from .run.checkpoint import (
    Best,
    Position,
    check,
    find_checkpoint,
    load_checkpoint,
    mark_best,
    save_checkpoint,
    set_aside,
    step_name,
)
from .run.folder import RunFolder, record_failure
from .run.signals import STOPPED
from .task import TaskModel
from .utilization import peak

# Updates in a row without a finite gradient that a run survives; fp16 needs some to find its scale.
MOST_SKIPPED = {"fp32": 3, "bf16": 3, "fp16": 20}
_PLURAL = {"image": "images", "video": "clips", "pair": "pairs"}


class Stop(Protocol):
    """Says why the run should stop after this step; `StopFlag` listens to signals."""

    @property
    def reason(self) -> str | None:
        """What asked for the stop; None while nothing did."""


def train(
    config: RunConfig, stop: Stop, *, resume: str = "auto", allow_change: tuple[str, ...] = ()
) -> int:
    """Pre-train; `train_job` says how."""
    return train_job(Pretraining(config), stop, resume=resume, allow_change=allow_change)


def train_job(
    job: Job, stop: Stop, *, resume: str = "auto", allow_change: tuple[str, ...] = ()
) -> int:
    """Train until `config.steps` of a job, from the start or from the run folder's last whole checkpoint.

    Parameters
    ----------
    job : Job
        The run.
    stop : Stop
        Asked after every step, on every rank; the run saves and stops when any rank has a reason.
    resume : str
        `auto` continues when there is a checkpoint, `never` refuses a folder that was used,
        anything else names one.
    allow_change : tuple of str
        Configuration keys that may differ from those the folder was started with.

    Returns
    -------
    int
        0 when complete, 75 when stopped by a signal after saving.
    """
    transformers_logging.disable_progress_bar()
    config = job.config
    engine = start(config.precision, config.log.trackers, config.run, config.world)
    accelerator = engine.accelerator
    if accelerator.is_main_process:
        count = accelerator.num_processes
        by = f", {engine.name}" if count > 1 else ""
        _say(
            f"{count} process{'es' * (count > 1)} on {accelerator.device.type}{by}, {config.precision}"
        )
    run = RunFolder(config) if accelerator.is_main_process else None
    try:
        return _Training(job, engine, run, stop, resume, allow_change).train()
    except UsageError:
        raise  # refused: the folder stays as it was
    except BaseException as error:
        if run or isinstance(error, UserError):
            record_failure(Path(config.run), error)
        raise
    finally:
        if run:
            run.close()


class _Training:
    """Everything that one run holds while it trains."""

    def __init__(
        self,
        job: Job,
        engine: Engine,
        run: RunFolder | None,
        stop: Stop,
        resume: str,
        allow_change: tuple[str, ...],
    ):
        config: TrainingConfig = job.config
        self.job, self.config, self.engine, self.run, self.stop = job, config, engine, run, stop
        self.accelerator = accelerator = engine.accelerator
        checkpoint = self._choose_checkpoint(resume)
        if run:
            run.check_config(allow_change)
        tokenizer = Tokenizer.load(config.data.tokenizer)
        torch.manual_seed(config.seed)
        self.model = job.build(tokenizer, checkpoint)
        self.task = job.task(tokenizer, self.model)
        self.exact = config.accumulates_exactly and self.task.contrasts
        self.saved_tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            config.data.tokenizer
        )
        if config.optimizer.ema and engine.name == "zero3":
            raise UsageError("optimizer.ema does not work under ZeRO-3: choose zero2 or fsdp2")
        micro_batch = config.batch.total // (accelerator.num_processes * config.micro_batches)
        optimizer = build_optimizer(self.model, config.optimizer)
        max_grad_norm = config.optimizer.max_grad_norm
        engine.prepare(
            TaskModel(self.task, self.model),
            self.model,
            optimizer,
            max(1, micro_batch),
            max_grad_norm,
        )
        self.wrapped = engine.wrapped
        self.skipped_in_a_row = 0
        self.position = Position(0, 0, {}, accelerator.num_processes, engine.name)
        if checkpoint:
            self.position = load_checkpoint(
                checkpoint, engine, averaged=config.optimizer.ema is not None
            )
        self.loaders = self._open_loaders(tokenizer)
        if checkpoint:
            self._check_position(checkpoint)
            self._check_best(checkpoint.parent)
            self._say(f"resumed at step {self.position.step} from {checkpoint}")
            self._warn_of_other_ranks(accelerator.num_processes)

    def train(self) -> int:
        """Take the remaining steps."""
        config, run = self.config, self.run
        each = " and ".join(
            f"{mixture.global_batch} {_PLURAL[kind]}" for kind, mixture in config.mixtures.items()
        )
        self._say(f"step {self.position.step} of {config.steps}, {each} a step")
        manifests = [
            Manifest.load(folder) for mixture in config.mixtures.values() for folder in mixture.dirs
        ]
        if run:
            run.write_config()
            self.job.record(run.path)
            set_aside(run.checkpoints, self.position.step)
            mark_best(run.checkpoints, self.position.best)
            run.trim_metrics(self.position.step)
            data = [{"path": str(m.root), "name": m.name, "digest": m.digest} for m in manifests]
            run.write_environment(
                self.accelerator.num_processes, str(self.accelerator.device), data
            )
            run.write_status("running", self.position.step)
        if config.log.trackers:
            self.accelerator.init_trackers(
                "glscl", config={"seed": config.seed, "steps": config.steps}
            )
        samples = sum(manifest.samples for manifest in manifests)
        first = self.position.step
        bar = tqdm(
            total=config.steps,
            initial=first,
            unit="step",
            disable=not (run and sys.stderr.isatty()),
        )
        since, waited, counted, operations = time.monotonic(), 0.0, 0, 0
        peak_flops = peak(self.accelerator.device, config.precision)
        with ExitStack() as opened:
            for loader in self.loaders.values():
                opened.enter_context(loader)
            for step in range(first, config.steps):
                before = time.perf_counter()
                batches = self._next_batches()
                wait = time.perf_counter() - before
                waited += wait
                if step == first:
                    self._check_samples(batches)
                    if self.engine.warms_up:
                        self._warm_up(batches)
                with flop_counter() if step == first else nullcontext() as counter:
                    row, stopped = self._step(step, batches, wait)
                if counter:
                    operations = counter.get_total_flops()
                    if self.exact:
                        operations = (
                            3 * operations // 4
                        )  # without the second forward pass, as MFU is defined
                counted += 1
                done = step + 1
                self.position = replace(self.position, step=done, samples=done * config.batch.total)
                last = done == config.steps or stopped
                validated = config.validation and (
                    done % config.validation.every == 0 or done == config.steps
                )
                metrics = (
                    {f"validation/{name}": value for name, value in self._validate().items()}
                    if validated
                    else {}
                )
                improved = self._improves(metrics)
                if (
                    done % config.log.every == 0
                    or done == config.steps
                    or metrics
                    or row["skipped"]
                ):
                    elapsed = time.monotonic() - since
                    row |= {
                        "samples": self.position.samples,
                        "epoch": self.position.samples / samples,
                        "samples_per_second": counted * config.batch.total / elapsed,
                        "data_wait_fraction": waited / elapsed,
                        "flops_per_second": operations * counted / elapsed,
                        "keys": _hash_keys(
                            [
                                key
                                for loader in self.loaders.values()
                                for key in loader.step_keys(step)
                            ]
                        ),
                    } | metrics
                    if peak_flops:
                        row["mfu"] = row["flops_per_second"] / peak_flops
                    self._log({"step": done} | row, bar)
                    since, waited, counted = time.monotonic(), 0.0, 0
                bar.update()
                if done % config.checkpoint.every == 0 or last or improved:
                    self._save()
                if stopped and done < config.steps:
                    reason = self.stop.reason or "another rank was asked to stop"
                    self._finish("preempted", reason)
                    self._say(
                        f"stopped after step {done} ({reason}); the same command goes on from there"
                    )
                    return STOPPED
        bar.close()
        self._finish("complete", "")
        self._say(f"complete after step {config.steps}: {config.run}")
        return 0

    def _next_batches(self) -> list[Batch]:
        """Micro-batches of one step on this rank, all pictures before all clips: the same kinds on every rank."""
        device, count = self.accelerator.device, self.config.micro_batches
        return [
            next(loader).to(device, True) for loader in self.loaders.values() for _ in range(count)
        ]

    def _step(self, step: int, batches: list[Batch], waited: float) -> tuple[dict[str, Any], bool]:
        """One optimiser update; returns what is logged of it and whether any rank was asked to stop.

        `waited` are the seconds that this rank waited for its data.
        """
        config, accelerator, engine = self.config, self.accelerator, self.engine
        rate = learning_rate(step, config.steps, config.optimizer)
        set_learning_rate(engine.optimizer, rate)
        self.wrapped.train()
        counts = self.task.counts(batches)
        names = (*self.task.loss_names, "total")
        summed = {kind: torch.zeros(len(names), device=accelerator.device) for kind in self.loaders}
        accumulate = accumulate_exactly if self.exact else accumulate_plainly
        shares = [self._share(batch.kind) / config.micro_batches for batch in batches]
        found, temperature = accumulate(
            self.task,
            engine,
            batches,
            counts,
            shares,
            lambda micro: self._seed_dropout(step, micro),
        )
        for batch, losses in zip(batches, found, strict=True):
            losses["total"] = self.task.weighted(losses)
            values = [losses[name].float().reshape(()) for name in names]
            summed[batch.kind] += torch.stack(values) / config.micro_batches
        temperature = temperature.float()
        # One collective for what a step says: losses, whether a rank was asked to stop, how long
        # each waited for data.
        flags = [float(self.stop.reason is not None), waited]
        own = torch.cat(
            [
                *summed.values(),
                engine.gradient_norm(),
                temperature,
                torch.tensor(flags, device=accelerator.device),
            ]
        )
        of_ranks = accelerator.gather(own[None])
        seconds = of_ranks[:, -1]
        slowest = [seconds.argmax()[None].float(), seconds.max()[None], seconds.min()[None]]
        found_of_all = torch.cat([of_ranks.mean(0), *slowest]).tolist()
        *flat, norm, temperature, asked_share, _, slowest_rank, longest, shortest = found_of_all
        means = {
            kind: dict(zip(names, flat[i * len(names) :], strict=False))
            for i, kind in enumerate(summed)
        }
        row = self._losses_row(means) | {"lr": rate, "grad_norm": norm}
        learns_temperature = self.model.temperature.requires_grad
        if learns_temperature:
            row["temperature"] = temperature
        skipped = engine.update(math.isfinite(norm))
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        ends_skipped = skipped and step + 1 == config.steps and config.precision != "fp16"
        if self.skipped_in_a_row > MOST_SKIPPED[config.precision] or ends_skipped:
            broken = [name for name, value in row.items() if not math.isfinite(value)] or [
                "the gradient"
            ]
            raise NumericsError(
                f"step {step + 1}: {', '.join(broken)} not finite, {self.skipped_in_a_row} skipped in a row; the "
                f"samples of this rank were {', '.join(key for b in batches for key in b.keys[:2])}, ..."
            )
        if learns_temperature and self.task.temperature_bounds and not skipped:
            engine.clamp(self.model.temperature, self.task.temperature_bounds)
        if config.optimizer.ema and not skipped:
            engine.average(config.optimizer.ema)
        # JSON knows no NaN.
        row = {name: value if math.isfinite(value) else None for name, value in row.items()}
        ranks = {
            "slowest_rank": int(slowest_rank),
            "data_wait_max": longest,
            "data_wait_min": shortest,
        }
        return row | ranks | {"skipped": int(skipped)}, asked_share > 0

    def _seed_dropout(self, step: int, micro: int) -> None:
        torch.manual_seed(
            hash_key(self.config.seed, "dropout", step, micro, self.accelerator.process_index)
        )

    def _share(self, kind: Kind) -> float:
        """Share of the step's samples that are of this kind, which weighs its losses."""
        return float(self.config.mixtures[kind].global_batch / self.config.batch.total)

    def _losses_row(self, means: dict[Kind, dict[str, float]]) -> dict[str, float]:
        """Losses of the step under the names of metrics.jsonl: of all its samples and, where there are two, of each."""
        row: dict[str, float] = {}
        for name in (*self.task.loss_names, "total"):
            value = sum(self._share(kind) * of[name] for kind, of in means.items())
            row["loss" if name == "total" else f"loss/{name}"] = value
        if len(means) > 1:
            row |= {
                f"loss/{kind}/{name}": value
                for kind, of in means.items()
                for name, value in of.items()
            }
        return row

    def _check_samples(self, batches: list[Batch]) -> None:
        """Compare what the ranks have read, where there are enough samples for all to differ."""
        enough = all(
            sum(Manifest.load(folder).samples for folder in mixture.dirs) >= mixture.global_batch
            for mixture in self.config.mixtures.values()
        )
        [hashes] = gather_counts([hash_key([batch.keys for batch in batches]) >> 1])
        if enough:
            check_samples(hashes)

    def _warm_up(self, batches: list[Batch]) -> None:
        """Run one zero-weight backward of the step's last micro-batch before the first step of every start.

        DDP rebuilds its buckets after its first backward, which changes the order of its sums on 3
        or more ranks; without this a resumed run would not be bitwise the same.
        """
        self.wrapped.train()
        features, counts = self.wrapped("features", batches[-1]), self.task.counts(batches)[-1]
        losses = self.task.similarity_losses(features, counts) | self.task.pair_losses(
            features, counts
        )
        self.engine.backward(self.task.weighted(losses) * 0)
        self.engine.optimizer.zero_grad()

    def _validate(self) -> dict[str, float]:
        self.wrapped.eval()
        return self.task.validate(self.wrapped, self.accelerator.device)

    def _improves(self, metrics: dict[str, float]) -> bool:
        """Note what the task has reached where that is more than ever before; every rank has the same metrics."""
        name = f"validation/{self.task.best}"
        if name not in metrics or (
            self.position.best is not None and metrics[name] <= self.position.best.value
        ):
            return False
        self.position = replace(
            self.position, best=Best(self.position.step, name, metrics[name], self._split())
        )
        return True

    def _check_best(self, checkpoints: Path) -> None:
        """Forget a best checkpoint that is gone, as when a run goes back, or of another split; rank 0 looks for all."""
        best = self.position.best
        there = [best is not None and (checkpoints / step_name(best.step)).is_dir()]
        if best is not None and best.split is not None and self._split() not in (None, best.split):
            there = [False]
        if not broadcast_object_list(there)[0]:
            self.position = replace(self.position, best=None)

    def _split(self) -> str | None:
        """Say what is validated: values of other data cannot be compared."""
        validation = self.config.validation
        return (
            None
            if validation is None
            else f"{Manifest.load(validation.path).digest}:{validation.limit}"
        )

    def _save(self) -> None:
        state: dict[str, Any] = {
            kind: loader.state(self.position.step) for kind, loader in self.loaders.items()
        }
        world = self.accelerator.num_processes
        self.position = replace(
            self.position,
            data=state,
            world=world,
            engine=self.engine.name,
            scaler=self.engine.scaler,
        )
        checkpoints, keep = Path(self.config.run) / "checkpoints", self.config.checkpoint.keep
        save_checkpoint(checkpoints, self.engine, self.saved_tokenizer, self.position, keep)
        if self.run:
            self.run.write_status("running", self.position.step)
        self.accelerator.wait_for_everyone()

    def _finish(self, state: str, reason: str) -> None:
        if self.run:
            self.run.write_status(state, self.position.step, reason)
        if self.config.log.trackers:
            self.accelerator.end_training()

    def _choose_checkpoint(self, resume: str) -> Path | None:
        """Rank 0 decides, all ranks load the same."""
        chosen: list[str | None] = [None]
        if self.run:
            if resume == "never" and self.run.used:
                raise UsageError(
                    f"{self.run.path} was used before; --resume never wants an unused folder"
                )
            if resume == "auto":
                found = find_checkpoint(self.run.checkpoints, self._say)
                chosen = [str(found) if found else None]
            elif resume != "never":
                chosen = [str(self._named_checkpoint(Path(resume)))]
        return Path(path) if (path := broadcast_object_list(chosen)[0]) else None

    def _named_checkpoint(self, folder: Path) -> Path:
        assert self.run is not None
        if folder.resolve().parent != self.run.checkpoints.resolve():
            raise UsageError(
                f"--resume {folder} is no checkpoint of {self.run.path}; for another run's weights use --init-from"
            )
        if problem := check(folder):
            raise DataError(f"--resume {folder}: {problem}")
        return folder

    def _check_position(self, checkpoint: Path) -> None:
        """Refuse data that are not those the checkpoint's next step would read."""
        if self.position.data.keys() != self.loaders.keys():
            kinds = " and ".join(self.position.data) or "nothing"
            raise UsageError(
                f"{checkpoint} was trained on {kinds}, this run on {' and '.join(self.loaders)}"
            )
        for kind, loader in self.loaders.items():
            loader.check_state(self.position.data[kind])
        if self.position.samples != self.position.step * self.config.batch.total:
            raise UsageError(
                f"{checkpoint} was written with another batch, which cannot change on resume"
            )

    def _warn_of_other_ranks(self, world: int) -> None:
        """Say so where the number of ranks, which may change, is part of what is computed."""
        before = self.position.world
        if before == world:
            return
        plain = (
            self.config.micro_batches > 1
            and self.config.accumulation == "plain"
            and self.task.contrasts
        )
        if plain or self.task.depends_on_ranks:
            self._say(
                f"warning: {world} ranks instead of {before}: with plain accumulation, negatives of the rank or "
                "published gradients, the losses from here on are not what the same samples would have given before"
            )

    def _open_loaders(self, tokenizer: Tokenizer) -> dict[Kind, Loader]:
        """Loaders of the kinds that the run takes."""
        config = self.config
        shared: dict[str, Any] = {
            "seed": config.seed,
            "rank": self.accelerator.process_index,
            "world": self.accelerator.num_processes,
            "micro_batches": config.micro_batches,
            "workers": config.data.workers,
            "start_step": self.position.step,
            "tokenizer": tokenizer,
            "patch_size": self.model.config.vision_config.patch_size,
            "max_text_length": config.data.max_text_length,
            "masking": config.data.masking,
            "augment": config.data.augment,
            "quarantine": Path(config.run) / "quarantine.jsonl",
        } | self.job.reading()
        return {
            kind: open_loader(
                mixture.dirs,
                weights=mixture.weights,
                global_batch=mixture.global_batch,
                lanes=mixture.lanes,
                group=mixture.group,
                frames=mixture.frames,
                size=mixture.image_size or self.model.config.image_size,
                **shared,
            )
            for kind, mixture in config.mixtures.items()
        }

    def _log(self, row: dict[str, Any], bar: tqdm[Any]) -> None:
        if self.run:
            self.run.append_metrics(row)
        if self.config.log.trackers:
            self.accelerator.log(
                {k: v for k, v in row.items() if isinstance(v, float | int)}, step=row["step"]
            )
        validated = [
            f"{name} {value:.1f}" for name, value in row.items() if name.startswith("validation/")
        ]
        loss = "loss not finite" if row["loss"] is None else f"loss {row['loss']:.3f}"
        loss += ", skipped" * row["skipped"]
        text = f"step {row['step']}  {loss}  {row['samples_per_second']:.0f} samples/s"
        if bar.disable or validated:
            self._say("  ".join([text, *validated]))
        else:
            bar.set_postfix_str(text)

    def _say(self, message: str) -> None:
        if self.run:
            _say(message)


def _say(message: str) -> None:
    tqdm.write(message, file=sys.stderr)
    sys.stderr.flush()


def _hash_keys(keys: list[str]) -> str:
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]
