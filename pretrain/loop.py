"""The loop: resume, step, log, validate, checkpoint, stop. One process or many, through accelerate.

No generator state is saved: dropout is seeded from the position of a forward pass (`step.py`),
samples carry their own randomness, and the learning rate is a function of the step. That is why a
resumed run is bitwise the same.
"""

from __future__ import annotations

import hashlib
import sys
import time
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from data_pipeline.collate import Batch
from data_pipeline.errors import UsageError, UserError
from data_pipeline.loader import Loader, open_loader
from data_pipeline.randomness import hash_key
from data_pipeline.sample import Kind
from data_pipeline.shards.manifest import Manifest
from data_pipeline.text import Tokenizer

from .config import RunConfig, TrainingConfig
from .job import Pretraining
from .optim import build_optimizer
from .parallel.engines import Engine
from .parallel.gather import gather_counts
from .parallel.selfcheck import check_samples, start
from .protocols import Job, Stop, TaskModel
from .resume import (
    changed_ranks_warning,
    check_position,
    choose_checkpoint,
    forget_lost_best,
    note_improvement,
)
from .run.checkpoint import Position, load_checkpoint, mark_best, save_checkpoint, set_aside
from .run.folder import RunFolder, record_failure
from .run.signals import STOPPED
from .step import Stepper
from .utilization import Meter, flop_counter

_PLURAL = {"image": "images", "video": "videos", "pair": "image pairs"}


def train(
    config: RunConfig, stop: Stop, *, resume: str = "auto", allow_change: tuple[str, ...] = ()
) -> int:
    """Pre-train a model; see `train_job`."""
    return train_job(Pretraining(config), stop, resume=resume, allow_change=allow_change)


