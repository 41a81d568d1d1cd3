"""Evaluations to sections of the page, each made by the files that carry its stage's name.

A stage `my-stage` may have two files in `eval/report/stages`, both optional and found by name:

- `my_stage.html.j2`, the template of its section. It sees `evaluation` and `content`.
- `my_stage.py`, with any of `TITLE`; `RANK` (sections and headline numbers come in this order, 100
  where it is missing); `TEMPLATE` (another stage's template); `headlines(evaluation)`, the numbers
  a reader wants first; and `content(evaluation)`, a dict for the template.

Without either a section still has its numbers, beside chance where the stage measured that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from eval.results.schema import Metric

from . import stages
from .bars import chance_chart
from .evaluation import Evaluation, Headline, beside_chance
from .labels import capitalized, interval_text, metric_label, value_text, words

_GENERIC = "stages/generic.html.j2"
_LAST = 100  # rank of a stage without one
_SHOWN = 40  # metrics of a table that are shown at once
_BARS = 8  # of a stage that draws none itself


@dataclass(frozen=True)
class Row:
    """A metric in words; ``name`` is its name in result.json."""

    name: str
    label: str
    value: str
    interval: str
    chance: str
    n: str


@dataclass(frozen=True)
class Table:
    """All metrics of a result: those of single classes, and what is more than a page, apart."""

    rows: list[Row] = field(default_factory=list)
    more: list[Row] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Number of metrics."""
        return len(self.rows) + len(self.more)


@dataclass(frozen=True)
class Section:
    """A part of the page; ``problem`` says why its images are missing."""

    anchor: str
    title: str
    evaluation: Evaluation
    headlines: list[Headline]
    template: str
    content: dict[str, Any]
    table: Table
    problem: str | None


def make_sections(evaluations: Sequence[Evaluation]) -> list[Section]:
    """Make the section of every evaluation, the most important stages first."""
    sections = []
    ranked = sorted(evaluations, key=lambda evaluation: _rank(evaluation.result.stage))
    for number, evaluation in enumerate(ranked):
        stage = evaluation.result.stage
        module = _module(stage)
        make_headlines = getattr(module, "headlines", _first_metric)
        make_content = getattr(module, "content", _generic_content)
        # A baseline has nothing to show beside its numbers: other sections compare with it.
        shown = not evaluation.is_baseline
        section = Section(
            anchor=f"{words(stage).replace(' ', '-')}-{number}",
            title=stage_title(stage) + evaluation.suffix,
            evaluation=evaluation,
            headlines=make_headlines(evaluation) if shown else [],
            template=_template(stage, module),
            content=make_content(evaluation) if shown else {},
            table=metric_table(evaluation),
            problem=evaluation.images.problem if shown else None,
        )
        sections.append(section)
    return sections


def stage_title(stage: str) -> str:
    """Return what a stage measures, in words."""
    return str(getattr(_module(stage), "TITLE", capitalized(words(stage))))


def metric_table(evaluation: Evaluation) -> Table:
    """Put every metric of a result into words."""
    table = Table()
    for metric in evaluation.result.metrics:
        chance = "" if metric.chance is None else value_text(metric.chance, metric.unit)
        row = Row(
            name=metric.name,
            label=metric_label(metric.name),
            value=value_text(metric.value, metric.unit),
            interval=interval_text(metric.ci95, metric.unit),
            chance=chance,
            n=f"{metric.n:,}",
        )
        of_class = "class" in metric.name.split("/")[:-1]
        if of_class or len(table.rows) == _SHOWN:
            table.more.append(row)
        else:
            table.rows.append(row)
    return table


def _module(stage: str) -> ModuleType | None:
    name = words(stage).replace(" ", "_")
    if not name.isidentifier():
        return None
    module = f"{stages.__name__}.{name}"
    return import_module(module) if find_spec(module) else None


def _rank(stage: str) -> int:
    return int(getattr(_module(stage), "RANK", _LAST))


def _template(stage: str, module: ModuleType | None) -> str:
    name = getattr(module, "TEMPLATE", f"{words(stage).replace(' ', '_')}.html.j2")
    beside = Path(str(stages.__path__[0])) / name
    return f"stages/{name}" if beside.is_file() else _GENERIC


def _first_metric(evaluation: Evaluation) -> list[Headline]:
    return beside_chance(evaluation.result.metrics[0] if evaluation.result.metrics else None)


def _generic_content(evaluation: Evaluation) -> dict[str, Any]:
    """Draw the first metrics in percent, each beside its chance."""
    metrics: list[Metric] = []
    for metric in evaluation.result.metrics:
        of_class = "class" in metric.name.split("/")[:-1]
        if metric.unit == "percent" and not of_class and len(metrics) < _BARS:
            metrics.append(metric)
    return {"chart": chance_chart(metrics)}
