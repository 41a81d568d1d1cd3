"""Speed of training the demo's model: two processes, and bfloat16, compared with one in float32.

Runs the demo's recipe on generated scenes three times, each for 30 steps, and prints samples per
second and their ratio to the first run. The processes share the cores.
"""

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
    """Median of the logged speeds, without the first, which includes the start."""
    run = data / f"run-{world}-{precision}"
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(ROOT / "launch/accelerate/ddp.yaml")]
    # Port 0 lets the system choose a free one.
    command += ["--num_processes", str(world), "--main_process_port", "0"]
    command += ["-m", "pretrain", str(ROOT / "launch/recipes/demo.yaml"), "--run", str(run)]
    command += ["--data.train.0.path", str(data / "train")]
    command += ["--data.tokenizer", str(data / "tokenizer")]
    command += ["--steps", str(STEPS), "--precision", precision]
    # Validation would be timed as well.
    command += ["--validation", "null", "--log.every", "5"]
    threads = max(1, len(os.sched_getaffinity(0)) // world)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, env=environment, cwd=ROOT)
    speeds = []
    for line in (run / "metrics.jsonl").read_text().splitlines():
        speeds.append(float(json.loads(line)["samples_per_second"]))
    speeds = sorted(speeds[1:])
    return speeds[len(speeds) // 2]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        generate(data, train=2048, val=8, test=1, novel=1, size=96, seed=0)
        train_tokenizer([data / "train"], data / "tokenizer", 600)
        base = samples_per_second(data, 1, "fp32")
        print(f"1 process, fp32: {base:.0f} samples/s")
        for world, precision in ((2, "fp32"), (1, "bf16")):
            speed = samples_per_second(data, world, precision)
            print(
                f"{world} process(es), {precision}: {speed:.0f} samples/s, "
                f"{speed / base:.2f} times the first"
            )