def train_job(
    job: Job, stop: Stop, *, resume: str = "auto", allow_change: tuple[str, ...] = ()
) -> int:
    """Train a job to `config.steps`, from its first step or the run folder's last whole checkpoint.

    Parameters
    ----------
    job : Job
        The run.
    stop : Stop
        Asked after every step, on every rank; the run saves and stops when any rank has a reason.
    resume : str
        `auto` continues if there is a checkpoint, `never` refuses a folder that was used, and
        anything else names a checkpoint.
    allow_change : tuple of str
        Configuration keys that may differ from those that the folder was started with.

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
        ranks = f"{count} processes" if count > 1 else "1 process"
        by = f", {engine.name}" if count > 1 else ""
        _say(f"{ranks} on {accelerator.device.type}{by}, {config.precision}")
    # Only rank 0 holds the run folder: `run` is None elsewhere.
    run = RunFolder(config) if accelerator.is_main_process else None
    try:
        return _Training(job, engine, run, stop, resume, allow_change).train()
    except UsageError:
        raise  # The run was refused, so that its folder stays as it was.
    except BaseException as error:
        # A rank other than 0 writes only errors that name a cause: the rest of them follow from it.
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
        if config.optimizer.ema:
            engine.check_averaging()
        checkpoint = choose_checkpoint(run, resume, self._say)
        if run:
            run.check_config(allow_change)
        tokenizer = Tokenizer.load(config.data.tokenizer)
        # Before the model is built: its new parameters are drawn from this generator.
        torch.manual_seed(config.seed)
        self.model = job.build(tokenizer, checkpoint)
        self.task = job.task(tokenizer, self.model)
        self.saved_tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            config.data.tokenizer
        )
        micro_batch = config.batch.total // (accelerator.num_processes * config.micro_batches)
        engine.prepare(
            TaskModel(self.task, self.model),
            self.model,
            build_optimizer(self.model, config.optimizer),
            max(1, micro_batch),
            config.optimizer.max_grad_norm,
        )
        self.stepper = Stepper(config, self.task, self.model, engine, stop)
        self.position = Position(0, 0, {}, accelerator.num_processes, engine.name)
        if checkpoint:
            averaged = config.optimizer.ema is not None
            self.position = load_checkpoint(checkpoint, engine, averaged=averaged)
        self.loaders = self._open_loaders(tokenizer)
        if checkpoint:
            check_position(self.position, checkpoint, self.loaders, config)
            self.position = forget_lost_best(self.position, checkpoint.parent, config)
            self._say(f"resumed at step {self.position.step} from {checkpoint}")
            world = accelerator.num_processes
            if warning := changed_ranks_warning(self.position, world, config, self.task):
                self._say(warning)

    def train(self) -> int:
        """Take the remaining steps; returns the exit code."""
        config, first = self.config, self.position.step
        sizes = []
        for kind, mixture in config.mixtures.items():
            sizes.append(f"{mixture.global_batch} {_PLURAL[kind]}")
        self._say(f"step {first} of {config.steps}, {' and '.join(sizes)} a step")
        manifests = []
        for mixture in config.mixtures.values():
            manifests += [Manifest.load(folder) for folder in mixture.dirs]
        self._start_folder(manifests)
        if config.log.trackers:
            self.accelerator.init_trackers(
                "glscl", config={"seed": config.seed, "steps": config.steps}
            )
        self.meter = Meter(
            self.accelerator.device, config, sum(manifest.samples for manifest in manifests)
        )
        hidden = not (self.run and sys.stderr.isatty())
        bar = tqdm(total=config.steps, initial=first, unit="step", disable=hidden)
        with ExitStack() as opened:
            for loader in self.loaders.values():
                opened.enter_context(loader)
            for step in range(first, config.steps):
                stopped = self._take_step(step, is_first=step == first, bar=bar)
                if stopped and step + 1 < config.steps:
                    reason = self.stop.reason or "another rank was asked to stop"
                    self._finish("preempted", reason)
                    self._say(
                        f"stopped after step {step + 1} ({reason}); "
                        "the same command continues from there"
                    )
                    return STOPPED
        bar.close()
        self._finish("complete", "")
        self._say(f"complete after step {config.steps}: {config.run}")
        return 0

    def _start_folder(self, manifests: list[Manifest]) -> None:
        """Write what the run folder says of this start, and drop what lies past its first step."""
        run, step = self.run, self.position.step
        if not run:
            return
        run.write_config()
        self.job.record(run.path)
        set_aside(run.checkpoints, step)
        mark_best(run.checkpoints, self.position.best)
        run.trim_metrics(step)
        data = [{"path": str(m.root), "name": m.name, "digest": m.digest} for m in manifests]
        run.write_environment(self.accelerator.num_processes, str(self.accelerator.device), data)
        run.write_status("running", step)

    def _take_step(self, step: int, is_first: bool, bar: tqdm[Any]) -> bool:
        """Take one step, then validate, log and save if they are due; return whether to stop."""
        config, done = self.config, step + 1
        started = time.perf_counter()
        batches = self._next_batches()
        waited = time.perf_counter() - started
        if is_first:
            self._check_samples(batches)
            self.stepper.warm_up(batches)
        # Every step costs the same, so that one is counted; counting slows it down.
        with flop_counter() if is_first else nullcontext() as counter:
            row, stopped = self.stepper.take(step, batches, waited)
        if counter:
            self.meter.set_operations(counter.get_total_flops(), self.stepper.exact)
        self.meter.add(waited)
        self.position = replace(self.position, step=done, samples=done * config.batch.total)

        is_last = done == config.steps
        metrics: dict[str, float] = {}
        validation = config.validation
        if validation and (done % validation.every == 0 or is_last):
            metrics = self._validate()
        self.position, improved = note_improvement(self.position, metrics, self.task, config)
        if done % config.log.every == 0 or is_last or metrics or row["skipped"]:
            row |= {"samples": self.position.samples} | self.meter.read(done)
            row |= {"keys": self._hash_keys(step)} | metrics
            self._log({"step": done} | row, bar)
        bar.update()
        if done % config.checkpoint.every == 0 or is_last or stopped or improved:
            self._save()
        return stopped

    def _next_batches(self) -> list[Batch]:
        """Read this rank's micro-batches of a step; all ranks have the kinds in the same order."""
        device, batches = self.accelerator.device, []
        for loader in self.loaders.values():
            for _ in range(self.config.micro_batches):
                batches.append(next(loader).to(device, True))
        return batches

    def _check_samples(self, batches: list[Batch]) -> None:
        """Refuse to train if two ranks have read the same samples."""
        # Shifted, because a tensor of int64 has no room for an unsigned hash.
        [hashes] = gather_counts([hash_key([batch.keys for batch in batches]) >> 1])
        for mixture in self.config.mixtures.values():
            samples = sum(Manifest.load(folder).samples for folder in mixture.dirs)
            if samples < mixture.global_batch:
                return  # A step repeats samples, so that ranks may well agree.
        check_samples(hashes)

    def _validate(self) -> dict[str, float]:
        self.engine.wrapped.eval()
        metrics = self.task.validate(self.engine.wrapped, self.accelerator.device)
        return {f"validation/{name}": value for name, value in metrics.items()}

    def _hash_keys(self, step: int) -> str:
        """Hash the keys of all samples of a step: equal for runs that read the same ones."""
        keys: list[str] = []
        for loader in self.loaders.values():
            keys += loader.step_keys(step)
        return hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]

    def _save(self) -> None:
        data: dict[str, Any] = {}
        for kind, loader in self.loaders.items():
            data[kind] = loader.state(self.position.step)
        self.position = replace(
            self.position,
            data=data,
            world=self.accelerator.num_processes,
            engine=self.engine.name,
            scaler=self.engine.scaler,
        )
        checkpoints, keep = Path(self.config.run) / "checkpoints", self.config.checkpoint.keep
        save_checkpoint(checkpoints, self.engine, self.saved_tokenizer, self.position, keep)
        if self.run:
            self.run.write_status("running", self.position.step)
        # No rank may read the folder, or end, before rank 0 has written it.
        self.accelerator.wait_for_everyone()

    def _finish(self, state: str, reason: str) -> None:
        if self.run:
            self.run.write_status(state, self.position.step, reason)
        # Not `end_training`, which would also destroy the process group: the process may train
        # again, and ranks have to leave together (`parallel.join.leave`).
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def _open_loaders(self, tokenizer: Tokenizer) -> dict[Kind, Loader]:
        config, image_size = self.config, self.model.config.image_size
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
        loaders = {}
        for kind, mixture in config.mixtures.items():
            loaders[kind] = open_loader(
                mixture.dirs,
                weights=mixture.weights,
                global_batch=mixture.global_batch,
                lanes=mixture.lanes,
                group=mixture.group,
                frames=mixture.frames,
                size=mixture.image_size or image_size,
                **shared,
            )
        return loaders

    def _log(self, row: dict[str, Any], bar: tqdm[Any]) -> None:
        if self.run:
            self.run.append_metrics(row)
        if self.config.log.trackers:
            numbers = {k: v for k, v in row.items() if isinstance(v, float | int)}
            self.accelerator.log(numbers, step=row["step"])
        loss = "loss not finite" if row["loss"] is None else f"loss {row['loss']:.3f}"
        if row["skipped"]:
            loss += ", skipped"
        text = f"step {row['step']}  {loss}  {row['samples_per_second']:.0f} samples/s"
        validated = [f"{k} {v:.1f}" for k, v in row.items() if k.startswith("validation/")]
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
