"""The embedded data set on disk: `OUT/train`, `OUT/val`, `OUT/test` and `OUT/novel`, drawn in parallel.

In: how many samples each split shall have. Out: shards and a manifest per split; a split that is
already there with the same parameters is kept. Sample i of a split depends on (seed, split, i,
size) alone, never on workers or other samples. Labelled splits (see `labelled.py`) stand in
`OUT/labelled/base` ... The pictures of train, val and test stand once more in `OUT/pairs/train`
..., two together with statements about them. As clips, the same scenes are set in motion: picture i
is what clip i begins with.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, nullcontext
from functools import partial
from multiprocessing import get_context
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg

from data_pipeline.cores import usable_cores
from data_pipeline.errors import DataError, UsageError
from data_pipeline.randomness import generator_at
from data_pipeline.scenes.captions import clip_statements_of, render, statements_of
from data_pipeline.scenes.draw import draw, draw_clip, silhouettes_of
from data_pipeline.scenes.graph import SPLITS, scene_at
from data_pipeline.scenes.labelled import CLASSES, COUNTS, labelled_sample_at
from data_pipeline.scenes.labelled import VERSION as LABELLED_VERSION
from data_pipeline.scenes.motion import FRAMES, FRAMES_PER_SECOND, set_in_motion
from data_pipeline.scenes.pairs import pair_count, pair_records
from data_pipeline.scenes.phrases import regions_of
from data_pipeline.scenes.questions import questions_of
from data_pipeline.shards.manifest import MANIFEST_NAME, Manifest
from data_pipeline.shards.store import Store
from data_pipeline.shards.write import Record, write_shards

# Of the pictures or clips and what is said of them; a data set of another version is not reused.
VERSION = 2
CLIPS_VERSION = 1
PAIRS_VERSION = 1
PAIRED = ("train", "val", "test")
SAMPLES_PER_SHARD = 1000
MIN_SIZE = 48
_CHUNK = 50
_INLINE = 300  # below this many samples, starting processes costs more than it saves

_Maker = Callable[[int], Record]


def generate(
    out: Path | str,
    *,
    train: int = 20000,
    val: int = 500,
    test: int = 500,
    novel: int = 500,
    size: int = 96,
    seed: int = 0,
    video: bool = False,
    labelled: bool | Mapping[str, int] = False,
    workers: int | None = None,
) -> dict[str, Manifest]:
    """Write the splits that have samples, as pictures of `size` x `size` pixels, or with `video` as clips.

    Pictures of all but `novel` make pairs besides, half as many. With `labelled` (or the numbers of
    samples by split) `labelled/base`, `labelled/val` and `labelled/novel` are written too. Returns
    the manifests by split, without the pairs'. Raises `UsageError` for counts or sizes that make no
    sense and where a split with other parameters is in the way.
    """
    counts = dict(zip(SPLITS, (train, val, test, novel), strict=True))
    makers: dict[str, _Maker] = {
        split: partial(sample_at, seed, split, size=size, video=video) for split in SPLITS
    }
    if labelled and video:
        raise UsageError("labelled scenes are pictures: draw them without video, in another folder")
    if labelled:
        for split, count in (COUNTS if labelled is True else labelled).items():
            counts[f"labelled/{split}"] = count
            makers[f"labelled/{split}"] = partial(labelled_sample_at, seed, split, size=size)
    if size < MIN_SIZE or seed < 0 or min(counts.values()) < 0 or not any(counts.values()):
        raise UsageError(
            f"scenes need a size of at least {MIN_SIZE}, a seed of 0 or more, and at least one sample"
        )
    if video and size % 2:
        raise UsageError(f"clips need a size that is even, not {size}")
    sources = {
        split: _source(split, count, video) | {"size": size, "seed": seed}
        for split, count in counts.items()
        if count
    }
    finished = {split: _finished(Path(out) / split, source) for split, source in sources.items()}
    manifests = {split: manifest for split, manifest in finished.items() if manifest is not None}
    pairs = {} if video else _pair_sources(counts, size, seed)
    for split, source in pairs.items():
        _finished(
            Path(out) / "pairs" / split, source
        )  # what is in the way is said before anything is drawn
    missing = [split for split in sources if split not in manifests]
    workers = usable_cores() if workers is None else workers
    inline = workers <= 1 or sum(counts[split] for split in missing) < _INLINE
    # Spawned, because a caller with threads (torch) must not be forked.
    with (
        nullcontext()
        if inline
        else get_context("spawn").Pool(workers, cv2.setNumThreads, (0,)) as pool
    ):
        for split in missing:
            manifests[split] = write_shards(
                Path(out) / split,
                _records(pool, makers[split], counts[split]),
                prefix=split.replace("/", "-"),
                samples_per_shard=SAMPLES_PER_SHARD,
                source=sources[split],
            )
    for split, source in pairs.items():
        folder = Path(out) / "pairs" / split
        if _finished(folder, source) is None:
            records = pair_records(
                split, _pictures(manifests[split]), partial(_stream, seed, split, purpose=5)
            )
            write_shards(
                folder,
                records,
                prefix=f"pairs-{split}",
                samples_per_shard=SAMPLES_PER_SHARD,
                source=source,
            )
    return {split: manifests[split] for split in sources}


def sample_at(seed: int, split: str, i: int, size: int, video: bool = False) -> Record:
    """Sample i of a split as it stands in a shard: its key, and its `jpg` or `mp4` and its `json` member."""
    scene = scene_at(seed, split, i, size)
    if video:
        scene = set_in_motion(scene, _stream(seed, split, i, 2))
    # Another stream than the scene's own, so that new wordings would leave the pictures as they
    # are.
    statements = (clip_statements_of if video else statements_of)(
        scene, _stream(seed, split, i, 3 if video else 1)
    )
    image_id = f"{split}-{seed}-{i:09d}"
    annotations: dict[str, Any] = {
        "captions": [render(statement) for statement in statements],
        "image_id": image_id,
        "scene": scene,
        "statements": statements,
    }
    quality = scene["camera"]["jpeg_quality"]
    if video:
        crf = 19 + (95 - quality) // 3  # 19 is hardly seen, 24 is
        from data_pipeline.scenes.encode import (
            encode_clip,
        )  # loads FFmpeg, which pictures do without

        media = {"mp4": encode_clip(draw_clip(scene), frames_per_second=FRAMES_PER_SECOND, crf=crf)}
    else:
        silhouettes = silhouettes_of(scene)
        annotations["questions"] = questions_of(scene, image_id, _stream(seed, split, i, 4))
        annotations["regions"] = regions_of(scene, statements, silhouettes)
        annotations["labels"] = sorted({item["shape"] for item in scene["objects"]})
        pixels = draw(scene, silhouettes)
        media = {"jpg": simplejpeg.encode_jpeg(pixels, quality=quality, colorsubsampling="420")}
    return f"{i:09d}", media | {"json": json.dumps(annotations, separators=(",", ":")).encode()}


def _stream(seed: int, split: str, i: int, purpose: int) -> np.random.Generator:
    return generator_at(seed, SPLITS.index(split), i, purpose)


def _source(split: str, count: int, video: bool) -> dict[str, Any]:
    if split.startswith("labelled/"):
        split = split.removeprefix("labelled/")
        source = {
            "name": f"labelled-scenes-{split}",
            "kind": "labelled-scenes",
            "version": LABELLED_VERSION,
        }
        return source | {"split": split, "samples": count, "classes": list(CLASSES[split])}
    if not video:
        return {
            "name": f"scenes-{split}",
            "kind": "scenes",
            "version": VERSION,
            "split": split,
            "samples": count,
        }
    source = {
        "name": f"scene-clips-{split}",
        "kind": "scene-clips",
        "version": CLIPS_VERSION,
        "split": split,
    }
    return source | {"samples": count, "frames": FRAMES, "frames_per_second": FRAMES_PER_SECOND}


def _pair_sources(counts: dict[str, int], size: int, seed: int) -> dict[str, dict[str, Any]]:
    return {
        split: {
            "name": f"scene-pairs-{split}",
            "kind": "scene-pairs",
            "version": PAIRS_VERSION,
            "split": split,
            "samples": pair_count(counts[split]),
            "size": size,
            "seed": seed,
        }
        for split in PAIRED
        if pair_count(counts[split])
    }


def _pictures(manifest: Manifest) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield the encoded pictures of a split with their annotations, in order."""
    with closing(Store([manifest])) as store:
        for i in range(manifest.samples):
            members = store.members(0, i, ("jpg", "json"))
            yield members["jpg"], json.loads(members["json"])


