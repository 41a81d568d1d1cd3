"""What dividing a batch costs, and what each engine and number of ranks achieves.

    python -m benchmarks.train [--rounds 3] [--engines ddp fsdp2 zero2] [--worlds 1 2]

The first table compares exact accumulation with plain, for several numbers and sizes of
micro-batches: seconds per step and peak memory, each measured in a separate process, and the
estimate of `glscl plan`. Memory is measured as the C library keeps it, and with freed blocks
returned at once. The second table runs one recipe under every engine named and prints samples per
second. Towers are small, so that a CPU computes them quickly. Dropout is on; the optimizer is
AdamW.
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
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import yaml

from benchmarks.measurement import process_memory, run_alone, software
from benchmarks.step import SMALL_FUSION, SMALL_TOWER, model_config, random_batch
from data_pipeline.collate import Batch
from pretrain.accumulate import accumulate_exactly, accumulate_plainly
from pretrain.config import ObjectiveConfig, OptimizerConfig
from pretrain.model import GLSCLConfig, GLSCLModel
from pretrain.optim import build_optimizer
from pretrain.parallel import ENGINES
from pretrain.parallel.engines import Engine
from pretrain.parallel.selfcheck import start
from pretrain.planning.memory import step_memory
from pretrain.task import PretrainTask, TaskModel

BATCH = 64
DIVISIONS = ((2, 32), (4, 16), (8, 16), (16, 16))  # micro-batches and their size
STEPS = 12  # of a run under an engine
# The C library returns blocks of at least this size to the system when they are freed. The default
# grows while a program runs, up to 32 MB, and blocks below it are kept.
RETURN_FREED_BLOCKS = {"MALLOC_MMAP_THRESHOLD_": "262144"}


def prepare_step(
    task: PretrainTask,
    engine: Engine,
    config: GLSCLConfig,
    size: int,
    micro_batches: int,
    exact: bool,
) -> tuple[GLSCLModel, list[Batch], Callable[[], None]]:
    """Build a model, the micro-batches of a step, and the function that runs the step."""
    torch.manual_seed(0)
    model = GLSCLModel(config).train()
    optimizer = build_optimizer(model, OptimizerConfig(lr=1e-6))
    engine.prepare(TaskModel(task, model), model, optimizer, size, 1.0)
    batches = [random_batch(config, size, False, seed=n) for n in range(micro_batches)]
    shares = [1 / micro_batches] * micro_batches

    def seed(number: int) -> None:
        # Both passes over a micro-batch must draw the same dropout.
        torch.manual_seed(number)

    def step() -> None:
        accumulate = accumulate_exactly if exact else accumulate_plainly
        accumulate(task, engine, batches, task.counts(batches), shares, seed)
        engine.gradient_norm()
        engine.update(finite=True)

    return model, batches, step


def measure_accumulation(
    micro_batches: int, exact: bool, size: int, rounds: int
) -> dict[str, float]:
    """Median seconds of a step, and megabytes of its peak and of what `glscl plan` estimates.

    Both include the model. The peak is that of the process: call this in a fresh one.
    """
    engine = start("fp32", (), ".", None)
    task = PretrainTask(ObjectiveConfig())
    config = model_config(small=True)
    # Libraries load code and make pools at their first use. A step of almost nothing does that now,
    # so that its memory is not taken for the step's.
    smallest = copy.deepcopy(config)
    smallest.vision_config.num_hidden_layers = 1
    smallest.text_config.num_hidden_layers = 1
    smallest.fusion_layers = 1
    # The small model gets no name, so that it is freed before the other is built.
    prepare_step(task, engine, smallest, 2, micro_batches, exact)[2]()
    before = process_memory("VmRSS")
    model, batches, step = prepare_step(task, engine, config, size, micro_batches, exact)
    times = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    memory = process_memory("VmHWM") - before
    parameters = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    # 16 bytes per weight: itself, its gradient, and two moments of AdamW, in float32.
    estimate = 16 * parameters + step_memory(task, model, batches[0], micro_batches, exact)
    # The first step fills the optimizer's moments, and is slower.
    seconds = statistics.median(times[1:])
    return {"seconds": seconds, "memory": memory, "estimate": estimate / 1e6}


def accumulate_alone(
    micro_batches: int, how: str, size: int, rounds: int, *, return_freed: bool = False
) -> dict[str, float]:
    """Measure accumulation in a separate process.

    With `return_freed`, freed blocks go back to the system at once, which takes time.
    """
    return run_alone(
        "benchmarks.train",
        *("--accumulate", str(micro_batches), how, str(size)),
        *("--rounds", str(rounds)),
        environment=RETURN_FREED_BLOCKS if return_freed else None,
    )


def print_accumulation(rounds: int) -> None:
    """Print the first table: one row per division of a batch."""
    print(f"{'micro-batches':>14}{'of':>4}   {'plain s/step':>13}{'exact':>7}{'ratio':>7}", end="")
    print(f"{'memory MB':>11}{'returned':>10}{'planned':>9}", end="")
    print(f"{'exact':>8}{'returned':>10}{'planned':>9}")
    for count, size in DIVISIONS:
        plain = accumulate_alone(count, "plain", size, rounds)
        exact = accumulate_alone(count, "exact", size, rounds)
        print(f"{count:>14}{size:>4}   {plain['seconds']:13.2f}{exact['seconds']:7.2f}", end="")
        print(f"{exact['seconds'] / plain['seconds']:7.2f}", end="")
        for how, measured, space in (("plain", plain, 11), ("exact", exact, 8)):
            returned = accumulate_alone(count, how, size, 1, return_freed=True)["memory"]
            print(f"{measured['memory']:{space}.0f}{returned:10.0f}", end="")
            print(f"{measured['estimate']:9.0f}", end="", flush=True)
        print()


def run_config(folder: Path, run: Path, world: int, steps: int) -> dict[str, object]:
    """Return the recipe of the second table, as the YAML file of a run holds it."""
    return {
        "run": str(run),
        "steps": steps,
        "world": world,
        "precision": "fp32",
        "batch": {"image": BATCH},
        "data": {
            "train": [{"path": str(folder / "scenes" / "train")}],
            "tokenizer": str(folder / "tokenizer"),
        },
        "model": {
            "vision": SMALL_TOWER | {"patch_size": 16, "image_size": 96},
            "text": SMALL_TOWER | {"max_position_embeddings": 64},
            "fusion": SMALL_FUSION | {"projection_dim": 128},
        },
        "log": {"every": 1},
        "checkpoint": {"every": steps},
    }


def samples_per_second(engine: str, world: int, folder: Path, steps: int) -> float:
    """Median speed of a run under an engine, without its first steps."""
    run = folder / f"{engine}{world}"
    config = folder / f"{engine}{world}.yaml"
    config.write_text(yaml.safe_dump(run_config(folder, run, world, steps)))
    accelerate = Path("launch") / "accelerate" / f"{engine}.yaml"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(accelerate)]
    # Port 0 lets the system choose a free one.
    launch += ["--num_processes", str(world), "--main_process_port", "0"]
    launch += ["-m", "pretrain", str(config)]
    # One thread per rank, so that more ranks do not compete for the cores with their threads.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(launch, check=True, capture_output=True, env=environment)
    speeds = []
    for line in (run / "metrics.jsonl").read_text().splitlines():
        speeds.append(json.loads(line)["samples_per_second"])
    return statistics.median(speeds[3:])


def print_engines(engines: Sequence[str], worlds: Sequence[int]) -> None:
    """Print the second table: DDP on each number of ranks, the other engines on two."""
    # Imported here, because the processes that measure memory do not need them.
    from data_pipeline.scenes.generate import generate
    from data_pipeline.text import train_tokenizer

    runs = []
    for engine in engines:
        for world in worlds if engine == "ddp" else [2]:
            runs.append((engine, world))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate(folder / "scenes", train=512, val=0, test=0, novel=0, size=96, seed=0, workers=2)
        train_tokenizer([folder / "scenes" / "train"], folder / "tokenizer", 1000)
        print(f"\n{'engine':>8}{'ranks':>7}{'samples/s':>11}  (one thread each)")
        for engine, world in runs:
            speed = samples_per_second(engine, world, folder, STEPS)
            print(f"{engine:>8}{world:>7}{speed:11.1f}", flush=True)


def main() -> None:
    """Print both tables, or measure one accumulation as the separate process."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=3, help="timed steps (default: 3)")
    parser.add_argument(
        "--engines",
        nargs="*",
        default=list(ENGINES),
        help="engines of the second table (default: all)",
    )
    parser.add_argument(
        "--worlds", nargs="*", type=int, default=[1, 2, 4], help="ranks under DDP (default: 1 2 4)"
    )
    parser.add_argument(
        "--accumulate",
        nargs=3,
        metavar=("MICRO_BATCHES", "plain|exact", "SIZE"),
        help="measure one accumulation and print it as JSON",
    )
    options = parser.parse_args()
    if options.accumulate:
        count, how, size = options.accumulate
        measured = measure_accumulation(int(count), how == "exact", int(size), options.rounds)
        print(json.dumps(measured))
        return
    print(software())
    print_accumulation(options.rounds)
    print_engines(options.engines, options.worlds)


if __name__ == "__main__":
    main()
