"""Small data sets of random images, and of clips, with captions, and a tokenizer for them."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.write import write_shards
from data_pipeline.text import Tokenizer

WORDS = [
    "a",
    "large",
    "small",
    "red",
    "blue",
    "circle",
    "square",
    "star",
    "stands",
    "left",
    "of",
    "right",
    "above",
    "the",
]
WriteImages = Callable[..., Manifest]


def encoded_image(number: int, *, size: tuple[int, int] = (64, 48), kind: str = "JPEG") -> bytes:
    """Return an image of smooth noise, which JPEG keeps; `size` is width and height in pixels."""
    noise = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


def image_members(number: int) -> dict[str, bytes]:
    random = np.random.default_rng(1000 + number)
    caption = " ".join(random.choice(WORDS, size=random.integers(4, 14)))
    return {"jpg": encoded_image(number), "txt": f"{caption} {number}".encode()}


def encoded_clip(
    number: int,
    *,
    frames: int = 12,
    size: tuple[int, int] = (64, 48),
    kind: str = "mp4",
    codec: str = "libx264",
) -> bytes:
    """Frames of one color each: red encodes the frame, green the number of the clip.

    See `frame_of` and `number_of`.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=8)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in range(frames):
            colour = np.array([30 + 16 * (frame % 12), 30 + 16 * (number % 12), 128], np.uint8)
            pixels = np.tile(colour, (size[1], size[0], 1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def frame_of(pixels: np.ndarray) -> int:
    """Return which frame (modulo 12) of an `encoded_clip` these pixels are."""
    return round((float(pixels[..., 0].mean()) - 30) / 16)


def number_of(pixels: np.ndarray) -> int:
    """Return the number (modulo 12) of the `encoded_clip` that these pixels come from."""
    return round((float(pixels[..., 1].mean()) - 30) / 16)


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """50 good clips in three shards."""
    records = []
    for number in range(50):
        records.append(
            (f"{number:05d}", {"mp4": encoded_clip(number), "txt": image_members(number)["txt"]})
        )
    return write_shards(
        tmp_path_factory.mktemp("clips"), records, samples_per_shard=20, source={"name": "clips"}
    )


@pytest.fixture(scope="session")
def write_images() -> WriteImages:
    """Write `count` images; `spoiled` replaces the members of some (by number)."""

    def write(
        root: Path,
        count: int,
        *,
        name: str = "images",
        spoiled: Mapping[int, dict[str, bytes]] | None = None,
    ) -> Manifest:
        spoiled = spoiled or {}
        records = []
        for number in range(count):
            records.append((f"{number:05d}", spoiled.get(number, image_members(number))))
        return write_shards(root, records, samples_per_shard=100, source={"name": name})

    return write


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory, write_images: WriteImages) -> Manifest:
    """260 good images in three shards."""
    return write_images(tmp_path_factory.mktemp("images"), 260)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    # Few merges, so that most words are several tokens.
    return Tokenizer.train([" ".join(WORDS)] * 3, 290)
