"""Samples per second of the loader, compared with decoding the same JPEG images, in one process."""

import tempfile
import time
from pathlib import Path

import simplejpeg

from data_pipeline.loader import open_loader
from data_pipeline.scenes.generate import generate
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.store import Store
from data_pipeline.text import train_tokenizer

SAMPLES, BATCH, ROUNDS = 2048, 64, 3

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for size, view in ((96, 96), (320, 224)):
            data = Path(folder) / str(size)
            generate(data, train=SAMPLES, val=1, test=1, novel=1, size=size, seed=0)
            tokenizer = train_tokenizer([data / "train"], data / "tokenizer", 600)
            store = Store([Manifest.load(data / "train")])
            images = [store.read(0, number).media for number in range(SAMPLES)]
            ratios = []
            for _ in range(ROUNDS):
                started = time.perf_counter()
                for image in images:
                    simplejpeg.decode_jpeg(image)
                floor = time.perf_counter() - started
                loader = open_loader(
                    [data / "train"], seed=0, global_batch=BATCH, tokenizer=tokenizer, size=view
                )
                started = time.perf_counter()
                with loader:
                    for _ in range(SAMPLES // BATCH):
                        next(loader)
                ratios.append((time.perf_counter() - started) / floor)
            print(
                f"{size} -> {view} pixels: {SAMPLES / floor / min(ratios):.0f} samples/s, "
                f"{min(ratios):.2f} times the bare decode ({floor / SAMPLES * 1e6:.0f} us)"
            )
