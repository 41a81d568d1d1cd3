"""What a section of the page is made of: a result with its records and images, and its headlines.

In: folders that stages wrote. Out: an `Evaluation` for each, named so that several of one stage can
be told apart. A `Headline` is a number with the reference that gives it meaning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from data_pipeline.errors import DataError
from eval.results.schema import Metric, Result, read_records, read_result

from .gallery import Thumbnails
from .labels import interval_text, metric_label, value_text

Verdict = Literal["above", "level with", "below"]


@dataclass(frozen=True)
class Evaluation:
    """A result, and the other ones on the page."""

    folder: Path
    result: Result
    suffix: str = ""
    """Tells results of one stage apart; empty where there is only one."""
    others: list[Evaluation] = field(default_factory=list, repr=False, compare=False)

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """The lines of `samples.jsonl`."""
        return list(read_records(self.folder))

    @cached_property
    def images(self) -> Thumbnails:
        """Images of the data set."""
        data = self.result.data
        return Thumbnails(Path(str(data.get("path"))), data.get("hash"))

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """Metrics by their names."""
        return {metric.name: metric for metric in self.result.metrics}

    @property
    def is_baseline(self) -> bool:
        """Whether no model was measured: such a result is what others are compared with."""
        return _without_model(self.result)

    def baseline(self, stage: str) -> Evaluation | None:
        """Return the baseline of a stage on the same data, if it is on the page."""
        for other in self.others:
            same_data = other.result.data.get("hash") == self.result.data.get("hash")
            if other.is_baseline and other.result.stage == stage and same_data:
                return other
        return None


@dataclass(frozen=True)
class Headline:
    """A number that a reader wants first, and what it is compared with.

    ``difference`` is the paired difference to the reference where the stage measured one: its
    interval judges better than two intervals beside each other.
    """

    metric: Metric
    reference: str = ""
    reference_value: float | None = None
    difference: Metric | None = None

    @property
    def label(self) -> str:
        """What the number is."""
        return metric_label(self.metric.name)

    @property
    def value(self) -> str:
        """The number with its unit."""
        return value_text(self.metric.value, self.metric.unit)

    @property
    def interval(self) -> str:
        """The 95% interval in words."""
        return interval_text(self.metric.ci95, self.metric.unit)

    @property
    def reference_name(self) -> str:
        """The reference without its article, for short labels."""
        return self.reference.removeprefix("the ")

    @property
    def reference_text(self) -> str:
        """The reference's value with its unit."""
        if self.reference_value is None:
            return ""
        return value_text(self.reference_value, self.metric.unit)

    @property
    def verdict(self) -> Verdict | None:
        """Whether the number is above or below its reference, judged by 95% intervals."""
        if self.difference is not None and self.difference.ci95 is not None:
            (low, high), reference = self.difference.ci95, 0.0
        elif self.metric.ci95 is not None and self.reference_value is not None:
            (low, high), reference = self.metric.ci95, self.reference_value
        else:
            return None
        if low > reference:
            return "above"
        return "below" if high < reference else "level with"


def beside_chance(metric: Metric | None, reference: str = "chance") -> list[Headline]:
    """Make the headline of a metric beside what guessing reaches; none without the metric."""
    if metric is None:
        return []
    return [Headline(metric, "" if metric.chance is None else reference, metric.chance)]


def read_evaluations(folders: Sequence[Path | str]) -> list[Evaluation]:
    """Read results; several of one stage are told apart by as much of their folders as it takes.

    Raises
    ------
    DataError
        If a folder holds no result, or is named twice.
    """
    paths = [Path(folder) for folder in folders]
    results = [read_result(path) for path in paths]
    resolved = [path.resolve() for path in paths]
    for path, count in Counter(resolved).items():
        if count > 1:
            raise DataError(f"{path} is named {count} times")
    evaluations: list[Evaluation] = []
    for path, result, whole in zip(paths, results, resolved, strict=True):
        same = []
        for other, other_result in zip(resolved, results, strict=True):
            # Stage and kind: a model and its baseline have titles that differ already.
            kind = (other_result.stage, _without_model(other_result))
            if kind == (result.stage, _without_model(result)):
                same.append(other)
        suffix = f" ({_tail(whole, same)})" if len(same) > 1 else ""
        # All of them share one list, which is complete when the page is made.
        evaluations.append(Evaluation(path, result, suffix, evaluations))
    return evaluations


def _without_model(result: Result) -> bool:
    # A baseline says so with a null; a result without the key is of an unknown model.
    return result.model.get("hash", "unknown") is None


def _tail(folder: Path, same: Sequence[Path]) -> str:
    """Return the shortest end of a folder's path that no other path has."""
    for count in range(1, len(folder.parts) + 1):
        tails = {other.parts[-count:] for other in same}
        if len(tails) == len(same):
            return "/".join(folder.parts[-count:])
    return str(folder)
