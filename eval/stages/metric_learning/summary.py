"""What a result says in words: first of all whether training was worth it.

In: the metrics of the stage, or its whole result. Out: one sentence, flags, and a table of all
methods.
"""

from __future__ import annotations

from collections.abc import Sequence

from eval.results.schema import Metric, Result

from .methods import FROZEN
from .options import HEADS
from .scores import headline_of


def summary(metrics: Sequence[Metric]) -> str:
    """Say how the trained head stands beside the best frozen descriptor."""
    head, frozen, headline = _compared(metrics)
    above = next(
        metric for metric in metrics if metric.name == f"{head}/above/{_method(frozen)}/{headline}"
    )
    values = f"{headline} {_value(metrics, head, headline).value:.1f} beside {frozen.value:.1f} of {_method(frozen)}"
    low, high = above.ci95 or (above.value, above.value)
    said = f"{above.value:+.1f} points, 95 % over classes {low:+.1f} to {high:+.1f}"
    if above.value < 0:
        return f"The trained head {head} is BELOW the frozen tower: {values} ({said}). Training is not worth it here."
    verdict = "above" if above.value > 0 else "no better than"
    return f"The trained head {head} is {verdict} the frozen tower: {values} ({said})."


def flags(metrics: Sequence[Metric]) -> list[str]:
    """Flag a head that retrieves worse than the frozen tower, and one that retrieves worse without being trained so."""
    head, frozen, headline = _compared(metrics)
    value = _value(metrics, head, headline).value
    if value >= frozen.value:
        return []
    return [
        f"below_frozen: {headline} {value:.1f} of {head} is below {frozen.value:.1f} of {_method(frozen)}"
    ]


def table(result: Result) -> str:
    """Return the summary and one line a method, the best first, with intervals over classes and over seeds."""
    names = [metric.name for metric in result.metrics]
    columns = list(
        dict.fromkeys(name.partition("/")[2] for name in names if name.partition("/")[0] in FROZEN)
    )
    shown = [name for name in columns if not name.endswith(("left_out", "_std"))]
    methods = list(
        dict.fromkeys(name.partition("/")[0] for name in names if not name.startswith("leakage/"))
    )
    width = max(map(len, methods))
    headline = headline_of(columns)
    lines = [
        str(result.model["heads"]["summary"]),
        f"{'':{width}}  " + "  ".join(f"{name:>11}" for name in shown),
    ]
    for method in methods:
        values = "  ".join(f"{_shown(result, f'{method}/{name}'):>11}" for name in shown)
        lines.append(f"{method:{width}}  {values}")
    lines.append(f"{headline}, 95 % intervals over classes; over seeds:")
    for method in methods:
        metric = result.metric(f"{method}/{headline}")
        lines.append(
            f"{method:{width}}  "
            + "; ".join(_interval(metric, name) for name in ("classes", "seeds"))
        )
    lines += [_line(metric) for metric in result.metrics if "/above/" in metric.name]
    lines += [_line(metric) for metric in result.metrics if metric.name.startswith("leakage/")]
    return "\n".join(lines)


def _shown(result: Result, name: str) -> str:
    return next((f"{metric.value:.1f}" for metric in result.metrics if metric.name == name), "-")


def _compared(metrics: Sequence[Metric]) -> tuple[str, Metric, str]:
    """Return the trained head, the headline metric of the best frozen descriptor, and the headline's name."""
    methods = {metric.name.partition("/")[0] for metric in metrics}
    head = next(name for name in HEADS if name in methods)
    headline = headline_of([metric.name.partition("/")[2] for metric in metrics])
    frozen = [_value(metrics, name, headline) for name in FROZEN if name in methods]
    return head, max(frozen, key=lambda metric: metric.value), headline


def _value(metrics: Sequence[Metric], method: str, name: str) -> Metric:
    return next(metric for metric in metrics if metric.name == f"{method}/{name}")


def _method(metric: Metric) -> str:
    return metric.name.partition("/")[0]


def _interval(metric: Metric, name: str) -> str:
    found = metric.intervals.get(name)
    return "-" if found is None else f"{found[0]:.1f} to {found[1]:.1f}"


def _line(metric: Metric) -> str:
    low, high = metric.ci95 or (metric.value, metric.value)
    chance = "" if metric.chance is None else f", chance {metric.chance:.1f}"
    return f"{metric.name}: {metric.value:.1f} ({low:.1f} to {high:.1f}{chance})"
