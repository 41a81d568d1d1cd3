"""What happens to a bad sample: which sample stands in for it, the record of it, and when there are too many."""

from __future__ import annotations

import json
import os
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from data_pipeline.errors import DataError, UsageError
from data_pipeline.order import fold

ATTEMPTS = 8
RECENT_DRAWS = 10_000
# Fewer bad samples than this say nothing about a rate.
FEWEST = 20
_STAND_IN = 3  # purpose of the key, beside those of order.py


@dataclass(frozen=True)
class BadRecord:
    """One bad sample: its source, shard path and key, the reason's class and the message."""

    source: str
    shard: str
    key: str
    reason: str
    message: str


def stand_in(key: int, samples: int, sample: int, epoch: int, attempt: int) -> int:
    """Sample of the same source to try instead; depends on (key of seed and source, sample, epoch, attempt) alone."""
    return int(fold(key, _STAND_IN, sample, epoch, attempt)[0]) % samples


class Quarantine:
    """The bad samples of a run: written once each, and refused when they become too many."""

    def __init__(self, path: Path | None, limit: float = 0.01) -> None:
        """Append to the JSON lines at `path` (None: keep no file); `limit` is the share of bad draws that is borne."""
        if not 0 <= limit <= 1:
            raise UsageError(f"the share of bad samples must lie between 0 and 1, not {limit}")
        self._path, self._limit = path, limit
        written = (
            path.read_text(encoding="utf-8", errors="replace") if path and path.exists() else ""
        )
        self._known = _keys_in(written)
        # A start that was killed may have left half a line.
        self._lead = "" if written.endswith("\n") or not written else "\n"
        self._recent: deque[tuple[int, list[str]]] = deque()
        self._draws = 0

    def note(self, draws: int, bad: Sequence[BadRecord]) -> None:
        """Record the bad samples met in the last `draws` draws.

        Raises DataError, naming the worst shard, when too many of the last RECENT_DRAWS draws were
        bad.
        """
        for record in bad:
            self._write(record)
        self._recent.append((draws, [f"{record.source}/{record.shard}" for record in bad]))
        self._draws += draws
        while self._draws - self._recent[0][0] >= RECENT_DRAWS:
            self._draws -= self._recent.popleft()[0]
        shards = Counter(shard for _, shards in self._recent for shard in shards)
        if shards.total() >= FEWEST and shards.total() > self._limit * self._draws:
            worst, count = shards.most_common(1)[0]
            raise DataError(
                f"{shards.total()} of the last {self._draws:,} samples are bad, more than {self._limit:.1%}; worst "
                f'shard {worst} with {count}: check it with "glscl data verify --decode"'
                + self._where()
            )

    def _write(self, record: BadRecord) -> None:
        full_key = f"{record.source}/{record.shard}/{record.key}"
        if self._path is None or full_key in self._known:
            return
        self._known.add(full_key)
        line = self._lead + json.dumps(asdict(record), ensure_ascii=False) + "\n"
        self._lead = ""
        # One write in append mode, so that the lines of several ranks do not run into each other.
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, line.encode("utf-8", "replace"))
        finally:
            os.close(file)

    def _where(self) -> str:
        return f" (all are listed in {self._path})" if self._path else ""


def _keys_in(written: str) -> set[str]:
    """Full keys recorded by earlier starts of the same run; a torn line is passed over."""
    keys = set()
    for line in written.splitlines():
        try:
            record = json.loads(line)
            keys.add(f"{record['source']}/{record['shard']}/{record['key']}")
        except (ValueError, KeyError, TypeError):
            continue
    return keys
