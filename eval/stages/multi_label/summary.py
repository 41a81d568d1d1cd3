"""A multi-label result in words: a table of all methods, and flags that a reader must not miss.

In: a result, or its metrics and records. Out: the table that the command line prints, metrics by
method for the report, and flags.
"""

from __future__ import annotations

from collections.abc import Sequence

from eval.results.schema import Metric, Result

from .records import DrawRecord, predicts_any_label

_EXPLANATION = (
    "In brackets: 95 % intervals over draws of the support; over the images that are queries."
)


def means(result: Result, shot: int) -> dict[str, Metric]:
    """Return mAP by method, with ``shot`` support images per label."""
    by_name = _map_metrics(result.metrics, shot)
    return {name: metric for name, metric in by_name.items() if "-" not in name}


def differences(result: Result, shot: int) -> dict[tuple[str, str], Metric]:
    """Return the paired difference of two methods' mAP, by the names of both."""
    by_pair = {}
    for name, metric in _map_metrics(result.metrics, shot).items():
        if "-" in name:
            method, other = name.split("-")
            by_pair[method, other] = metric
    return by_pair


def interval(ends: tuple[float, float] | None, form: str = ".1f") -> str:
    """Write an interval, or a dash if there is none."""
    return "-" if ends is None else f"{ends[0]:{form}} to {ends[1]:{form}}"


def table(result: Result) -> str:
    """Return mAP and paired differences of every method by number of support images."""
    shots = result.protocol["shot"]
    means_by_shot = [means(result, shot) for shot in shots]
    differences_by_shot = [differences(result, shot) for shot in shots]
    rows = [["mAP in percent", *(f"{shot}-shot" for shot in shots)]]
    for method in means_by_shot[0]:
        rows.append([method, *(_cell(of_shot[method]) for of_shot in means_by_shot)])
    # All methods of a shot have the same chance.
    chances = [next(iter(of_shot.values())).chance for of_shot in means_by_shot]
    rows.append(["guessing", *(f"{chance:.1f}" for chance in chances)])
    if differences_by_shot[0]:
        rows.append(["above, percentage points", *([""] * len(shots))])
    for pair in differences_by_shot[0]:
        cells = [_cell(of_shot[pair], "+.1f") for of_shot in differences_by_shot]
        rows.append([" - ".join(pair), *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([*lines, _EXPLANATION])


def flag_not_above(metrics: Sequence[Metric], shots: Sequence[int]) -> list[str]:
    """Flag the baselines that the method is not above on the same draws, for each shot."""
    flags = []
    for shot in shots:
        by_name = _map_metrics(metrics, shot)
        for method in ("lcm", "cross"):
            baselines = []
            for name, metric in by_name.items():
                is_above = metric.ci95 is not None and metric.ci95[0] > 0
                if name.startswith(f"{method}-") and not is_above:
                    baselines.append(name.removeprefix(f"{method}-"))
            if baselines:
                flags.append(f"{method} is not above {', '.join(baselines)} ({shot}shot)")
    return flags


def flag_uninformative(records: Sequence[DrawRecord]) -> list[str]:
    """Flag methods with equal scores in every draw of a shot, and those that predict no label.

    A method predicts labels only if its scores are logits, that is if scale and bias were fitted.
    """
    by_shot: dict[int, list[DrawRecord]] = {}
    for record in records:
        by_shot.setdefault(record["shot"], []).append(record)
    degenerate, silent = [], []
    for shot, of_shot in by_shot.items():
        silent_methods = []
        for method in of_shot[0]["scores"]:
            if all(method in record["constant"] for record in of_shot):
                degenerate.append(f"degenerate_scores/{shot}shot/{method}")
            predicts = any(predicts_any_label(record, method) for record in of_shot)
            if of_shot[0]["logits"] and not predicts:
                silent_methods.append(method)
        if silent_methods:
            silent.append(
                f"no label is ever predicted at threshold 0.5: {', '.join(silent_methods)} "
                f"({shot}shot)"
            )
    return degenerate + silent


def _map_metrics(metrics: Sequence[Metric], shot: int) -> dict[str, Metric]:
    """Return mAP metrics of a shot by method, or by two methods with a dash between them."""
    by_name = {}
    for metric in metrics:
        # A label's name may contain slashes and dashes: `1shot/lcm/class/NAME` has more parts.
        parts = metric.name.split("/")
        if len(parts) == 3 and parts[0] == f"{shot}shot" and parts[2] == "mAP":
            by_name[parts[1]] = metric
    return by_name


def _cell(metric: Metric, form: str = ".1f") -> str:
    over_draws = interval(metric.ci95, form)
    over_images = interval(metric.intervals.get("pictures"), form)
    return f"{metric.value:{form}} ({over_draws}; {over_images})"
