"""Small images of a data set for the page, and a fair choice of examples.

In: the data set that a result names. Out: images by sample key as data URIs. Examples are spread
evenly over a result, or are the worst; none is picked by hand.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipeline.augment import write_evaluation_clip
from data_pipeline.decode import Pixels, decode, open_image
from data_pipeline.errors import DataError
from data_pipeline.sample import (
    EXTENSIONS,
    IMAGE_EXTENSIONS,
    SECOND_EXTENSIONS,
    VIDEO_EXTENSIONS,
    BadSample,
    Sample,
)
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.store import Store

THUMBNAIL = 120  # pixels of the longer side
PER_GROUP = 6
_MEDIA = (*VIDEO_EXTENSIONS, *IMAGE_EXTENSIONS, *EXTENSIONS["pair"], *SECOND_EXTENSIONS)


class Thumbnails:
    """Small JPEGs of a data set's images as data URIs, by sample key; none without the data.

    ``problem`` says why there are none.
    """

    def __init__(self, data: Path, expected_hash: str | None) -> None:
        self.problem: str | None = None
        self._rows: dict[str, int] = {}
        self._made: dict[str, str | None] = {}
        try:
            manifest = Manifest.load(data)
            # A result of the first N samples has "/first-N" behind the hash of the whole.
            whole = None if expected_hash is None else expected_hash.partition("/")[0]
            if whole is not None and f"sha256:{manifest.digest}" != whole:
                raise DataError(f"{data} is not the data set that was evaluated")
            self._store = Store([manifest])
            self._rows = {self._store.key(0, row): row for row in range(manifest.samples)}
        except DataError as error:
            self.problem = str(error)

    def __call__(self, key: str) -> str | None:
        """Return a sample's image, None without it.

        A video is shown by its middle frame, a pair by both images.
        """
        if key not in self._made:
            self._made[key] = self._make(key) if key in self._rows else None
        return self._made[key]

    def captions(self, key: str) -> Sequence[str]:
        """Return all captions of a sample, none without the data."""
        return self._store.captions(0, self._rows[key]) if key in self._rows else ()

    def sample(self, key: str) -> Sample | None:
        """Read the sample of an image without its captions, None without the data."""
        return self._store.read(0, self._rows[key], texts="none") if key in self._rows else None

    def pixels(self, key: str, side: int = THUMBNAIL) -> Pixels | None:
        """Return a sample's image with the longer side at most ``side``, None without the data."""
        sample = self.sample(key)
        return None if sample is None else np.asarray(_shrunk(sample.media, side))

    def _make(self, key: str) -> str | None:
        members = self._store.members(0, self._rows[key], _MEDIA)
        images = []
        try:
            for extension in _MEDIA:
                if extension in members:
                    images.append(_image(extension, members[extension]))
        except BadSample:
            return None
        if not images:
            return None
        width, height = sum(image.width for image in images), max(image.height for image in images)
        joined = Image.new("RGB", (width, height), "white")
        left = 0
        for image in images:
            joined.paste(image, (left, 0))
            left += image.width
        return data_uri(np.asarray(joined), quality=82)


def data_uri(pixels: Pixels, quality: int = 85) -> str:
    """Encode pixels as a JPEG in a data URI."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


def spread(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Choose lines of different images, evenly spread, so that none is picked by its looks."""
    # By key, which says nothing about how good an answer was.
    ordered = sorted(lines, key=lambda line: (line["image"], str(line["query"])))
    different = distinct(ordered, limit=len(ordered))
    if len(different) <= PER_GROUP:
        return different
    return [different[i * len(different) // PER_GROUP] for i in range(PER_GROUP)]


def distinct(lines: Sequence[dict[str, Any]], limit: int = PER_GROUP) -> list[dict[str, Any]]:
    """Choose the first lines of different images."""
    by_image: dict[str, dict[str, Any]] = {}
    for line in lines:
        by_image.setdefault(line["image"], line)
    return list(by_image.values())[:limit]


def _image(extension: str, media: bytes) -> Image.Image:
    if extension in VIDEO_EXTENSIONS:
        # A single frame of a video is its middle one.
        pixels = np.empty((1, THUMBNAIL, THUMBNAIL, 3), dtype=np.uint8)
        write_evaluation_clip(media, pixels)
        return Image.fromarray(pixels[0])
    return _shrunk(media, THUMBNAIL)


def _shrunk(media: bytes, side: int) -> Image.Image:
    image = Image.fromarray(decode(open_image(media)))
    image.thumbnail((side, side), Image.Resampling.BICUBIC)
    return image
