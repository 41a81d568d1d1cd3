"""Cost of dividing a batch: exact accumulation, several ranks, and engines.

    python -m benchmarks.train [--rounds 3] [--engines ddp fsdp2 zero2] [--worlds 1 2]

First, k micro-batches of one size with plain and exact accumulation, each in a separate process:
seconds per step, and peak memory (with freed blocks kept by the C library, and with freed blocks
returned at once), compared with the estimate of `glscl plan`. Then one recipe with each engine.
Towers are small, so that a CPU can run it; dropout on, AdamW.
"""

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import yaml

from benchmarks.memory import status
from benchmarks.step import random_batch, sizes
from data_pipeline.collate import Batch
from pretrain.accumulate import accumulate_exactly, accumulate_plainly
from pretrain.config import ObjectiveConfig, OptimizerConfig
from pretrain.model import GLSCLConfig, GLSCLModel
from pretrain.optim import build_optimizer
from pretrain.parallel.selfcheck import start
from pretrain.planning.memory import step_memory
from pretrain.task import PretrainTask, TaskModel

BATCH = 64


def accumulate(micro_batches: int, exact: bool, size: int, rounds: int) -> dict[str, float]:
    """Measure seconds per step and peak memory in MB, and estimate it as `glscl plan` does."""
    engine, task = start("fp32", (), ".", None), PretrainTask(ObjectiveConfig())
    config = sizes(tiny=True)

    def prepared(
        config: GLSCLConfig, size: int
    ) -> tuple[GLSCLModel, list[Batch], Callable[[], None]]:
        torch.manual_seed(0)
        model = GLSCLModel(config).train()
        engine.prepare(
            TaskModel(task, model),
            model,
            build_optimizer(model, OptimizerConfig(lr=1e-6)),
            size,
            1.0,
        )
        batches = [random_batch(config, size, False, seed=n) for n in range(micro_batches)]

        def step() -> None:
            accumulate = accumulate_exactly if exact else accumulate_plainly
            shares = [1 / len(batches)] * len(batches)
            accumulate(task, engine, batches, task.counts(batches), shares, torch.manual_seed)
            engine.gradient_norm()
            engine.update(finite=True)

        return model, batches, step

    # Libraries load code and allocate pools at their first use. A tiny step does so first, so that
    # they are not counted.
    smallest = copy.deepcopy(config)
    smallest.vision_config.num_hidden_layers = 1
    smallest.text_config.num_hidden_layers = 1
    smallest.fusion_layers = 1
    _, _, tiny_step = prepared(smallest, 2)
    tiny_step()
    before = status("VmRSS")
    model, batches, step = prepared(config, size)
    times = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    memory = status("VmHWM") - before
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    estimate = (16 * parameters + step_memory(task, model, batches[0], micro_batches, exact)) / 1e6
    return {"seconds": statistics.median(times[1:]), "memory": memory, "estimate": estimate}


def alone(*words: str, exact_heap: bool = False) -> dict[str, float]:
    """Measure in a separate process.

    With `exact_heap`, freed blocks are returned to the system at once, which is slower.
    """
    command = [sys.executable, "-m", "benchmarks.train", "--accumulate", *words]
    heap = {"MALLOC_MMAP_THRESHOLD_": "262144"} if exact_heap else {}
    environment = os.environ | heap
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def under(engine: str, world: int, folder: Path, steps: int) -> float:
    """Measure samples per second of a run with an engine, without its first steps."""
    tower = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    config = {
        "run": str(folder / f"{engine}{world}"),
        "steps": steps,
        "world": world,
        "precision": "fp32",
        "batch": {"image": BATCH},
        "data": {
            "train": [{"path": str(folder / "scenes" / "train")}],
            "tokenizer": str(folder / "tokenizer"),
        },
        "model": {
            "vision": tower | {"patch_size": 16, "image_size": 96},
            "text": tower | {"max_position_embeddings": 64},
            "fusion": {
                "hidden_size": 128,
                "fusion_layers": 2,
                "fusion_heads": 4,
                "fusion_intermediate_size": 512,
                "projection_dim": 128,
            },
        },
        "log": {"every": 1},
        "checkpoint": {"every": steps},
    }
    file = folder / f"{engine}{world}.yaml"
    file.write_text(yaml.safe_dump(config))
    accelerate = Path("launch") / "accelerate" / f"{engine}.yaml"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(accelerate)]
    launch += ["--num_processes", str(world), "--main_process_port", "0"]
    launch += ["-m", "pretrain", str(file)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(launch, check=True, capture_output=True, env=environment)
    lines = (folder / f"{engine}{world}" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return statistics.median(row["samples_per_second"] for row in rows[3:])


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engines", nargs="*", default=["ddp", "fsdp2", "zero1", "zero2", "zero3"])
    parser.add_argument("--worlds", nargs="*", type=int, default=[1, 2, 4], help="ranks under DDP")
    parser.add_argument(
        "--accumulate", nargs=3, metavar=("K", "HOW", "SIZE"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.accumulate:
        count, how, size = options.accumulate
        print(json.dumps(accumulate(int(count), how == "exact", int(size), options.rounds)))
        return
    print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
    )
    print(f"{'micro-batches':>14}{'of':>4}   {'plain s/step':>13}{'exact':>7}{'ratio':>7}", end="")
    print(
        f"{'memory MB':>11}{'returned':>10}{'planned':>9}{'exact':>8}{'returned':>10}{'planned':>9}"
    )
    for count, size in ((2, 32), (4, 16), (8, 16), (16, 16)):
        plain_words = (str(count), "plain", str(size), "--rounds")
        exact_words = (str(count), "exact", str(size), "--rounds")
        plain = alone(*plain_words, str(options.rounds))
        exact = alone(*exact_words, str(options.rounds))
        print(f"{count:>14}{size:>4}   {plain['seconds']:13.2f}{exact['seconds']:7.2f}", end="")
        print(f"{exact['seconds'] / plain['seconds']:7.2f}", end="")
        for cost, words, space in ((plain, plain_words, 11), (exact, exact_words, 8)):
            returned = alone(*words, "1", exact_heap=True)["memory"]
            print(f"{cost['memory']:{space}.0f}{returned:10.0f}", end="")
            print(f"{cost['estimate']:9.0f}", end="", flush=True)
        print()
    from data_pipeline.scenes.generate import generate
    from data_pipeline.shards.manifest import Manifest
    from data_pipeline.shards.store import Store
    from data_pipeline.text import Tokenizer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate(folder / "scenes", train=512, val=0, test=0, novel=0, size=96, seed=0, workers=2)
        store = Store([Manifest.load(folder / "scenes" / "train")])
        captions: list[str] = []
        for number in range(512):
            captions += store.read(0, number).captions
        Tokenizer.train(captions, 1000).save(folder / "tokenizer")
        print(f"\n{'engine':>8}{'ranks':>7}{'samples/s':>11}  (one thread each)")
        runs = [("ddp", world) for world in options.worlds] if "ddp" in options.engines else []
        runs += [(engine, 2) for engine in options.engines if engine != "ddp"]
        for engine, world in runs:
            print(f"{engine:>8}{world:>7}{under(engine, world, folder, 12):11.1f}", flush=True)


if __name__ == "__main__":
    main()
