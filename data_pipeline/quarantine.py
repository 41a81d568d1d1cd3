"""What happens to bad samples: others stand in for them, they are listed, too many are an error.

In: the bad samples of each micro-batch. Out: lines of `quarantine.jsonl`, or a DataError when their
share passes a limit.
"""

from __future__ import annotations

import json
import os
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from data_pipeline.errors import DataError, UsageError
from data_pipeline.randomness import STAND_IN, fold

ATTEMPTS = 8  # samples that are tried for one draw, the planned one included
RECENT_DRAWS = 10_000  # the share of bad samples is taken over these
# A rate cannot be estimated from fewer bad samples than this.
FEWEST = 20


@dataclass(frozen=True)
class BadRecord:
    """One bad sample: its source, shard path and key, the reason's class and the message."""

    source: str
    shard: str
    key: str
    reason: str
    message: str


def stand_in(key: int, samples: int, sample: int, epoch: int, attempt: int) -> int:
    """Return the sample of the same source to try instead of a bad one.

    It depends only on (key of seed and source, sample, epoch, attempt), so every worker and every
    resumed run tries the same ones.
    """
    return int(fold(key, STAND_IN, sample, epoch, attempt)[0]) % samples


class Quarantine:
    """The bad samples of a run: each is listed once, and too many of them are an error."""

    def __init__(self, path: Path | None, limit: float = 0.01) -> None:
        """Append to the JSON lines at `path` (None: write no file).

        `limit` is the share of bad draws that is tolerated.
        """
        if not 0 <= limit <= 1:
            raise UsageError(f"the share of bad samples must lie between 0 and 1, not {limit}")
        self._path, self._limit = path, limit
        written = ""
        if path and path.exists():
            written = path.read_text(encoding="utf-8", errors="replace")
        self._listed_keys = _keys_in(written)
        # A run that was killed may have left half a line, which must not swallow the next one.
        self._line_break = "" if written.endswith("\n") or not written else "\n"
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
        # Drop the oldest batches as long as enough draws remain.
        while self._draws - self._recent[0][0] >= RECENT_DRAWS:
            self._draws -= self._recent.popleft()[0]
        bad_by_shard: Counter[str] = Counter()
        for _, shards in self._recent:
            bad_by_shard.update(shards)
        total = bad_by_shard.total()
        if total >= FEWEST and total > self._limit * self._draws:
            worst, count = bad_by_shard.most_common(1)[0]
            raise DataError(
                f"{total} of the last {self._draws:,} samples are bad, more than "
                f"{self._limit:.1%}; worst shard {worst} with {count}: "
                f'check it with "glscl data verify --decode"{self._where()}'
            )

    def _write(self, record: BadRecord) -> None:
        full_key = f"{record.source}/{record.shard}/{record.key}"
        if self._path is None or full_key in self._listed_keys:
            return
        self._listed_keys.add(full_key)
        line = self._line_break + json.dumps(asdict(record), ensure_ascii=False) + "\n"
        self._line_break = ""
        # One write in append mode, so that the lines of several ranks do not run into each other.
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, line.encode("utf-8", "replace"))
        finally:
            os.close(file)

    def _where(self) -> str:
        return f" (all are listed in {self._path})" if self._path else ""


def _keys_in(written: str) -> set[str]:
    """Return the full keys listed by earlier starts of the same run; torn lines are ignored."""
    keys = set()
    for line in written.splitlines():
        try:
            record = json.loads(line)
            keys.add(f"{record['source']}/{record['shard']}/{record['key']}")
        except (ValueError, KeyError, TypeError):
            continue
    return keys
