"""Samples per second of training the demo's model: fp32 and bf16, one process and two."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from data_pipeline.scenes.generate import generate
from data_pipeline.text import train_tokenizer

ROOT = Path(__file__).parents[1]
STEPS = 30


def samples_per_second(data: Path, world: int, precision: str) -> float:
    """Return the median of the logged speeds without the first."""
    run = data / f"run-{world}-{precision}"
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(ROOT / "launch/accelerate/ddp.yaml")]
    command += ["--num_processes", str(world), "--main_process_port", "0"]
    command += ["-m", "pretrain", str(ROOT / "launch/recipes/demo.yaml")]
    overrides = {
        "run": run,
        "data.train.0.path": data / "train",
        "data.tokenizer": data / "tokenizer",
        "steps": STEPS,
        "validation": "null",
        "precision": precision,
        "log.every": 5,
    }
    for key, value in overrides.items():
        command += [f"--{key}", str(value)]
    threads = str(max(1, len(os.sched_getaffinity(0)) // world))
    subprocess.run(
        command,
        check=True,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": threads},
        cwd=ROOT,
    )
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    speeds = sorted(row["samples_per_second"] for row in rows[1:])
    return float(speeds[len(speeds) // 2])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        generate(data, train=2048, val=8, test=1, novel=1, size=96, seed=0)
        train_tokenizer([data / "train"], data / "tokenizer", 600)
        base = samples_per_second(data, 1, "fp32")
        print(f"1 process, fp32: {base:.0f} samples/s")
        for world, precision in ((2, "fp32"), (1, "bf16")):
            other = samples_per_second(data, world, precision)
            print(f"{world} process(es), {precision}: {other:.0f} samples/s, ", end="")
            print(f"{other / base:.2f} times the first")
