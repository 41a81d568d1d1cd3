"""Random access to the bytes of any sample of several data sets, checked as they are read.

In: manifests and (source, sample) numbers. Out: members, captions or a whole `Sample`. Shards and
their indexes are opened when they are first needed.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Container, Sequence
from functools import lru_cache

import numpy as np
import xxhash

from data_pipeline.errors import DataError
from data_pipeline.sample import (
    EXTENSIONS,
    SECOND_EXTENSIONS,
    BadSample,
    Kind,
    Sample,
    Texts,
    parse_captions,
    parse_sample,
)
from data_pipeline.shards.manifest import Manifest, ShardIndex

MAX_OPEN = 64  # shards held open
MAX_INDEXES = 4096  # shard indexes held in memory: 64 lanes with windows of 64 spans touch these
TEXT_MEMBERS = frozenset({"txt", "json"})
# The members that are read for each kind of sample.
MEMBERS: dict[Kind, frozenset[str]] = {
    "image": TEXT_MEMBERS.union(EXTENSIONS["image"]),
    "video": TEXT_MEMBERS.union(EXTENSIONS["video"]),
    "pair": TEXT_MEMBERS.union(EXTENSIONS["pair"], SECOND_EXTENSIONS),
}


class Store:
    """Samples of several data sets by (source, sample), numbered in the manifests' order.

    It must not be shared by threads.
    """

    def __init__(self, manifests: Sequence[Manifest], *, check: bool = True) -> None:
        """Open nothing yet; `check` compares the xxh3 of every member that is read."""
        self.manifests = tuple(manifests)
        self._check = check
        self._ends = []  # for each source, the number of samples up to the end of each shard
        for manifest in self.manifests:
            self._ends.append(np.cumsum([shard.samples for shard in manifest.shards]))
        self._files: OrderedDict[tuple[int, int], int] = OrderedDict()
        self._index = lru_cache(maxsize=MAX_INDEXES)(self._load_index)

    def key(self, source: int, sample: int) -> str:
        """Return the full key of a sample: SOURCE/SHARD_PATH/KEY."""
        return "/".join(self.name_parts(source, sample))

    def name_parts(self, source: int, sample: int) -> tuple[str, str, str]:
        """Return the parts of a full key: source, path of the shard, key inside the shard."""
        shard, row = self._place(source, sample)
        manifest = self.manifests[source]
        return manifest.name, manifest.shards[shard].name, self._index(source, shard).key(row)

    def read(
        self, source: int, sample: int, kind: Kind = "image", texts: Texts = "captions"
    ) -> Sample:
        """Read one sample with its encoded image, video or pair. Its key is the full key.

        Raises BadSample for a sample that is damaged or incomplete, DataError for a shard that
        cannot be read.
        """
        members = self.members(source, sample, MEMBERS[kind])
        if members.keys().isdisjoint(EXTENSIONS[kind]):
            # The error should say what is there instead, so name the members that were not read.
            shard, row = self._place(source, sample)
            for member in self._index(source, shard).members(row):
                members.setdefault(member.extension, b"")
        return parse_sample(self.key(source, sample), members, kind, texts)

    def captions(self, source: int, sample: int) -> tuple[str, ...]:
        """Read one sample's captions and nothing else; raises the errors of `read`."""
        return parse_captions(self.key(source, sample), self.members(source, sample, TEXT_MEMBERS))

    def members(self, source: int, sample: int, extensions: Container[str]) -> dict[str, bytes]:
        """Read the bytes of a sample's members that have these extensions."""
        shard, row = self._place(source, sample)
        index = self._index(source, shard)
        payloads: dict[str, bytes] = {}
        for member in index.members(row):
            if member.extension not in extensions:
                continue
            payload = self._read(source, shard, member.offset, member.size)
            if len(payload) != member.size:
                raise DataError(
                    f"shard {self._shard_name(source, shard)} ends inside sample "
                    f"{index.key(row)} (expected {member.size:,} bytes, found {len(payload):,}): "
                    "download or write it again"
                )
            if self._check and xxhash.xxh3_64_intdigest(payload) != member.xxh3:
                raise BadSample(
                    "checksum",
                    f"sample {self.key(source, sample)}: "
                    f"the bytes of its {member.extension} have changed",
                )
            payloads[member.extension] = payload
        return payloads

    def close(self) -> None:
        """Close all shards."""
        while self._files:
            os.close(self._files.popitem()[1])

    def _place(self, source: int, sample: int) -> tuple[int, int]:
        """Return the number of the shard that holds a sample, and the sample's row in it."""
        ends = self._ends[source]
        shard = int(np.searchsorted(ends, sample, side="right"))
        start = int(ends[shard - 1]) if shard else 0
        return shard, sample - start

    def _shard_name(self, source: int, shard: int) -> str:
        return f"{self.manifests[source].name}/{self.manifests[source].shards[shard].name}"

    def _load_index(self, source: int, shard: int) -> ShardIndex:
        return self.manifests[source].index(shard)

    def _read(self, source: int, shard: int, offset: int, size: int) -> bytes:
        try:
            file = self._open(source, shard)
            payload = os.pread(file, size, offset)
            # A read may be short, and on network file systems it sometimes is.
            while len(payload) < size:
                more = os.pread(file, size - len(payload), offset + len(payload))
                if not more:
                    break
                payload += more
        except OSError as error:
            raise DataError(
                f"shard {self._shard_name(source, shard)} cannot be read: {error}"
            ) from error
        return payload

    def _open(self, source: int, shard: int) -> int:
        file = self._files.get((source, shard))
        if file is None:
            if len(self._files) >= MAX_OPEN:  # close the one that was used least recently
                os.close(self._files.popitem(last=False)[1])
            file = os.open(self.manifests[source].shard_path(shard), os.O_RDONLY | os.O_CLOEXEC)
            self._files[source, shard] = file
        self._files.move_to_end((source, shard))
        return file
