"""Where every sample lies in a tar shard.

In: a shard, which anyone may have written. Out: a `ShardIndex`, saved beside the tar as plain
arrays (safetensors), so that a sample is read with one seek and checked by its hash. No image is
decoded.
"""

from __future__ import annotations

import json
import mmap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from data_pipeline.errors import DataError
from data_pipeline.files import write_whole
from data_pipeline.shards.tar_walk import key_and_extension, walk

INDEX_FORMAT = "glscl-shard-index/1"

_COLUMNS = ("first_part", "offset", "size", "xxh3", "extension", "key_end", "key_text")


@dataclass(frozen=True)
class Member:
    """One file of a sample: `size` bytes at `offset` of the tar, and the xxh3_64 of them."""

    extension: str
    offset: int
    size: int
    xxh3: int


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """The samples of one shard in the order of the tar, and where the bytes of their members lie.

    Members of sample i are rows `first_part[i]` to `first_part[i + 1] - 1` of `offset`, `size`,
    `xxh3` and `extension` (an index into `extensions`). Its key is `key_text[key_end[i -
    1]:key_end[i]]` in UTF-8.
    """

    shard_bytes: int
    extensions: tuple[str, ...]
    first_part: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    xxh3: np.ndarray
    extension: np.ndarray
    key_end: np.ndarray
    key_text: np.ndarray

    def __len__(self) -> int:
        return len(self.key_end)

    def key(self, i: int) -> str:
        """Return the key of sample i, the same that webdataset gives it."""
        start = int(self.key_end[i - 1]) if i else 0
        return self.key_text[start : int(self.key_end[i])].tobytes().decode("utf-8")

    def members(self, i: int) -> list[Member]:
        """Return all members of sample i in the order of the tar."""
        members = []
        for row in range(int(self.first_part[i]), int(self.first_part[i + 1])):
            extension = self.extensions[int(self.extension[row])]
            offset, size = int(self.offset[row]), int(self.size[row])
            members.append(Member(extension, offset, size, int(self.xxh3[row])))
        return members

    def save(self, path: Path) -> None:
        """Write the index to `path` atomically."""
        arrays = {name: getattr(self, name) for name in _COLUMNS}
        header = {
            "format": INDEX_FORMAT,
            "shard_bytes": self.shard_bytes,
            "extensions": self.extensions,
        }
        # One entry only, because safetensors writes several in a random order.
        write_whole(path, save(arrays, metadata={"index": json.dumps(header)}))

    @classmethod
    def load(cls, path: Path) -> ShardIndex:
        """Read an index that `save` wrote.

        Raises `DataError` that names the file if it is missing or damaged.
        """
        if not path.is_file():
            raise DataError(f'index {path} is missing: make it again with "glscl data index"')
        try:
            with safe_open(path, framework="numpy") as file:
                header = json.loads((file.metadata() or {})["index"])
                arrays = {name: file.get_tensor(name) for name in _COLUMNS}
            if header.get("format") != INDEX_FORMAT:
                raise ValueError(f"its format is {header.get('format')!r}, not {INDEX_FORMAT!r}")
            return cls(int(header["shard_bytes"]), tuple(header["extensions"]), **arrays)
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise DataError(
                f'index {path} is damaged ({error}): make it again with "glscl data index"'
            ) from None


def index_shard(path: Path, shard: str) -> ShardIndex:
    """Index the tar at `path`; `shard` is its name in messages.

    Raises `DataError` for a tar that is cut, holds links or unsafe names, or has duplicate or
    interleaved samples.
    """
    # An empty file cannot be mapped into memory.
    if path.stat().st_size == 0:
        raise DataError(f"shard {shard} is empty (0 bytes): download or write it again")
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as tar,
        memoryview(tar) as view,
    ):
        # Keys stay in the order of their first members, which is the order of the samples.
        extensions_of: dict[str, set[str]] = {}
        codes: dict[str, int] = {}
        first_part: list[int] = []
        rows: list[tuple[int, int, int, int]] = []
        last = ""
        for name, offset, size in walk(shard, tar):
            split = key_and_extension(name)
            if split is None:
                continue
            key, extension = split
            if key not in extensions_of:
                extensions_of[key] = set()
                first_part.append(len(rows))
            _check_order(shard, key, extension, extensions_of[key], last)
            extensions_of[key].add(extension)
            last = key
            # A slice of the memoryview is not a copy, unlike one of the memory map.
            checksum = xxhash.xxh3_64_intdigest(view[offset : offset + size])
            rows.append((offset, size, checksum, codes.setdefault(extension, len(codes))))
        if not rows:
            raise DataError(f"shard {shard} holds no samples: remove it, or write it again")
        offsets, sizes, checksums, extension_codes = zip(*rows, strict=True)
        keys = [key.encode("utf-8") for key in extensions_of]
        return ShardIndex(
            shard_bytes=len(tar),
            extensions=tuple(codes),
            first_part=np.array([*first_part, len(rows)], np.int64),
            offset=np.array(offsets, np.int64),
            size=np.array(sizes, np.int64),
            xxh3=np.array(checksums, np.uint64),
            extension=np.array(extension_codes, np.uint16),
            key_end=np.cumsum([len(key) for key in keys], dtype=np.int64),
            key_text=np.frombuffer(b"".join(keys), np.uint8),
        )


def _check_order(shard: str, key: str, extension: str, seen: set[str], last: str) -> None:
    # Readers go through a tar in order, so members of one sample must be adjacent and unique.
    if extension in seen:
        raise DataError(
            f"shard {shard} holds sample {key} twice (member {extension}): "
            "keys must be unique in a shard"
        )
    if seen and key != last:
        raise DataError(
            f"shard {shard} holds members of sample {key} in two places (sample {last} lies "
            "between them): write it again with its files sorted by name"
        )
