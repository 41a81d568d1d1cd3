"""Check every byte of a data set against its manifest, and with `decode` every sample too.

In: the folder of a data set. Out: one line for each fault, naming the shard and, if it is known,
the sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from data_pipeline.decode import decode as decode_image
from data_pipeline.decode import open_image
from data_pipeline.errors import DataError
from data_pipeline.files import sha256
from data_pipeline.processes import map_in_processes
from data_pipeline.regions import parse_regions
from data_pipeline.sample import (
    EXTENSIONS,
    BadSample,
    Kind,
    Texts,
    parse_annotations,
    parse_sample,
)
from data_pipeline.shards.manifest import Manifest, ShardIndex
from data_pipeline.shards.tar_index import index_shard


def verify(root: Path | str, *, decode: bool = False, workers: int = 1) -> list[str]:
    """Check every shard and return the faults; an empty list means that all is well.

    Raises `DataError` only if there is no manifest to check against.
    """
    manifest = Manifest.load(root)
    check = partial(_verify_shard, manifest, decode)
    problems = []
    for of_shard in map_in_processes(check, range(len(manifest.shards)), workers):
        problems.extend(of_shard)
    return problems


def _verify_shard(manifest: Manifest, decode: bool, number: int) -> list[str]:
    shard, path = manifest.shards[number], manifest.shard_path(number)
    name = shard.name
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
    # If samples changed, the hash differs because of them, and is not worth a line.
    if sha256(path) != shard.sha256 and not problems:
        problems.append(
            f"shard {name} is not the file of the manifest (its sha256 differs), "
            "although its samples are as indexed"
        )
    if len(present) != shard.samples:
        problems.append(
            f"shard {name} holds {len(present)} samples, but the manifest says {shard.samples}"
        )
    if decode:
        problems.extend(_bad_samples(name, path, present))
    return problems


def _changes(name: str, recorded: ShardIndex, present: ShardIndex) -> Iterator[str]:
    """Yield the differences between the samples that were indexed and those there now."""
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
        difference = "it moved, or has further members"
        if changed:
            difference = f"its {', '.join(changed)} changed"
        yield f"shard {name}: sample {key} is not as indexed: {difference}"


def _bad_samples(name: str, path: Path, shard_index: ShardIndex) -> Iterator[str]:
    with path.open("rb") as tar:
        for i in range(len(shard_index)):
            members = {}
            for member in shard_index.members(i):
                tar.seek(member.offset)
                members[member.extension] = tar.read(member.size)
            key = shard_index.key(i)
            kinds: list[Kind] = []
            for kind, extensions in EXTENSIONS.items():
                if not members.keys().isdisjoint(extensions):
                    kinds.append(kind)
            # A sample without media fails as any kind, with an error that names what it holds.
            for kind in kinds or list(EXTENSIONS):
                try:
                    _check(key, members, kind)
                except BadSample as error:
                    fault = str(error)
                    if not fault.startswith(f"sample {key}"):
                        fault = f"sample {key}: {fault}"
                    yield f"shard {name}: {fault}"
                    break


def _check(key: str, members: dict[str, bytes], kind: Kind) -> None:
    # A sample with questions or labels needs no captions.
    annotations = parse_annotations(key, members)
    texts: Texts = "captions"
    if annotations.get("questions") not in (None, []):
        texts = "questions"
    elif "labels" in annotations and "captions" not in annotations:
        texts = "none"
    sample = parse_sample(key, members, kind, texts)
    parse_regions(key, sample.annotations)
    if kind != "video":
        for image in (sample.media, sample.second):
            if image is not None:
                decode_image(open_image(image))
        return
    from data_pipeline.decode_video import open_clip  # loads FFmpeg, which images do not need

    with open_clip(sample.media) as clip:
        for _ in clip.decode(range(clip.frames)):
            pass  # decoding raises BadSample; the pixels are not needed
