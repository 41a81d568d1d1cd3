"""Check a result against its records: every metric is computed again from `samples.jsonl`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from eval.registry import stage_module, stage_names
from eval.results.schema import Metric, read_records, read_result, records_of_file


def verify(folder: Path | str) -> list[str]:
    """Return the names of what `samples.jsonl` and `result.json` disagree about; empty if nothing.

    `records` stands for the lines of `samples.jsonl` themselves: one was changed, added or removed
    since the evaluation. All other names are those of metrics.

    Raises
    ------
    DataError
        If there is no result, its stage is unknown, its records are not those of the stage, or it
        was written by a version that kept no checksum of records.
    """
    result = read_result(folder)
    if result.records is None:
        raise DataError(
            f"{folder} was written by a version that kept no checksum of records: evaluate again"
        )
    wrong = []
    if records_of_file(folder) != result.records:
        wrong.append("records")
    computed = {}
    for metric in metrics_of(result.stage, list(read_records(folder)), folder):
        computed[metric.name] = metric
    stored = {metric.name: metric for metric in result.metrics}
    for name in {**stored, **computed}:
        if not _agree(stored.get(name), computed.get(name)):
            wrong.append(name)
    return wrong


def _agree(stored: Metric | None, computed: Metric | None) -> bool:
    """Whether two metrics are equal, up to rounding of sums over records in another order."""
    if stored is None or computed is None:
        return False
    left, right = _flat(stored.model_dump()), _flat(computed.model_dump())
    if left.keys() != right.keys():
        return False
    for path, value in left.items():
        other = right[path]
        if isinstance(value, float) and isinstance(other, float):
            if not math.isclose(value, other, rel_tol=1e-12, abs_tol=1e-12):
                return False
        elif value != other:
            return False
    return True


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """List the numbers and texts in nested dictionaries and sequences by where they stand."""
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)  # type: ignore[assignment]
    else:
        return {path: value}
    leaves: dict[str, Any] = {}
    for key, part in parts:
        leaves |= _flat(part, f"{path}/{key}")
    return leaves


def metrics_of(stage: str, records: list[dict[str, Any]], folder: Path | str) -> list[Metric]:
    """Compute the metrics of a stage from records of the result in ``folder``."""
    if stage not in stage_names():
        stages = ", ".join(stage_names())
        raise DataError(f"{folder} holds a result of {stage!r}; this version knows {stages}")
    metrics: Callable[[Iterable[dict[str, Any]]], list[Metric]] = stage_module(stage).metrics
    try:
        return metrics(records)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise DataError(f"the records in {folder} are not those of {stage}: {error!r}") from error
