"""Records to shards: equal bytes for equal records, and all of them or nothing.

In: records (key, members by extension) in the order to write them in. Out: a folder with
`PREFIX-000000.tar` ..., their indexes and `dataset.json`. It is written beside its place under
another name and renamed when it is complete. webdataset's writer makes the tars.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError, UsageError
from data_pipeline.shards.manifest import Manifest, Shard, assemble, write_index

Record = tuple[str, Mapping[str, bytes]]


def write_shards(
    root: Path | str,
    records: Iterable[Record],
    *,
    source: Mapping[str, Any],
    prefix: str = "shard",
    samples_per_shard: int = 1000,
) -> Manifest:
    """Write records (key, {extension: bytes}) as the data set `root`.

    `source` goes into the manifest; its "name" is the first part of every sample's full key. Raises
    `UsageError` when `root` already holds files, and `DataError` when there are no records or a key
    comes twice in a shard.
    """
    root = Path(root)
    unfinished = unfinished_folder(root)
    indexed = []
    for number, shard_records in enumerate(_chunks(records, samples_per_shard)):
        name = f"{prefix}-{number:06d}.tar"
        write_tar(unfinished / name, shard_records)
        indexed.append(write_index(unfinished, name))
    return publish(root, unfinished, indexed, source)


def unfinished_folder(root: Path, *, resume: bool = False) -> Path:
    """Make the folder in which the data set `root` is written.

    With `resume`, files of an earlier call stay in it. Raises `UsageError` when `root` already
    holds files.
    """
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UsageError(
            f"{root} already exists and is not an empty folder: choose another folder or remove it"
        )
    # Hidden, so that indexing ignores it, and beside its place, so that renaming is atomic.
    unfinished = root.absolute().with_name(f".{root.absolute().name}.unfinished")
    if unfinished.exists() and not resume:
        shutil.rmtree(unfinished)  # an earlier call was interrupted
    unfinished.mkdir(parents=True, exist_ok=True)
    return unfinished


def publish(
    root: Path,
    unfinished: Path,
    indexed: Sequence[tuple[Shard, Counter[str]]],
    source: Mapping[str, Any],
) -> Manifest:
    """Write the manifest of the shards in `unfinished` and give the folder its name.

    Raises `DataError` if there are no samples.
    """
    if not indexed:
        raise DataError(f"there are no samples to write to {root}")
    manifest = assemble(unfinished, indexed, source)
    manifest.save()
    unfinished.replace(root)  # also replaces an empty folder
    return replace(manifest, root=root)


def write_tar(path: Path, records: Iterable[Record]) -> None:
    """Write records as one tar, whose bytes depend on nothing else."""
    # Imported here, because webdataset imports torch, and `glscl --help` and worker processes must
    # not wait for that.
    from webdataset import TarWriter

    with path.open("wb") as file:
        # A fixed time and owner, so that equal records give equal bytes and thus an equal digest.
        with TarWriter(file, encoder=False, mtime=0, user="glscl", group="glscl") as tar:
            for key, members in records:
                tar.write({"__key__": key, **members})
        # On disk before the folder gets its name, or a power cut could leave half a data set.
        file.flush()
        os.fsync(file.fileno())


def _chunks(records: Iterable[Record], length: int) -> Iterator[list[Record]]:
    iterator = iter(records)
    while chunk := list(islice(iterator, length)):
        yield chunk
