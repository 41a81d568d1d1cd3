"""The manifest of a data set: `dataset.json` beside its shards, and one index file beside each shard.

In: a folder of WebDataset tars. Out: a `Manifest` (shards, counts, hashes), which is all that
opening a data set reads. Levels of trust: `check_sizes` (stat only), the xxh3 of a member (at each
read), and every byte (`verify.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path, PurePosixPath
from threading import Thread
from typing import Any, TypeVar

from data_pipeline.errors import DataError, UsageError
from data_pipeline.files import write_whole
from data_pipeline.sample import EXTENSIONS, Kind
from data_pipeline.shards.tar_index import Member, ShardIndex, index_shard

__all__ = ["FORMAT", "MANIFEST_NAME", "Manifest", "Member", "Shard", "ShardIndex", "index"]

MANIFEST_NAME = "dataset.json"
FORMAT = "glscl-dataset/1"

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Shard:
    """One tar: its path below the data set's folder (with `/`), its samples, bytes and sha256."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a data set holds.

    `fields` counts the samples that have a member of each extension; `source` says where the data
    came from.
    """

    root: Path
    samples: int
    shards: tuple[Shard, ...]
    fields: dict[str, int]
    source: dict[str, Any]

    @classmethod
    def load(cls, root: Path | str) -> Manifest:
        """Read `root/dataset.json` and nothing else; raises `DataError` that names the folder or file."""
        root = Path(root)
        path = root / MANIFEST_NAME
        if not root.is_dir():
            raise DataError(f"{root} is not a folder: give the folder of a data set")
        if not path.is_file():
            if _tars(root):
                raise DataError(
                    f'{root} has no {MANIFEST_NAME}: make it with "glscl data index {root}"'
                )
            raise DataError(
                f"{root} is not a data set: it holds neither {MANIFEST_NAME} nor .tar shards"
            )
        try:
            return cls._parse(root, json.loads(path.read_text("utf-8")))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(
                f'{path} is damaged ({error!r}): make it again with "glscl data index {root}"'
            ) from None

    @classmethod
    def _parse(cls, root: Path, document: dict[str, Any]) -> Manifest:
        if document.get("format") != FORMAT:
            raise ValueError(f"its format is {document.get('format')!r}, not {FORMAT!r}")
        shards = tuple(
            Shard(
                str(entry["name"]), int(entry["samples"]), int(entry["bytes"]), str(entry["sha256"])
            )
            for entry in document["shards"]
        )
        if not shards or document["samples"] != sum(shard.samples for shard in shards):
            raise ValueError("its number of samples is not the sum over its shards")
        for shard in shards:
            path = PurePosixPath(shard.name)
            if path.is_absolute() or ".." in path.parts:
                raise ValueError(f"shard {shard.name!r} lies outside the folder")
        return cls(
            root,
            int(document["samples"]),
            shards,
            dict(document["fields"]),
            dict(document["source"]),
        )

    def save(self) -> None:
        """Write `dataset.json`, atomically."""
        document = {
            "format": FORMAT,
            "samples": self.samples,
            "shards": [asdict(shard) for shard in self.shards],
            "fields": self.fields,
            "source": self.source,
        }
        write_whole(self.root / MANIFEST_NAME, (json.dumps(document, indent=1) + "\n").encode())

    @property
    def name(self) -> str:
        """Name of the data set: the first part of its samples' full keys."""
        return str(self.source.get("name") or self.root.resolve().name)

    @property
    def digest(self) -> str:
        """sha256 (hex) of the shards' names, counts and hashes: equal for equal data wherever it lies."""
        content = {"format": FORMAT, "shards": [asdict(shard) for shard in self.shards]}
        return hashlib.sha256(
            json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
        ).hexdigest()

    def shard_path(self, shard_number: int) -> Path:
        """Path of a shard's tar."""
        return self.root / self.shards[shard_number].name

    def index_path(self, shard_number: int) -> Path:
        """Path of a shard's index file."""
        return _index_path(self.shard_path(shard_number))

    def index(self, shard_number: int) -> ShardIndex:
        """Load a shard's index; raises `DataError` when index, manifest and the tar's size do not belong together."""
        shard = self.shards[shard_number]
        self._check_size(shard)
        loaded = ShardIndex.load(self.index_path(shard_number))
        if loaded.shard_bytes != shard.bytes or len(loaded) != shard.samples:
            raise DataError(
                f"index {self.index_path(shard_number)} belongs to another version of its shard: "
                f'make it again with "glscl data index {self.root}"'
            )
        return loaded

    def check_sizes(self) -> None:
        """Check by stat alone that every shard is there and has its size; raises `DataError` that names the shard."""
        for shard in self.shards:
            self._check_size(shard)

    def check_kind(self, kind: Kind) -> None:
        """Check by `fields` alone that samples are of a kind.

        A few may be of the other one, as bad samples that are met and counted. Raises `DataError`
        that says what there is where none is of the kind, or at least as many are of the other kind
        alone.
        """
        count = sum(self.fields.get(extension, 0) for extension in EXTENSIONS[kind])
        found = ", ".join(f"{extension} ({count:,})" for extension, count in self.fields.items())
        if not count:
            raise DataError(
                f"{self.root} holds no {kind}s ({'|'.join(EXTENSIONS[kind])}); its fields: {found}"
            )
        if count <= self.samples / 2:
            raise DataError(
                f"only {count:,} of the {self.samples:,} samples of {self.root} hold {kind}s (its fields: {found}): "
                "make one data set of the pictures and one of the clips"
            )

    def _check_size(self, shard: Shard) -> None:
        path = self.root / shard.name
        if not path.is_file():
            raise DataError(
                f"shard {shard.name} of {self.root} is missing (expected {shard.bytes:,} bytes)"
            )
        found = path.stat().st_size
        if found != shard.bytes:
            raise DataError(
                f"shard {shard.name} of {self.root}: expected {shard.bytes:,} bytes, found {found:,}: "
                f'download or write it again, or accept it with "glscl data index {self.root}"'
            )


