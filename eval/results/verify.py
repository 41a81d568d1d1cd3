"""Whether a result says what its records say: every metric is computed again from `samples.jsonl`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from eval.registry import stage_module, stage_names
from eval.results.schema import Metric, read_records, read_result


def verify(folder: Path | str) -> list[str]:
    """Return the names of the metrics that `samples.jsonl` does not give, to the last bit, or that are not stored.

    Raises
    ------
    DataError
        If there is no result, its stage is unknown, or its records are not those of the stage.
    """
    result = read_result(folder)
    computed = {
        metric.name: metric
        for metric in metrics_of(result.stage, list(read_records(folder)), folder)
    }
    stored = {metric.name: metric for metric in result.metrics}
    return [name for name in {**stored, **computed} if stored.get(name) != computed.get(name)]


def metrics_of(stage: str, records: list[dict[str, Any]], folder: Path | str) -> list[Metric]:
    """Compute the metrics of a stage from records of the result in ``folder``."""
    if stage not in stage_names():
        known = ", ".join(stage_names())
        raise DataError(f"{folder} holds a result of {stage!r}; this version knows {known}")
    metrics: Callable[[Iterable[dict[str, Any]]], list[Metric]] = stage_module(stage).metrics
    try:
        return metrics(records)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise DataError(f"the records in {folder} are not those of {stage}: {error!r}") from error
