"""Every byte of a data set against its manifest, and with `decode` every sample too.

In: the folder of a data set. Out: a line for each thing that is wrong, naming the shard and, where
it can, the sample.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from data_pipeline.decode import decode as decode_image
from data_pipeline.decode import open_image
from data_pipeline.errors import DataError
from data_pipeline.regions import parse_regions
from data_pipeline.sample import EXTENSIONS, BadSample, Kind, parse_annotations, parse_sample
from data_pipeline.shards.manifest import Manifest, ShardIndex, map_shards, sha256_of
from data_pipeline.shards.tar_index import index_shard


def verify(root: Path | str, *, decode: bool = False, workers: int = 1) -> list[str]:
    """Check every shard; an empty list means that all is well.

    Raises `DataError` only where there is no manifest to check against.
    """
    manifest = Manifest.load(root)
    numbers = {shard.name: number for number, shard in enumerate(manifest.shards)}
    found = map_shards(partial(_verify_shard, manifest, numbers, decode), list(numbers), workers)
    return [problem for problems in found for problem in problems]


def _verify_shard(
    manifest: Manifest, numbers: dict[str, int], decode: bool, name: str
) -> list[str]:
    number = numbers[name]
    shard, path = manifest.shards[number], manifest.shard_path(number)
    if not path.is_file():
        return [f"shard {name} is missing (expected {shard.bytes:,} bytes)"]
    try:
        present = index_shard(path, name)
    except DataError as error:
        return [str(error)]
    try:
        recorded = ShardIndex.load(manifest.index_path(number))
        problems = list(_changes(name, recorded, present))
    except DataError as error:
        problems = [f"shard {name}: {error}"]
    if sha256_of(path) != shard.sha256 and not problems:
        problems.append(
            f"shard {name} is not the file of the manifest (its sha256 differs), yet its samples are as indexed"
        )
    if len(present) != shard.samples:
        problems.append(
            f"shard {name} holds {len(present)} samples, the manifest says {shard.samples}"
        )
    if decode:
        problems.extend(_bad_samples(name, path, present))
    return problems


def _changes(name: str, recorded: ShardIndex, present: ShardIndex) -> Iterator[str]:
    """Differences between the samples that were indexed and those that are there now."""
    before = {recorded.key(i): recorded.members(i) for i in range(len(recorded))}
    now = {present.key(i): present.members(i) for i in range(len(present))}
    for key in before.keys() - now.keys():
        yield f"shard {name}: sample {key} is gone"
    for key in now.keys() - before.keys():
        yield f"shard {name}: sample {key} was added"
    for key, members in before.items():
        if key not in now or members == now[key]:
            continue
        contents = {member.extension: (member.size, member.xxh3) for member in now[key]}
        changed = [m.extension for m in members if contents.get(m.extension) != (m.size, m.xxh3)]
        what = (
            f"its {', '.join(changed)} changed" if changed else "it moved, or has further members"
        )
        yield f"shard {name}: sample {key} is not as indexed: {what}"


def _bad_samples(name: str, path: Path, shard_index: ShardIndex) -> Iterator[str]:
    with path.open("rb") as tar:
        for i in range(len(shard_index)):
            members = {}
            for member in shard_index.members(i):
                tar.seek(member.offset)
                members[member.extension] = tar.read(member.size)
            key = shard_index.key(i)
            kinds = [
                kind for kind, names in EXTENSIONS.items() if not members.keys().isdisjoint(names)
            ]
            for kind in kinds or EXTENSIONS:
                try:
                    _check(key, members, kind)
                except BadSample as error:
                    text = str(error)
                    named = text if text.startswith(f"sample {key}") else f"sample {key}: {text}"
                    yield f"shard {name}: {named}"
                    break


def _check(key: str, members: dict[str, bytes], kind: Kind) -> None:
    # A sample with questions, or one that has labels, may do without captions.
    annotations = parse_annotations(key, members)
    labelled = "labels" in annotations and "captions" not in annotations
    asks = annotations.get("questions") not in (None, [])
    sample = parse_sample(
        key, members, kind, "questions" if asks else "none" if labelled else "captions"
    )
    parse_regions(key, sample.annotations)
    if kind != "video":
        for picture in (sample.media, sample.second):
            if picture is not None:
                decode_image(open_image(picture))
        return
    from data_pipeline.decode_video import open_clip  # loads FFmpeg, which pictures do without

    with open_clip(sample.media) as clip:
        deque(clip.decode(range(clip.frames)), maxlen=0)
