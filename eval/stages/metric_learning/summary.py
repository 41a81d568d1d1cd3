"""What a result says in words: first of all whether training was worth it.

In: the metrics of the stage, or its whole result. Out: a sentence, a flag, and a table of all
methods.
"""

from __future__ import annotations

from collections.abc import Sequence

from eval.results.schema import Metric, Result

from .methods import FROZEN
from .options import HEADS
from .scores import headline_of


def summary(metrics: Sequence[Metric]) -> str:
    """Compare the trained head with the best frozen descriptor in a sentence."""
    head, frozen, headline = _compared(metrics)
    value = _value(metrics, head, headline).value
    above = _value(metrics, head, f"above/{_method(frozen)}/{headline}")
    values = f"{headline} {value:.1f} beside {frozen.value:.1f} of {_method(frozen)}"
    low, high = above.ci95 or (above.value, above.value)
    difference = f"{above.value:+.1f} points, 95 % over classes {low:+.1f} to {high:+.1f}"
    if above.value < 0:
        return (
            f"The trained head {head} is BELOW the frozen tower: {values} ({difference}). "
            "Training is not worth it here."
        )
    verdict = "above" if above.value > 0 else "no better than"
    return f"The trained head {head} is {verdict} the frozen tower: {values} ({difference})."


def flags(metrics: Sequence[Metric]) -> list[str]:
    """Flag a head that retrieves worse than the best frozen descriptor."""
    head, frozen, headline = _compared(metrics)
    value = _value(metrics, head, headline).value
    if value >= frozen.value:
        return []
    return [
        f"below_frozen: {headline} {value:.1f} of {head} is below {frozen.value:.1f} of "
        f"{_method(frozen)}"
    ]


def table(result: Result) -> str:
    """Return the summary, then tables of all methods, the best first.

    They hold the values, the intervals over classes and over seeds, the differences to the head,
    and the leakage.
    """
    values: dict[str, float] = {}
    methods: list[str] = []
    columns: list[str] = []
    for metric in result.metrics:
        values[metric.name] = metric.value
        method, _, name = metric.name.partition("/")
        if method not in methods and method != "leakage":
            methods.append(method)
        # A frozen method has all metrics and no differences to others.
        if method in FROZEN and name not in columns:
            columns.append(name)
    shown = [name for name in columns if not name.endswith(("left_out", "_std"))]
    width = max(map(len, methods))
    lines = [str(result.model["heads"]["summary"])]
    lines.append(_row("", shown, width))
    for method in methods:
        cells = []
        for name in shown:
            value = values.get(f"{method}/{name}")
            cells.append("-" if value is None else f"{value:.1f}")
        lines.append(_row(method, cells, width))
    headline = headline_of(columns)
    lines.append(f"{headline}, 95 % intervals over classes; over seeds:")
    for method in methods:
        metric = result.metric(f"{method}/{headline}")
        over_classes, over_seeds = _interval(metric, "classes"), _interval(metric, "seeds")
        lines.append(f"{method:{width}}  {over_classes}; {over_seeds}")
    lines += [_line(metric) for metric in result.metrics if "/above/" in metric.name]
    lines += [_line(metric) for metric in result.metrics if metric.name.startswith("leakage/")]
    return "\n".join(lines)


def _row(name: str, cells: Sequence[str], width: int) -> str:
    return f"{name:{width}}  " + "  ".join(f"{cell:>11}" for cell in cells)


def _compared(metrics: Sequence[Metric]) -> tuple[str, Metric, str]:
    """Return the head's name, the best frozen method's headline metric, and the headline's name."""
    methods = {_method(metric) for metric in metrics}
    head = next(name for name in HEADS if name in methods)
    headline = headline_of([metric.name.partition("/")[2] for metric in metrics])
    frozen = [_value(metrics, name, headline) for name in FROZEN if name in methods]
    return head, max(frozen, key=lambda metric: metric.value), headline


def _value(metrics: Sequence[Metric], method: str, name: str) -> Metric:
    return next(metric for metric in metrics if metric.name == f"{method}/{name}")


def _method(metric: Metric) -> str:
    return metric.name.partition("/")[0]


def _interval(metric: Metric, name: str) -> str:
    interval = metric.intervals.get(name)
    return "-" if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}"


def _line(metric: Metric) -> str:
    low, high = metric.ci95 or (metric.value, metric.value)
    chance = "" if metric.chance is None else f", chance {metric.chance:.1f}"
    return f"{metric.name}: {metric.value:.1f} ({low:.1f} to {high:.1f}{chance})"
