"""Run by test_engines under accelerate launch: one engine, everything that must be the same on all of them.

engine_run.py SETTINGS FOLDER [PRECISION]     with a precision: one update alone
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
from pretrain.loop import train
from pretrain.parallel.engines import Engine
from pretrain.parallel.selfcheck import start
from pretrain.task import PretrainTask, TaskModel
from tests.pretrain.runs import StopAfter


def updated(config: RunConfig, engine: Engine) -> dict[str, torch.Tensor]:
    """Weights after one step of plain gradient descent on the first batch of pictures and clips, dropout off."""
    tokenizer, video = Tokenizer.load(config.data.tokenizer), config.data.video
    torch.manual_seed(0)
    model = build_model(config.model, tokenizer, config.data.max_text_length, video.frames)
    accelerator, task = engine.accelerator, PretrainTask(config.objectives)
    shared = {
        "seed": 1,
        "rank": accelerator.process_index,
        "world": accelerator.num_processes,
        "group": 2,
        "size": 48,
    }
    shared |= {"tokenizer": tokenizer, "max_text_length": config.data.max_text_length}
    shared |= {"micro_batches": config.micro_batches, "global_batch": config.batch.image}
    batches = []
    for sources, frames in ((config.data.train, None), (video.train, video.frames)):
        with open_loader([source.path for source in sources], frames=frames, **shared) as loader:
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
    return {name: value.detach().float().clone() for name, value in engine.weights().items()} | {
        "norm": norm
    }


def save_updates(config: RunConfig, engine: Engine, folder: Path, of: tuple[int, ...]) -> None:
    """Write the weights after one update in so many micro-batches."""
    for micro_batches in of:
        result = updated(dataclasses.replace(config, micro_batches=micro_batches), engine)
        if engine.accelerator.is_main_process:
            save_file(result, folder / f"update{micro_batches}.safetensors")


def in_two_parts(config: RunConfig, folder: Path) -> None:
    """Train at once, and again with a stop between."""
    whole, parts = (
        dataclasses.replace(config, run=str(folder / name)) for name in ("whole", "parts")
    )
    assert train(whole, StopAfter()) == 0
    assert train(parts, StopAfter(3)) == 75
    assert train(parts, StopAfter()) == 0


def with_a_broken_gradient(config: RunConfig, engine: Engine, folder: Path) -> None:
    """Train with NaN on one rank in one step."""
    broken = dataclasses.replace(config, run=str(folder / "broken"), steps=3)
    forward = TaskModel.forward
    calls = []

    def spoilt(self, function, *inputs):
        features = forward(self, function, *inputs)
        calls.append(function)
        # The second step of rank 1 alone. A step computes four micro-batches twice; the first call
        # may be the warm-up.
        if engine.accelerator.process_index == 1 and (len(calls) - 1 - engine.warms_up) // 8 == 1:
            features = features._replace(matching_logits=features.matching_logits * float("nan"))
        return features

    TaskModel.forward = spoilt
    said(folder, "broken", engine, dataclasses.replace(broken, validation=None))
    TaskModel.forward = forward


def with_a_full_disk(config: RunConfig, engine: Engine, folder: Path) -> None:
    """Train until the second checkpoint, which one rank cannot write; then go on."""
    full = dataclasses.replace(config, run=str(folder / "full"), steps=4, validation=None)
    assert train(full, StopAfter(1)) == 75
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if engine.accelerator.process_index == (0 if engine.portable else 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    said(folder, "full", engine, full)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    if engine.accelerator.is_main_process:
        (folder / "checkpoints").write_text(
            " ".join(sorted(p.name for p in (folder / "full" / "checkpoints").iterdir()))
        )
    engine.accelerator.wait_for_everyone()
    assert train(full, StopAfter()) == 0


def said(folder: Path, name: str, engine: Engine, config: RunConfig) -> None:
    """Train and write down the error, of each rank."""
    message = ""
    try:
        train(config, StopAfter())
    except (UserError, OSError) as error:
        message = f"{type(error).__name__}: {error}"
    (folder / f"{name}{engine.accelerator.process_index}").write_text(message)


def main() -> None:
    """Everything, or one update."""
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
    engine.accelerator.end_training()


if __name__ == "__main__":
    main()
