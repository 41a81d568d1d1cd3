"""Tiny fine-tuning runs and their first steps, for test_finetune.

finetune_ranks.py RUNS FOLDER     run under accelerate launch: both, on every rank
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from data_pipeline.loader import open_loader
from data_pipeline.text import Tokenizer
from eval.finetuning.config import FinetuneConfig
from eval.finetuning.job import Finetuning
from pretrain.accumulate import accumulate_exactly, accumulate_plainly
from pretrain.config_file import parse_config
from pretrain.loop import train_job
from pretrain.parallel.join import leave
from pretrain.parallel.selfcheck import start
from pretrain.protocols import TaskModel
from tests.pretrain.runs import StopAfter


def settings_of(task: str, colours: Path, run: Path) -> dict:
    data = colours / "pairs" if task == "nlvr2" else colours
    return {
        "run": str(run),
        "task": task,
        "init_from": str(colours / "model"),
        "steps": 4,
        "precision": "fp32",
        "batch": {"image": 8},
        "data": {
            "train": [{"path": str(data / "train")}],
            "tokenizer": str(colours / "tokenizer"),
            "max_text_length": 16,
            "workers": 0,
            "group": 4,
        },
        "optimizer": {"lr": 1e-3, "warmup": 0.2},
        "validation": {"path": str(data / "val"), "every": 2, "batch_size": 5},
        "checkpoint": {"every": 3, "keep": 1},
        "log": {"every": 1},
    }


def job(settings: dict, **changed) -> Finetuning:
    return Finetuning(parse_config(FinetuneConfig, settings | changed, "settings"))


def one_step(settings: dict, micro_batches: int = 1):
    """Take the first step in float64: the model, its batches, the losses and the gradients."""
    run = job(settings, micro_batches=micro_batches)
    config, tokenizer = run.config, Tokenizer.load(run.config.data.tokenizer)
    torch.manual_seed(0)
    model = run.build(tokenizer, None)
    task = run.task(tokenizer, model)
    [mixture] = config.mixtures.values()
    engine = start("fp32", (), ".", None)
    options = {
        "seed": 1,
        "global_batch": mixture.global_batch,
        "group": mixture.group,
        "size": model.config.image_size,
        "rank": engine.accelerator.process_index,
        "world": engine.accelerator.num_processes,
        "tokenizer": tokenizer,
        "max_text_length": 16,
        "micro_batches": micro_batches,
        "frames": mixture.frames,
    }
    with open_loader(mixture.dirs, **options, **run.reading()) as loader:
        batches = [next(loader) for _ in range(micro_batches)]
    engine.prepare(
        TaskModel(task, model.double()), model, torch.optim.SGD(model.parameters()), 1, None
    )
    engine.wrapped.eval()  # turns dropout off; the engine still averages gradients
    accumulate = accumulate_exactly if task.contrasts else accumulate_plainly
    shares = [1 / micro_batches] * micro_batches
    parts, _ = accumulate(task, engine, batches, task.counts(batches), shares, torch.manual_seed)
    losses = {}
    for name in parts[0]:
        losses[name] = torch.stack([part[name] for part in parts]).mean()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return model, batches, losses, gradients


def main() -> None:
    """Save the gradients of the first step of each run, then take all its steps."""
    runs, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    engine = start("fp32", (), ".", None)
    for number, settings in enumerate(runs):
        if engine.name == "ddp":
            *_, losses, gradients = one_step(settings)
            reduced = {}
            for name, value in losses.items():
                reduced[name] = engine.accelerator.reduce(value.detach(), "mean").reshape(1)
            if engine.accelerator.is_main_process:
                save_file(gradients | reduced, folder / f"{number}.safetensors")
        assert train_job(job(settings), StopAfter()) == 0
    leave()


if __name__ == "__main__":
    main()
