"""Numbers to inline SVG: small line charts of a run, and one chart of values with their intervals.

Text is real text in the page's font and colour, so that charts follow light and dark pages.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

COLOURS = ("#2f6fde", "#d9822b", "#2a9d76", "#a05fc4")
_INK = "#010203"  # replaced by the page's own colour
_STYLE: Any = {
    "font.size": 9,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.titlesize": 10,
    "lines.linewidth": 1.6,
}


@dataclass(frozen=True)
class Bar:
    """A value with its interval, in percent; ``ours`` marks what was trained."""

    label: str
    value: float
    interval: tuple[float, float] | None
    ours: bool


@rc_context(_STYLE)
def line_chart(
    title: str,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    from_zero: bool = False,
) -> str:
    """Draw lines (label -> steps and values) over training steps; the legend is left out for a single line."""
    figure, axes = _figure(3.3, 2.1)
    for colour, (label, (steps, values)) in zip(COLOURS, series.items(), strict=False):
        axes.plot(
            steps,
            values,
            color=colour,
            label=label,
            marker="o" if len(steps) < 12 else None,
            markersize=3,
        )
    axes.set_title(title, loc="left")
    axes.set_xlabel("step")
    axes.grid(axis="y", alpha=0.2, linewidth=0.6)
    if from_zero:
        axes.set_ylim(bottom=0)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=8, handlelength=1.2)
    ends = "; ".join(
        f"{label} from {values[0]:.4g} to {values[-1]:.4g}"
        for label, (_, values) in series.items()
        if len(values)
    )
    return _svg(figure, f"{title} over training steps: {ends}")


@rc_context(_STYLE)
def interval_chart(title: str, bars: Sequence[Bar]) -> str:
    """Draw values with their intervals below each other, from chance to ceiling."""
    figure, axes = _figure(10.4, 0.34 * len(bars) + 0.75)
    for row, bar in enumerate(bars):
        colour = COLOURS[0] if bar.ours else "#8a8f98"
        axes.plot(
            [0, bar.value], [row, row], color=colour, linewidth=7, solid_capstyle="butt", alpha=0.35
        )
        if bar.interval is not None:
            axes.plot(bar.interval, [row, row], color=colour, linewidth=2)
        axes.plot(bar.value, row, "o", color=colour, markersize=6, clip_on=False)
        right = max(bar.value, bar.interval[1] if bar.interval else 0)
        axes.annotate(
            f"{bar.value:.1f} %", (right, row), (8, 0), textcoords="offset points", va="center"
        )
    axes.set_yticks(range(len(bars)), [bar.label for bar in bars])
    axes.invert_yaxis()
    axes.set_xlim(
        0, 1.12 * max(1, *(max(bar.value, bar.interval[1] if bar.interval else 0) for bar in bars))
    )
    axes.set_title(title, loc="left")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    return _svg(figure, f"{title}: " + "; ".join(f"{bar.label} {bar.value:.1f} %" for bar in bars))


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure: Figure, description: str) -> str:
    content = io.StringIO()
    # The salt makes element ids differ between charts of a page, and equal between two runs.
    with rc_context({"svg.hashsalt": description}):
        FigureCanvasSVG(figure).print_svg(content, metadata={"Date": None, "Creator": None})
    text = content.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'<g id="patch_1">.*?</g>', "", text, count=1, flags=re.S)  # the white page
    text = re.sub(r'<g id="patch_2">.*?</g>', "", text, count=1, flags=re.S)  # the white plot
    text = text.replace(_INK, "currentColor").replace("stroke: #000000", "stroke: currentColor")
    # Ids such as line2d_1 repeat from chart to chart; nothing refers to them.
    text = re.sub(
        r' id="(?:figure|axes|patch|matplotlib\.axis|xtick|ytick|line2d|text|legend|PathCollection)_\d+"',
        "",
        text,
    )
    head = (
        f'<svg role="img" aria-label="{escape(description)}" style="max-width: 100%; height: auto"'
    )
    return text.replace("<svg", head, 1)
