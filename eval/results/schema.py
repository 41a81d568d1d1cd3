"""The format that every stage writes: `result.json` with metrics, `samples.jsonl` with records.

A record is one line per query, enough to compute every metric again; `result.json` holds their
checksum. Both files are written whole or not at all.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_pipeline.errors import DataError, UsageError
from data_pipeline.files import write_pieces, write_whole
from data_pipeline.shards.manifest import Manifest

SCHEMA = "glscl-result/1"
RESULT_NAME = "result.json"
SAMPLES_NAME = "samples.jsonl"

_PACKAGES = ("torch", "transformers", "accelerate", "numpy", "scipy", "pillow")


class Metric(BaseModel):
    """One number and what a reader needs beside it: unit, interval, queries, and chance."""

    model_config = ConfigDict(allow_inf_nan=False)

    name: str
    value: float
    unit: str
    ci95: tuple[float, float] | None = None
    n: int
    clusters: int | None = Field(default=None, description="independent units that were resampled")
    chance: float | None = None
    bounds: tuple[float, float] | None = Field(
        default=None, description="the value if every tie were lost, and won"
    )
    intervals: dict[str, tuple[float, float]] = Field(
        default={}, description="further 95 % intervals, by their name"
    )


class Records(BaseModel):
    """Number of lines of `samples.jsonl`, and a checksum that does not depend on their order."""

    count: int
    checksum: str


class Result(BaseModel):
    """What a stage did, on which data, with which model, and what came out."""

    model_config = ConfigDict(allow_inf_nan=False, populate_by_name=True)

    # With an underscore, because pydantic's models have a method `schema`.
    schema_: str = Field(default=SCHEMA, alias="schema")
    stage: str
    protocol: dict[str, Any]
    data: dict[str, Any]
    model: dict[str, Any]
    environment: dict[str, Any]
    metrics: list[Metric]
    flags: list[str] = []
    timing: dict[str, float] = {}
    records: Records | None = Field(default=None, description="what samples.jsonl must hold")

    def metric(self, name: str) -> Metric:
        """Return the metric called ``name``; KeyError where there is none."""
        for metric in self.metrics:
            if metric.name == name:
                return metric
        raise KeyError(name)


def check_out(out: Path, *, overwrite: bool) -> None:
    """Refuse a folder that a result cannot be written to, before any work is done.

    Raises
    ------
    UsageError
        If a file is in the way, the folder may not be written to, or it holds a result that
        ``overwrite`` does not allow to be replaced.
    """
    # The folder need not exist: the nearest parent that does decides.
    nearest = out.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir():
        raise UsageError(f"--out is {out}, but {nearest} is a file: choose a folder for the result")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UsageError(f"--out is {out}, but {nearest} is not writable: choose another folder")
    if not overwrite and (out / RESULT_NAME).exists():
        raise UsageError(f"{out} already holds a result: choose another --out, or give --overwrite")


def write_result(out: Path, result: Result, records: Iterable[Mapping[str, Any]]) -> None:
    """Write `samples.jsonl` and then `result.json` into folder ``out``, each whole or not at all.

    Records are written one by one, so that they need not be in memory together; ``result`` gets
    their number and checksum.
    """
    out.mkdir(parents=True, exist_ok=True)
    checksum = _Checksum()

    def lines() -> Iterator[str]:
        for record in records:
            line = json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n"
            checksum.add(line)
            yield line

    write_pieces(out / SAMPLES_NAME, lines())
    # `result.json` comes last: where it exists, the records are complete.
    result.records = checksum.records()
    write_whole(out / RESULT_NAME, result.model_dump_json(by_alias=True, indent=2) + "\n")


def records_of_file(folder: Path | str) -> Records:
    """Count the lines of `samples.jsonl` and sum their hashes; DataError where there is no file."""
    path = Path(folder) / SAMPLES_NAME
    if not path.is_file():
        raise DataError(f"{folder} holds no {SAMPLES_NAME}")
    checksum = _Checksum()
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            checksum.add(line)
    return checksum.records()


class _Checksum:
    """Sum of the SHA-256 of all lines: it notices changed, added and removed lines, in any order.

    It guards against accidents and edits of single lines, not against someone who can also edit
    `result.json`.
    """

    def __init__(self) -> None:
        self._count = self._sum = 0

    def add(self, line: str) -> None:
        digest = hashlib.sha256(line.rstrip("\n").encode()).digest()
        self._count += 1
        self._sum = (self._sum + int.from_bytes(digest)) % 2**256

    def records(self) -> Records:
        return Records(count=self._count, checksum=f"sum-sha256:{self._sum:064x}")


def read_result(folder: Path | str) -> Result:
    """Read `result.json` of a stage's folder.

    Raises
    ------
    DataError
        If it is missing or not in this format.
    """
    path = Path(folder) / RESULT_NAME
    try:
        result = Result.model_validate_json(path.read_bytes())
    except OSError:
        raise DataError(
            f"{folder} holds no {RESULT_NAME}: is it the --out folder of an evaluation?"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DataError(f"{path} is not a {SCHEMA} result: {where}: {first['msg']}") from None
    if result.schema_ != SCHEMA:
        raise DataError(f"{path} has schema {result.schema_!r}, this version reads {SCHEMA!r}")
    return result


def read_records(folder: Path | str) -> Iterator[dict[str, Any]]:
    """Yield the records of `samples.jsonl`.

    Raises
    ------
    DataError
        If the file is missing, or a line is not JSON; the message gives its number.
    """
    path = Path(folder) / SAMPLES_NAME
    if not path.is_file():
        raise DataError(f"{folder} holds no {SAMPLES_NAME}")
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path} line {number} is not JSON: {error.msg}") from None


def data_hash(manifest: Manifest, limit: int | None) -> str:
    """Hash of what was read of a data set: part of it must never pass for all of it."""
    digest = f"sha256:{manifest.digest}"
    if limit is not None and limit < manifest.samples:
        digest += f"/first-{limit}"
    return digest


def data_flags(manifest: Manifest) -> list[str]:
    """Flag a result that lacks samples of the official data set, which an import left out."""
    missing = len(manifest.source.get("left_out", ()))
    return [f"left_out/{missing}"] if missing else []


def environment(world: int = 1, device: str = "cpu") -> dict[str, Any]:
    """Describe what a result depends on besides model and data: date, code, versions, machine."""
    # Imports torch, which reading a result does not need.
    from pretrain.run.folder import code_revision

    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "code": code_revision(),
        "versions": {"python": platform.python_version(), **versions},
        "hardware": {"machine": platform.machine(), "cpus": os.cpu_count(), "device": device},
        "world": world,
    }