def _finished(folder: Path, source: dict[str, Any]) -> Manifest | None:
    """Return the split that stands in `folder`; None where there is none, or a damaged one, which is then removed."""
    if not (folder / MANIFEST_NAME).exists():
        return None
    manifest = Manifest.load(folder)
    if manifest.source != source:
        differences = _differences(manifest.source, source)
        raise UsageError(
            f"{folder} holds another data set ({differences}): choose another folder or remove it"
        )
    try:
        for number in range(len(manifest.shards)):
            manifest.index(number)
    except DataError:
        for number in range(len(manifest.shards)):
            manifest.shard_path(number).unlink(missing_ok=True)
            manifest.index_path(number).unlink(missing_ok=True)
        (folder / MANIFEST_NAME).unlink()
        return None
    return manifest


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    names = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
    return ", ".join(
        f"its {name} is {found.get(name)!r}, not {wanted.get(name)!r}" for name in names
    )


def _records(pool: Pool | None, maker: _Maker, count: int) -> Iterator[Record]:
    if pool is None:
        yield from map(maker, range(count))
        return
    for chunk in pool.imap(partial(_chunk, maker, count), range(0, count, _CHUNK)):
        yield from chunk


def _chunk(maker: _Maker, count: int, start: int) -> list[Record]:
    return [maker(i) for i in range(start, min(start + _CHUNK, count))]
