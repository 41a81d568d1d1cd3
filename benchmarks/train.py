"""What dividing a batch costs: exact accumulation beside a plain step, ranks and engines beside one process.

    python -m benchmarks.train [--rounds 3] [--engines ddp fsdp2 zero2] [--worlds 1 2]

First k micro-batches of a size, plain and exact in turn, each in a process of its own: seconds a
step, and peak memory (as the C library keeps it, and with freed blocks returned at once) beside the
estimate of `glscl plan`. Then one recipe under every engine named. Small towers, so that a CPU can
do it; dropout on, AdamW.
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

from benchmarks.nce import status
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
    """Median seconds of a step, its peak memory in MB, model included, and what `glscl plan` says of that."""
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

    # Libraries load code and make pools at their first use: what a step of almost nothing takes is
    # not the step's.
    smallest = copy.deepcopy(config)
    smallest.vision_config.num_hidden_layers = smallest.text_config.num_hidden_layers = (
        smallest.fusion_layers
    ) = 1
    prepared(smallest, 2)[2]()
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
    """Measure in a process of its own; with `exact_heap` freed blocks go back to the system, which takes time."""
    command = [sys.executable, "-m", "benchmarks.train", "--accumulate", *words]
    heap = {"MALLOC_MMAP_THRESHOLD_": "262144"} if exact_heap else {}
    found = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | heap
    )
    return json.loads(found.stdout.splitlines()[-1])


def under(engine: str, world: int, folder: Path, steps: int) -> float:
    """Measure samples a second of a run under an engine, without its first steps."""
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
                **{
                    "hidden_size": 128,
                    "fusion_layers": 2,
                    "fusion_heads": 4,
                    "fusion_intermediate_size": 512,
                },
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
    launch += [
        "--num_processes",
        str(world),
        "--main_process_port",
        "0",
        "-m",
        "pretrain",
        str(file),
    ]
    subprocess.run(
        launch, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    rows = [
        json.loads(line)
        for line in (folder / f"{engine}{world}" / "metrics.jsonl").read_text().splitlines()
    ]
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
        words = {how: (str(count), how, str(size), "--rounds") for how in ("plain", "exact")}
        plain, exact = (alone(*of, str(options.rounds)) for of in words.values())
        print(f"{count:>14}{size:>4}   {plain['seconds']:13.2f}{exact['seconds']:7.2f}", end="")
        print(f"{exact['seconds'] / plain['seconds']:7.2f}", end="")
        for found, of, space in ((plain, words["plain"], 11), (exact, words["exact"], 8)):
            returned = alone(*of, "1", exact_heap=True)["memory"]
            print(
                f"{found['memory']:{space}.0f}{returned:10.0f}{found['estimate']:9.0f}",
                end="",
                flush=True,
            )
        print()
    from data_pipeline.scenes.generate import generate
    from data_pipeline.shards.manifest import Manifest
    from data_pipeline.shards.store import Store
    from data_pipeline.text import Tokenizer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate(folder / "scenes", train=512, val=0, test=0, novel=0, size=96, seed=0, workers=2)
        store = Store([Manifest.load(folder / "scenes" / "train")])
        captions = [caption for n in range(512) for caption in store.read(0, n).captions]
        Tokenizer.train(captions, 1000).save(folder / "tokenizer")
        print(f"\n{'engine':>8}{'ranks':>7}{'samples/s':>11}  (one thread each)")
        runs = [("ddp", world) for world in options.worlds] if "ddp" in options.engines else []
        for engine, world in [
            *runs,
            *((engine, 2) for engine in options.engines if engine != "ddp"),
        ]:
            print(f"{engine:>8}{world:>7}{under(engine, world, folder, 12):11.1f}", flush=True)


if __name__ == "__main__":
    main()
