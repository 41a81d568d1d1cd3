"""Values side by side, with their intervals and what they are compared with, as plain HTML bars.

In: values. Out: for each bar its place on the track in percent of the track's width. HTML instead
of a drawing: text keeps its size on a phone, can be selected and read aloud, and weighs little.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from eval.results.schema import Metric

from .labels import capitalized, interval_text, metric_label, value_text

_HEADROOM = 1.05  # of the track beyond the largest value, so that no interval ends at its edge


@dataclass(frozen=True)
class Bar:
    """A value with its interval, and a reference that is marked on the same track."""

    label: str
    value: float
    interval: tuple[float, float] | None = None
    ours: bool = True
    reference: float | None = None
    unit: str = "percent"
    name: str = ""  # of the metric in result.json, for those who look for it

    @property
    def title(self) -> str:
        """The label with a capital, as it begins a line."""
        return capitalized(self.label)

    @property
    def text(self) -> str:
        """The value in words."""
        return value_text(self.value, self.unit)

    @property
    def range(self) -> str:
        """The interval in words."""
        return interval_text(self.interval, self.unit)


def chance_chart(
    metrics: Iterable[Metric | None], reference: str = "chance", title: str = ""
) -> BarChart | None:
    """Draw metrics beside what guessing reaches; metrics that are None are left out."""
    bars = []
    for metric in metrics:
        if metric is not None:
            label = metric_label(metric.name)
            interval, chance = metric.ci95, metric.chance
            bars.append(Bar(label, metric.value, interval, True, chance, metric.unit, metric.name))
    return BarChart(title, bars, reference) if bars else None


@dataclass(frozen=True)
class BarChart:
    """Bars on one scale from 0; ``reference`` names what the marks on the tracks stand for."""

    title: str
    bars: Sequence[Bar]
    reference: str = ""

    @property
    def legend(self) -> str:
        """What the marks stand for, with the value where it is the same for all bars."""
        values = {bar.reference for bar in self.bars}
        shared = values.pop() if len(values) == 1 else None
        if shared is None:
            return self.reference
        return f"{self.reference} {value_text(shared, self.bars[0].unit)}"

    def reference_of(self, bar: Bar) -> str:
        """Return the reference of one bar in words, nothing where the legend has it."""
        if bar.reference is None or self.legend != self.reference:
            return ""
        return f"{self.reference} {value_text(bar.reference, bar.unit)}"

    @property
    def end(self) -> float:
        """The value at the right end of the tracks."""
        values = [1e-9]
        for bar in self.bars:
            values += [bar.value, bar.reference or 0.0, *(bar.interval or ())]
        return _HEADROOM * max(values)

    def place(self, value: float) -> str:
        """Place of a value on the track as a CSS length; negative values are at the left end."""
        return f"{100 * min(max(value / self.end, 0.0), 1.0):.2f}%"