def index(
    root: Path | str,
    *,
    source: Mapping[str, Any] | None = None,
    name: str | None = None,
    workers: int = 1,
) -> Manifest:
    """Write the indexes and the manifest for the tars below `root`, which anyone may have written; decodes no image.

    Without `source` that of an earlier manifest stays; `name` becomes its "name". Hidden files and
    folders are passed over. Raises `DataError` that names shard and sample for a tar that is cut,
    unsafe, or holds a sample twice or in pieces, `UsageError` for a name that cannot be part of a
    key.
    """
    if name is not None and (not name or "/" in name):
        raise UsageError(f"the name of a data set must be one part of a key, not {name!r}")
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: give the folder that holds the .tar shards")
    names = _tars(root)
    if not names:
        raise DataError(f"{root} holds no .tar shards")
    indexed = map_shards(partial(write_index, root), names, workers)
    kept = _source_of(root) if source is None else source
    manifest = assemble(root, indexed, kept if name is None else {**kept, "name": name})
    manifest.save()
    return manifest


def _tars(root: Path) -> list[str]:
    """Names of the shards below a folder; what is hidden is a copy, or half of one, that some tool left."""
    found = (path.relative_to(root) for path in root.rglob("*.tar") if path.is_file())
    return sorted(
        name.as_posix() for name in found if not any(part.startswith(".") for part in name.parts)
    )


def _source_of(root: Path) -> Mapping[str, Any]:
    try:
        return Manifest.load(root).source
    except DataError:
        return {"name": root.resolve().name}


def write_index(root: Path, name: str) -> tuple[Shard, Counter[str]]:
    """Walk one shard and write its index file; returns its manifest entry and its samples that have each extension."""
    path = root / name
    shard_index = index_shard(path, name)
    shard_index.save(_index_path(path))
    fields = Counter(shard_index.extensions[code] for code in shard_index.extension.tolist())
    return Shard(name, len(shard_index), shard_index.shard_bytes, sha256_of(path)), fields


def assemble(
    root: Path, indexed: Iterable[tuple[Shard, Counter[str]]], source: Mapping[str, Any]
) -> Manifest:
    """Put the entries of `write_index` together; does not save."""
    shards, counts = zip(*indexed, strict=True)
    fields: Counter[str] = sum(counts, Counter())
    return Manifest(
        root,
        sum(shard.samples for shard in shards),
        shards,
        dict(sorted(fields.items())),
        dict(source),
    )


def map_shards(
    function: Callable[[Item], Result], shards: Sequence[Item], workers: int
) -> list[Result]:
    """Apply a function to every shard (its name, or what it is made of), in order, in up to `workers` processes."""
    if min(workers, len(shards)) <= 1:
        return [function(shard) for shard in shards]
    # Spawned, because a caller with threads (torch) must not be forked.
    pool = ProcessPoolExecutor(
        min(workers, len(shards)), get_context("spawn"), initializer=_end_with_the_parent
    )
    with pool:
        return list(pool.map(function, shards))


def _end_with_the_parent() -> None:
    """Let no process of a pool stay, or write on, where the one that started it was killed."""

    def wait() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    Thread(target=wait, daemon=True).start()


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _index_path(shard_path: Path) -> Path:
    return shard_path.with_name(shard_path.name + ".index.safetensors")
