"""The loader's samples per second, compared with decoding the same JPEG images and nothing else.

Prints one line for each size of stored image and of training view; both times alternate in one
process. The decode is the floor: a loader also shuffles, crops, tokenizes and masks.
"""

import tempfile
import time
from pathlib import Path

import simplejpeg

from data_pipeline.loader import open_loader
from data_pipeline.scenes.generate import generate
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.store import Store
from data_pipeline.text import Tokenizer, train_tokenizer

SAMPLES, BATCH, ROUNDS = 2048, 64, 3
SIZES = ((96, 96), (320, 224))  # pixels stored, pixels of the view


def decode_seconds(images: list[bytes]) -> float:
    """Time of decoding every image at its stored size."""
    started = time.perf_counter()
    for image in images:
        simplejpeg.decode_jpeg(image)
    return time.perf_counter() - started


def loader_seconds(data: Path, tokenizer: Tokenizer, size: int) -> float:
    """Time of one epoch through the loader, all of it in this process (no workers)."""
    loader = open_loader([data], seed=0, global_batch=BATCH, tokenizer=tokenizer, size=size)
    started = time.perf_counter()
    with loader:
        for _ in range(SAMPLES // BATCH):
            next(loader)
    return time.perf_counter() - started


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for size, view in SIZES:
            data = Path(folder) / str(size)
            generate(data, train=SAMPLES, val=1, test=1, novel=1, size=size, seed=0)
            tokenizer = train_tokenizer([data / "train"], data / "tokenizer", 600)
            store = Store([Manifest.load(data / "train")])
            images = [store.read(0, number).media for number in range(SAMPLES)]
            ratios = []
            for _ in range(ROUNDS):
                floor = decode_seconds(images)
                ratios.append(loader_seconds(data / "train", tokenizer, view) / floor)
            # The best round is the one that other programs disturbed least.
            best = min(ratios)
            print(
                f"{size} -> {view} pixels: {SAMPLES / floor / best:.0f} samples/s, "
                f"{best:.2f} times the bare decode ({floor / SAMPLES * 1e6:.0f} us)"
            )
