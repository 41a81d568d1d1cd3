"""Scenes that are drawn, compressed and written as shards per second, on all cores.

The target is 300 at 96 pixels on 2 cores.
"""

import tempfile
import time
from pathlib import Path

from data_pipeline.scenes.generate import generate

SCENES = 6000

if __name__ == "__main__":
    for attempt in range(3):
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            generate(
                Path(folder) / "scenes", train=SCENES, val=1, test=1, novel=1, size=96, seed=attempt
            )
            speed = (SCENES + 3) / (time.perf_counter() - started)
            print(f"{speed:.0f} images/s at 96 pixels, including start-up")
