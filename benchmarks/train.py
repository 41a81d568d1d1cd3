"""What dividing a batch costs: exact accumulation beside a plain step, ranks and engines beside one process.

    python -m benchmarks.train [--rounds 3] [--engines ddp fsdp2 zero2] [--world 2]

First the same 64 samples in k micro-batches, exact and plain, each in a process of its own (seconds and peak memory
above the model), then one recipe under every engine named. Small towers, so that a CPU can do it; dropout on, AdamW.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml

from benchmarks.nce import status
from benchmarks.step import random_batch, sizes
from pretrain.config import ObjectiveConfig, OptimizerConfig
from pretrain.model import GLSCLModel
from pretrain.optim import build_optimizer
from pretrain.parallel.accumulate import accumulate_exactly
from pretrain.parallel.selfcheck import start
from pretrain.task import PretrainTask, TaskModel

BATCH = 64


def accumulate(micro_batches: int, exact: bool, rounds: int) -> dict[str, float]:
    """Median seconds of a step and its peak memory above model and batch in MB, in this process."""
    engine, task = start("fp32", (), ".", None), PretrainTask(ObjectiveConfig())
    torch.manual_seed(0)
    config = sizes(tiny=True)
    model = GLSCLModel(config).train()
    engine.prepare(TaskModel(task, model), model, build_optimizer(model, OptimizerConfig(lr=1e-6)), BATCH, 1.0)
    batches = [random_batch(config, BATCH // micro_batches, False, seed=n) for n in range(micro_batches)]
    counts = task.counts(batches)

    def step() -> None:
        if exact:
            accumulate_exactly(task, engine, batches, counts, [1.0] * len(batches), torch.manual_seed)
        else:
            for batch, count in zip(batches, counts, strict=True):
                losses = task.losses(engine.wrapped("features", batch), count)
                engine.backward(losses.total / len(batches))
        engine.gradient_norm()
        engine.update(finite=True)

    before = status("VmRSS")
    times = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return {"seconds": statistics.median(times[1:]), "memory": status("VmHWM") - before}


def alone(*words: str) -> dict[str, float]:
    """Measure in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.train", *words]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(found.stdout.splitlines()[-1])


def under(engine: str, world: int, folder: Path, steps: int) -> float:
    """Measure samples a second of a run under an engine, without its first steps."""
    tower = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = {
        "run": str(folder / f"{engine}{world}"),
        "steps": steps,
        "world": world,
        "precision": "fp32",
        "batch": {"image": BATCH},
        "data": {"train": [{"path": str(folder / "scenes" / "train")}], "tokenizer": str(folder / "tokenizer")},
        "model": {
            "vision": tower | {"patch_size": 16, "image_size": 96},
            "text": tower | {"max_position_embeddings": 64},
            "fusion": {
                **{"hidden_size": 128, "fusion_layers": 2, "fusion_heads": 4, "fusion_intermediate_size": 512},
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
    launch += ["--num_processes", str(world), "--main_process_port", "0", "-m", "pretrain", str(file)]
    subprocess.run(launch, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    rows = [json.loads(line) for line in (folder / f"{engine}{world}" / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(row["samples_per_second"] for row in rows[3:])


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engines", nargs="*", default=["ddp", "fsdp2", "zero1", "zero2", "zero3"])
    parser.add_argument("--worlds", nargs="*", type=int, default=[1, 2, 4], help="ranks under DDP")
    parser.add_argument("--accumulate", nargs=2, metavar=("K", "HOW"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.accumulate:
        count, how = options.accumulate
        print(json.dumps(accumulate(int(count), how == "exact", options.rounds)))
        return
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
    print(f"{BATCH} samples a step\n{'micro-batches':>14}{'':8}{'s/step':>9}{'of one batch':>14}{'memory MB':>11}")
    rounds = ("--rounds", str(options.rounds))
    whole = alone("--accumulate", "1", "plain", *rounds)
    for count, how in ((1, "plain"), (2, "plain"), (2, "exact"), (4, "plain"), (4, "exact"), (8, "exact")):
        found = whole if count == 1 else alone("--accumulate", str(count), how, *rounds)
        ratio = found["seconds"] / whole["seconds"]
        print(f"{count:>14} {how:7}{found['seconds']:9.2f}{ratio:14.2f}{found['memory']:11.0f}")
    from data_pipeline.manifest import Manifest
    from data_pipeline.scenes.generate import generate
    from data_pipeline.store import Store
    from data_pipeline.text import Tokenizer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate(folder / "scenes", train=512, val=0, test=0, novel=0, size=96, seed=0, workers=2)
        store = Store([Manifest.load(folder / "scenes" / "train")])
        captions = [caption for n in range(512) for caption in store.read(0, n).captions]
        Tokenizer.train(captions, 1000).save(folder / "tokenizer")
        print(f"\n{'engine':>8}{'ranks':>7}{'samples/s':>11}  (one thread each)")
        runs = [("ddp", world) for world in options.worlds] if "ddp" in options.engines else []
        for engine, world in [*runs, *((engine, 2) for engine in options.engines if engine != "ddp")]:
            print(f"{engine:>8}{world:>7}{under(engine, world, folder, 12):11.1f}", flush=True)


if __name__ == "__main__":
    main()
