"""What retrieval found: queries that were answered well, badly and worst, with thumbnails from the data set."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipeline.augment import write_evaluation_clip
from data_pipeline.decode import decode, open_image
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


@dataclass(frozen=True)
class Found:
    """One candidate in its place; ``picture`` is a data URI, None where a text was retrieved or the file is gone."""

    place: int
    right: bool
    score: float
    picture: str | None
    text: str


@dataclass(frozen=True)
class Query:
    """A query, its best candidates, and the expected rank of the right one by the contrastive score and at the end."""

    text: str
    picture: str | None
    found: list[Found]
    first_rank: float
    rank: float
    key: str


@dataclass(frozen=True)
class Group:
    """Queries of one quality."""

    title: str
    queries: list[Query]


class Thumbnails:
    """Small JPEGs of a data set's pictures as data URIs, by sample key; without the data there are none."""

    def __init__(self, data: Path, expected_hash: str | None) -> None:
        self.problem: str | None = None
        self._rows: dict[str, int] = {}
        self._made: dict[str, str | None] = {}
        try:
            manifest = Manifest.load(data)
            if expected_hash is not None and f"sha256:{manifest.digest}" != expected_hash:
                raise DataError(f"{data} is not the data set that was evaluated")
            self._store = Store([manifest])
            self._rows = {self._store.key(0, row): row for row in range(manifest.samples)}
        except DataError as error:
            self.problem = str(error)

    def __call__(self, key: str) -> str | None:
        """Picture of a sample (of a clip the middle frame, of a pair both), None when it cannot be had."""
        if key not in self._made:
            self._made[key] = self._make(key) if key in self._rows else None
        return self._made[key]

    def captions(self, key: str) -> Sequence[str]:
        """All captions of a sample, none when it cannot be had."""
        return self._store.captions(0, self._rows[key]) if key in self._rows else ()

    def sample(self, key: str) -> Sample | None:
        """Read a picture's sample without its captions, None when it cannot be had."""
        return self._store.read(0, self._rows[key], texts="none") if key in self._rows else None

    def _make(self, key: str) -> str | None:
        members = self._store.members(0, self._rows[key], _MEDIA)
        try:
            pictures = [
                _picture(extension, members[extension])
                for extension in _MEDIA
                if extension in members
            ]
        except BadSample:
            return None
        if not pictures:
            return None
        both = Image.new(
            "RGB", (sum(p.width for p in pictures), max(p.height for p in pictures)), "white"
        )
        for number, picture in enumerate(pictures):
            both.paste(picture, (sum(p.width for p in pictures[:number]), 0))
        content = io.BytesIO()
        both.save(content, "JPEG", quality=82)
        return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


def _picture(extension: str, media: bytes) -> Image.Image:
    if extension in VIDEO_EXTENSIONS:
        pixels = np.empty((1, THUMBNAIL, THUMBNAIL, 3), dtype=np.uint8)
        write_evaluation_clip(media, pixels)
        return Image.fromarray(pixels[0])
    picture = Image.fromarray(decode(open_image(media)))
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC)
    return picture


def text_queries(records: Iterable[dict[str, Any]], thumbnails: Thumbnails) -> list[Group]:
    """Group captions with the pictures found for them."""
    return _groups(
        [line for line in records if line["direction"].startswith("text_to_")], thumbnails
    )


def image_queries(records: Iterable[dict[str, Any]], thumbnails: Thumbnails) -> list[Group]:
    """Group pictures with the captions found for them."""
    return _groups([line for line in records if line["direction"].endswith("_to_text")], thumbnails)


def _groups(lines: list[dict[str, Any]], thumbnails: Thumbnails) -> list[Group]:
    stage = "reranked" if lines and "reranked" in lines[0] else "contrastive"
    ranked = sorted(lines, key=lambda line: _rank(line[stage]))
    right = [line for line in ranked if _rank(line[stage]) == 1]
    near = [line for line in ranked if 1 < _rank(line[stage]) <= 10]
    worst = [line for line in ranked if _rank(line[stage]) > 10][::-1]
    chosen = {
        "Right: the first answer is correct": spread(right),
        "Wrong: the correct answer comes later": spread(near),
        "Worst: the correct answer is far down": distinct(worst),
    }
    return [
        Group(title, [_query(line, stage, thumbnails) for line in several])
        for title, several in chosen.items()
        if several
    ]


def spread(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Choose lines of different pictures, evenly spread, so that nothing is picked by its looks."""
    lines = distinct(
        sorted(lines, key=lambda line: (line["image"], str(line["query"]))), limit=len(lines)
    )
    return (
        [lines[i * len(lines) // PER_GROUP] for i in range(PER_GROUP)]
        if len(lines) > PER_GROUP
        else lines
    )


def distinct(lines: list[dict[str, Any]], limit: int = PER_GROUP) -> list[dict[str, Any]]:
    """Choose the first lines of different pictures."""
    seen: dict[str, dict[str, Any]] = {}
    for line in lines:
        seen.setdefault(line["image"], line)
    return list(seen.values())[:limit]


def _query(line: dict[str, Any], stage: str, thumbnails: Thumbnails) -> Query:
    found = []
    for place, (candidate, score) in enumerate(line[stage]["top"], 1):
        key, _, number = candidate.partition("#")
        texts = thumbnails.captions(key)
        if line["direction"].startswith("text_to_"):
            found.append(
                Found(
                    place, key == line["image"], score, thumbnails(key), texts[0] if texts else key
                )
            )
        else:
            text = texts[int(number)] if texts else candidate
            found.append(Found(place, key == line["image"], score, None, text))
    return Query(
        text=line.get("text", ""),
        picture=thumbnails(line["image"]),
        found=found,
        first_rank=_rank(line["contrastive"]),
        rank=_rank(line[stage]),
        key=line["image"],
    )


def _rank(stage: dict[str, int]) -> float:
    return stage["above"] + (stage["tied"] + 1) / (stage["tied_positives"] + 1)
