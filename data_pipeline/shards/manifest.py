"""The manifest of a data set: `dataset.json` beside its shards, and an index beside each shard.

In: a folder of WebDataset tars. Out: a `Manifest` (shards, counts, hashes), which is all that
opening a data set reads. There are three levels of trust: `check_sizes` (stat only), the xxh3 of a
member (at each read), and every byte (`verify.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from data_pipeline.errors import DataError, UsageError
from data_pipeline.files import sha256, write_whole
from data_pipeline.processes import map_in_processes
from data_pipeline.sample import EXTENSIONS, Kind
from data_pipeline.shards.tar_index import Member, ShardIndex, index_shard

__all__ = ["FORMAT", "MANIFEST_NAME", "Manifest", "Member", "Shard", "ShardIndex", "index"]

MANIFEST_NAME = "dataset.json"
FORMAT = "glscl-dataset/1"


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

    `fields` counts the samples that have a member with each extension; `source` says where the data
    came from.
    """

    root: Path
    samples: int
    shards: tuple[Shard, ...]
    fields: dict[str, int]
    source: dict[str, Any]

    @classmethod
    def load(cls, root: Path | str) -> Manifest:
        """Read `root/dataset.json` and nothing else.

        Raises `DataError` that names the folder or file.
        """
        root = Path(root)
        path = root / MANIFEST_NAME
        if not root.is_dir():
            raise DataError(f"{root} is not a folder: give the folder of a data set")
        if not path.is_file():
            # The usual case: shards of another tool, which only lack the manifest.
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
        shards = []
        for entry in document["shards"]:
            name, digest = str(entry["name"]), str(entry["sha256"])
            shards.append(Shard(name, int(entry["samples"]), int(entry["bytes"]), digest))
            # The file may come from anywhere, so a name must not lead to other files.
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                raise ValueError(f"shard {name!r} lies outside the folder")
        samples = sum(shard.samples for shard in shards)
        if not shards or document["samples"] != samples:
            raise ValueError("its number of samples is not the sum over its shards")
        fields, source = dict(document["fields"]), dict(document["source"])
        return cls(root, samples, tuple(shards), fields, source)

    def save(self) -> None:
        """Write `dataset.json` atomically."""
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
        """sha256 (hex) of the shards' names, counts and hashes: the same wherever the data lies."""
        # Not the hash of dataset.json, because its source may change while the data stays.
        content = {"format": FORMAT, "shards": [asdict(shard) for shard in self.shards]}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def shard_path(self, shard_number: int) -> Path:
        """Return the path of a shard's tar."""
        return self.root / self.shards[shard_number].name

    def index_path(self, shard_number: int) -> Path:
        """Return the path of a shard's index file."""
        return _index_path(self.shard_path(shard_number))

    def index(self, shard_number: int) -> ShardIndex:
        """Load a shard's index.

        Raises `DataError` if index, manifest and the size of the tar do not belong together.
        """
        shard = self.shards[shard_number]
        self._check_size(shard)
        loaded = ShardIndex.load(self.index_path(shard_number))
        # Offsets of another version of the shard would read wrong bytes.
        if loaded.shard_bytes != shard.bytes or len(loaded) != shard.samples:
            raise DataError(
                f"index {self.index_path(shard_number)} belongs to another version of its shard: "
                f'make it again with "glscl data index {self.root}"'
            )
        return loaded

    def check_sizes(self) -> None:
        """Check by stat alone that every shard is there and has its size.

        Raises `DataError` that names the shard.
        """
        for shard in self.shards:
            self._check_size(shard)

    def check_kind(self, kind: Kind) -> None:
        """Check by `fields` alone that samples are images, videos or pairs.

        Up to half of them may be of another kind: they are met and counted as bad samples. Raises
        `DataError` that says what the data set holds instead.
        """
        count = sum(self.fields.get(extension, 0) for extension in EXTENSIONS[kind])
        fields = ", ".join(f"{extension} ({n:,})" for extension, n in self.fields.items())
        if not count:
            extensions = "|".join(EXTENSIONS[kind])
            raise DataError(f"{self.root} holds no {kind}s ({extensions}); its fields: {fields}")
        if count <= self.samples / 2:
            raise DataError(
                f"only {count:,} of the {self.samples:,} samples of {self.root} hold {kind}s "
                f"(its fields: {fields}): make one data set of the images and one of the videos"
            )

    def _check_size(self, shard: Shard) -> None:
        path = self.root / shard.name
        if not path.is_file():
            raise DataError(
                f"shard {shard.name} of {self.root} is missing (expected {shard.bytes:,} bytes)"
            )
        size = path.stat().st_size
        if size != shard.bytes:
            raise DataError(
                f"shard {shard.name} of {self.root}: expected {shard.bytes:,} bytes, found {size:,}"
                ": download or write it again, or accept it with "
                f'"glscl data index {self.root}"'
            )


def index(
    root: Path | str,
    *,
    source: Mapping[str, Any] | None = None,
    name: str | None = None,
    workers: int = 1,
) -> Manifest:
    """Write the indexes and the manifest for the tars below `root`; decodes no image.

    Anyone may have written the tars. Without `source`, that of an earlier manifest stays; `name`
    becomes its "name". Hidden files and folders are ignored. Raises `DataError` that names shard
    and sample for a tar that is cut or unsafe, or that holds a sample twice or in pieces;
    `UsageError` for a name that cannot be part of a key.
    """
    if name is not None and (not name or "/" in name):
        raise UsageError(f"the name of a data set must be one part of a key, not {name!r}")
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: give the folder that holds the .tar shards")
    names = _tars(root)
    if not names:
        raise DataError(f"{root} holds no .tar shards")
    indexed = map_in_processes(partial(write_index, root), names, workers)
    if source is None:
        source = _source_of(root)
    if name is not None:
        source = {**source, "name": name}
    manifest = assemble(root, indexed, source)
    manifest.save()
    return manifest


def _tars(root: Path) -> list[str]:
    """Return the names of the shards below a folder."""
    names = []
    for path in root.rglob("*.tar"):
        name = path.relative_to(root)
        # Hidden files are copies, or halves of them, that tools left behind.
        hidden = any(part.startswith(".") for part in name.parts)
        if path.is_file() and not hidden:
            names.append(name.as_posix())
    return sorted(names)


def _source_of(root: Path) -> Mapping[str, Any]:
    try:
        return Manifest.load(root).source
    except DataError:
        return {"name": root.resolve().name}


def write_index(root: Path, name: str) -> tuple[Shard, Counter[str]]:
    """Walk one shard and write its index file.

    Returns the shard's entry in the manifest, and how many samples have each extension.
    """
    path = root / name
    shard_index = index_shard(path, name)
    shard_index.save(_index_path(path))
    # One count per member: a sample with two images counts for both extensions.
    fields = Counter(shard_index.extensions[code] for code in shard_index.extension.tolist())
    return Shard(name, len(shard_index), shard_index.shard_bytes, sha256(path)), fields


def assemble(
    root: Path, indexed: Iterable[tuple[Shard, Counter[str]]], source: Mapping[str, Any]
) -> Manifest:
    """Make a manifest from the results of `write_index`; does not save it."""
    shards, counts = zip(*indexed, strict=True)
    fields: Counter[str] = sum(counts, Counter())
    return Manifest(
        root,
        sum(shard.samples for shard in shards),
        shards,
        dict(sorted(fields.items())),
        dict(source),
    )


def _index_path(shard_path: Path) -> Path:
    return shard_path.with_name(shard_path.name + ".index.safetensors")
