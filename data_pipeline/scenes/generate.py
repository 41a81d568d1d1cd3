"""The embedded data set on disk: `OUT/train`, `OUT/val`, `OUT/test` and `OUT/novel`.

In: the number of samples of each split. Out: shards and a manifest per split, drawn in parallel; a
split that is already there with the same parameters is kept. Sample i of a split depends only on
(seed, split, i, size), never on workers or other samples.

Labelled splits (see `labelled.py`) go to `OUT/labelled/base` ... The images of train, val and test
are written a second time to `OUT/pairs/train` ..., two at a time with statements about them. Clips
are the same scenes set in motion: clip i begins with image i.
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

from data_pipeline.errors import DataError, UsageError
from data_pipeline.processes import usable_cores
from data_pipeline.randomness import generator_at
from data_pipeline.sample import annotations_member
from data_pipeline.scenes.captions import clip_statements_of, render, statements_of
from data_pipeline.scenes.draw import draw, draw_clip, silhouettes_of
from data_pipeline.scenes.graph import SPLITS, scene_at
from data_pipeline.scenes.labelled import CLASSES, COUNTS, labelled_sample_at
from data_pipeline.scenes.labelled import VERSION as LABELLED_VERSION
from data_pipeline.scenes.motion import FRAMES, FRAMES_PER_SECOND, set_in_motion
from data_pipeline.scenes.pairs import Image, pair_count, pair_records
from data_pipeline.scenes.phrases import regions_of
from data_pipeline.scenes.questions import questions_of
from data_pipeline.shards.manifest import MANIFEST_NAME, Manifest
from data_pipeline.shards.store import Store
from data_pipeline.shards.write import Record, write_shards

# Of the images or clips and their annotations; a data set of another version is not reused.
VERSION = 2
CLIPS_VERSION = 1
PAIRS_VERSION = 1
PAIRED = ("train", "val", "test")
SAMPLES_PER_SHARD = 1000
MIN_SIZE = 48
_CHUNK = 50  # samples that a process draws at a time
_INLINE = 300  # below this many samples, starting processes costs more than it saves

# What a random stream of a sample is for. The scene itself uses none (see `graph.scene_at`).
_WORDS, _MOTION, _CLIP_WORDS, _QUESTIONS, _PAIRS = range(1, 6)

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
    """Write the splits that have samples; return their manifests by split, without those of pairs.

    Parameters
    ----------
    out
        Folder to write.
    train, val, test, novel
        Number of samples of each split. The images of all but `novel` also make pairs, half as many
        as images.
    size, video
        Side of the images in pixels, and whether to write clips instead of images.
    labelled
        Write `labelled/base`, `labelled/val` and `labelled/novel` too; a mapping gives the number
        of samples of each.
    workers
        Number of processes (default: one per core), which changes no byte.

    Raises
    ------
    UsageError
        For counts or sizes that make no sense, and if a folder holds a split with other parameters.
    """
    out = Path(out)
    counts = dict(zip(SPLITS, (train, val, test, novel), strict=True))
    makers: dict[str, _Maker] = {}
    for split in SPLITS:
        makers[split] = partial(sample_at, seed, split, size=size, video=video)
    if labelled and video:
        raise UsageError("labelled scenes are images: draw them without video, in another folder")
    if labelled:
        for split, count in (COUNTS if labelled is True else labelled).items():
            counts[f"labelled/{split}"] = count
            makers[f"labelled/{split}"] = partial(labelled_sample_at, seed, split, size=size)
    if size < MIN_SIZE or seed < 0 or min(counts.values()) < 0 or not any(counts.values()):
        raise UsageError(
            f"scenes need a size of at least {MIN_SIZE}, a seed of 0 or more, "
            "and at least one sample"
        )
    if video and size % 2:
        raise UsageError(f"clips need an even size, not {size}")
    sources = {}
    manifests: dict[str, Manifest] = {}
    for split, count in counts.items():
        if not count:
            continue
        sources[split] = _source(split, count, video) | {"size": size, "seed": seed}
        manifest = _finished(out / split, sources[split])
        if manifest is not None:
            manifests[split] = manifest
    pair_sources = {} if video else _pair_sources(counts, size, seed)
    for split, source in pair_sources.items():
        _finished(out / "pairs" / split, source)  # raises before anything is drawn
    missing = [split for split in sources if split not in manifests]
    workers = usable_cores() if workers is None else workers
    inline = workers <= 1 or sum(counts[split] for split in missing) < _INLINE
    # OpenCV gets no threads of its own, because the processes already use all cores.
    # Spawned, because forking a caller that has threads (torch) can deadlock.
    with (
        nullcontext()
        if inline
        else get_context("spawn").Pool(workers, cv2.setNumThreads, (0,)) as pool
    ):
        for split in missing:
            manifests[split] = write_shards(
                out / split,
                _records(pool, makers[split], counts[split]),
                prefix=split.replace("/", "-"),
                samples_per_shard=SAMPLES_PER_SHARD,
                source=sources[split],
            )
    for split, source in pair_sources.items():
        folder = out / "pairs" / split
        # Pairs are made from the written images, so they come last.
        if _finished(folder, source) is None:
            stream = partial(_stream, seed, split, purpose=_PAIRS)
            write_shards(
                folder,
                pair_records(split, _images(manifests[split]), stream),
                prefix=f"pairs-{split}",
                samples_per_shard=SAMPLES_PER_SHARD,
                source=source,
            )
    return {split: manifests[split] for split in sources}


def sample_at(seed: int, split: str, i: int, size: int, video: bool = False) -> Record:
    """Return sample i of a split as in a shard: its key, and its `jpg` or `mp4` and `json` members.

    Each part has a random stream of its own, so that new wordings leave the images as they are.
    """
    scene = scene_at(seed, split, i, size)
    if video:
        scene = set_in_motion(scene, _stream(seed, split, i, _MOTION))
        statements = clip_statements_of(scene, _stream(seed, split, i, _CLIP_WORDS))
    else:
        statements = statements_of(scene, _stream(seed, split, i, _WORDS))
    image_id = f"{split}-{seed}-{i:09d}"
    annotations: dict[str, Any] = {
        "captions": [render(statement) for statement in statements],
        "image_id": image_id,
        "scene": scene,
        "statements": statements,
    }
    quality = scene["camera"]["jpeg_quality"]
    if video:
        from data_pipeline.scenes.encode import encode_clip  # loads FFmpeg

        crf = 19 + (95 - quality) // 3  # at 19 the loss is hardly visible, at 24 it is
        media = {"mp4": encode_clip(draw_clip(scene), frames_per_second=FRAMES_PER_SECOND, crf=crf)}
    else:
        silhouettes = silhouettes_of(scene)
        questions = questions_of(scene, image_id, _stream(seed, split, i, _QUESTIONS))
        annotations["questions"] = questions
        annotations["regions"] = regions_of(scene, statements, silhouettes)
        annotations["labels"] = sorted({item["shape"] for item in scene["objects"]})
        pixels = draw(scene, silhouettes)
        media = {"jpg": simplejpeg.encode_jpeg(pixels, quality=quality, colorsubsampling="420")}
    return f"{i:09d}", media | {"json": annotations_member(annotations)}


def _stream(seed: int, split: str, i: int, purpose: int) -> np.random.Generator:
    return generator_at(seed, SPLITS.index(split), i, purpose)


def _source(split: str, count: int, video: bool) -> dict[str, Any]:
    if split.startswith("labelled/"):
        split = split.removeprefix("labelled/")
        source = _kind_of_source("labelled-scenes", split, LABELLED_VERSION)
        return source | {"samples": count, "classes": list(CLASSES[split])}
    if video:
        source = _kind_of_source("scene-clips", split, CLIPS_VERSION) | {"samples": count}
        return source | {"frames": FRAMES, "frames_per_second": FRAMES_PER_SECOND}
    return _kind_of_source("scenes", split, VERSION) | {"samples": count}


def _pair_sources(counts: dict[str, int], size: int, seed: int) -> dict[str, dict[str, Any]]:
    sources = {}
    for split in PAIRED:
        count = pair_count(counts[split])
        if count:
            source = _kind_of_source("scene-pairs", split, PAIRS_VERSION)
            sources[split] = source | {"samples": count, "size": size, "seed": seed}
    return sources


def _kind_of_source(kind: str, split: str, version: int) -> dict[str, Any]:
    return {"name": f"{kind}-{split}", "kind": kind, "version": version, "split": split}


def _images(manifest: Manifest) -> Iterator[Image]:
    """Yield the encoded images of a split with their annotations, in order."""
    with closing(Store([manifest])) as store:
        for i in range(manifest.samples):
            members = store.members(0, i, ("jpg", "json"))
            yield members["jpg"], json.loads(members["json"])


def _finished(folder: Path, source: dict[str, Any]) -> Manifest | None:
    """Return the split in `folder`, or None if there is none.

    A damaged split is removed. Raises UsageError for a split with other parameters.
    """
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


def _differences(present: dict[str, Any], requested: dict[str, Any]) -> str:
    differences = []
    for name in {**requested, **present}:
        if present.get(name) != requested.get(name):
            difference = f"its {name} is {present.get(name)!r}, not {requested.get(name)!r}"
            differences.append(difference)
    return ", ".join(differences)


def _records(pool: Pool | None, maker: _Maker, count: int) -> Iterator[Record]:
    if pool is None:
        yield from map(maker, range(count))
        return
    for chunk in pool.imap(partial(_chunk, maker, count), range(0, count, _CHUNK)):
        yield from chunk


def _chunk(maker: _Maker, count: int, start: int) -> list[Record]:
    return [maker(i) for i in range(start, min(start + _CHUNK, count))]
