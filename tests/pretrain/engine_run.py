"""What every engine must do in the same way; test_engines runs this under accelerate launch.

engine_run.py SETTINGS FOLDER [PRECISION]     with a precision: only one update
"""

import dataclasses
import json
import resource
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from data_pipeline.errors import UserError
from data_pipeline.loader import open_loader
from data_pipeline.text import Tokenizer
from pretrain.accumulate import accumulate_exactly
from pretrain.build import build_model
from pretrain.config import RunConfig
from pretrain.config_file import parse_config
from pretrain.job import Pretraining
from pretrain.loop import train, train_job
from pretrain.parallel.engines import Engine
from pretrain.parallel.join import leave
from pretrain.parallel.selfcheck import start
from pretrain.protocols import TaskModel
from pretrain.task import PretrainTask
from tests.pretrain.runs import StopAfter


def updated(config: RunConfig, engine: Engine) -> dict[str, torch.Tensor]:
    """Take one step of plain gradient descent on images and videos; return the weights.

    Dropout is off, and the norm of the gradient is returned as `norm`.
    """
    tokenizer, video = Tokenizer.load(config.data.tokenizer), config.data.video
    torch.manual_seed(0)
    model = build_model(config.model, tokenizer, config.data.max_text_length, video.frames)
    accelerator, task = engine.accelerator, PretrainTask(config.objectives)
    options = {
        "seed": 1,
        "rank": accelerator.process_index,
        "world": accelerator.num_processes,
        "group": 2,
        "size": 48,
        "tokenizer": tokenizer,
        "max_text_length": config.data.max_text_length,
        "micro_batches": config.micro_batches,
        "global_batch": config.batch.image,
    }
    batches = []
    for sources, frames in ((config.data.train, None), (video.train, video.frames)):
        with open_loader([source.path for source in sources], frames=frames, **options) as loader:
            batches += [next(loader) for _ in range(config.micro_batches)]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    engine.prepare(TaskModel(task, model), model, optimizer, 4, None)
    engine.wrapped.train()  # DeepSpeed has no backward pass in eval mode
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    counts = task.counts(batches)
    shares = [1 / len(batches)] * len(batches)
    accumulate_exactly(task, engine, batches, counts, shares, torch.manual_seed)
    norm = engine.gradient_norm()
    assert not engine.update(bool(torch.isfinite(norm)))
    result = {"norm": norm}
    for name, value in engine.weights().items():
        result[name] = value.detach().float().clone()
    return result


def save_updates(config: RunConfig, engine: Engine, folder: Path, counts: tuple[int, ...]) -> None:
    """Save the weights after one update, for each number of micro-batches in `counts`."""
    for micro_batches in counts:
        result = updated(dataclasses.replace(config, micro_batches=micro_batches), engine)
        if engine.accelerator.is_main_process:
            save_file(result, folder / f"update{micro_batches}.safetensors")


def in_two_parts(config: RunConfig, folder: Path) -> None:
    """Train without a stop, and again with a stop in between."""
    whole = dataclasses.replace(config, run=str(folder / "whole"))
    parts = dataclasses.replace(config, run=str(folder / "parts"))
    assert train(whole, StopAfter()) == 0
    assert train(parts, StopAfter(3)) == 75
    assert train(parts, StopAfter()) == 0


def with_a_broken_gradient(config: RunConfig, engine: Engine, folder: Path) -> None:
    """Train with NaN on one rank in one step."""
    broken = dataclasses.replace(config, run=str(folder / "broken"), steps=3, validation=None)
    save_error(folder, "broken", engine, BreaksOnce(broken, engine))


class BreaksOnce(Pretraining):
    """Pre-training whose matching logits are NaN in the second step of rank 1."""

    def __init__(self, config: RunConfig, engine: Engine):
        super().__init__(config)
        self.rank, self.warm_ups = engine.accelerator.process_index, int(engine.warms_up)

    def task(self, tokenizer, model):
        job, calls = self, []

        class BreakingTask(PretrainTask):
            def features(self, model, batch):
                features = super().features(model, batch)
                calls.append(batch)
                # A step computes four micro-batches twice; a warm-up may come before the first.
                step = (len(calls) - 1 - job.warm_ups) // 8
                if job.rank == 1 and step == 1:
                    logits = features.matching_logits * float("nan")
                    features = features._replace(matching_logits=logits)
                return features

        return BreakingTask(self.config.objectives)


def with_a_full_disk(config: RunConfig, engine: Engine, folder: Path) -> None:
    """Train to the second checkpoint, which one rank cannot write; then resume."""
    full = dataclasses.replace(config, run=str(folder / "full"), steps=4, validation=None)
    assert train(full, StopAfter(1)) == 75
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if engine.accelerator.process_index == (0 if engine.portable else 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    save_error(folder, "full", engine, Pretraining(full))
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    if engine.accelerator.is_main_process:
        names = sorted(path.name for path in (folder / "full" / "checkpoints").iterdir())
        (folder / "checkpoints").write_text(" ".join(names))
    engine.accelerator.wait_for_everyone()
    assert train(full, StopAfter()) == 0


def save_error(folder: Path, name: str, engine: Engine, job: Pretraining) -> None:
    """Train, and save the error message of each rank, empty if there was none."""
    message = ""
    try:
        train_job(job, StopAfter())
    except (UserError, OSError) as error:
        message = f"{type(error).__name__}: {error}"
    (folder / f"{name}{engine.accelerator.process_index}").write_text(message)


def main() -> None:
    """Run everything, or only one update."""
    values, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    precision = sys.argv[3] if len(sys.argv) > 3 else None
    engine = start(precision or "fp32", (), ".", None)
    config: RunConfig = parse_config(RunConfig, values, "settings")
    if precision:
        save_updates(config, engine, folder, (1,))
    else:
        save_updates(config, engine, folder, (1, 2))
        in_two_parts(config, folder)
        with_a_broken_gradient(config, engine, folder)
        with_a_full_disk(config, engine, folder)
    leave()


if __name__ == "__main__":
    main()
