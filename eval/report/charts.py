"""Numbers over training steps to small line charts in inline SVG.

Text stays text, in the page's font and color, so that charts follow light and dark pages.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

_SIZE = (3.3, 2.1)  # inches
_REPEATED_IDS = r"figure|axes|patch|matplotlib\.axis|xtick|ytick|line2d|text|legend|PathCollection"
COLORS = ("#2f6fde", "#d9822b", "#2a9d76", "#a05fc4")
_INK = "#010203"  # replaced by the page's own color
_BESIDE: Any = {"textcoords": "offset points", "va": "center", "fontsize": 8}
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


@rc_context(_STYLE)
def line_chart(
    title: str,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    from_zero: bool = False,
) -> str:
    """Draw lines (label -> steps and values) over training steps; several have their labels."""
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes: Axes = figure.add_subplot()
    for color, (label, (steps, values)) in zip(COLORS, series.items(), strict=False):
        # A line of few points is easily mistaken for a smooth one.
        marker = "o" if len(steps) < 12 else None
        axes.plot(steps, values, color=color, marker=marker, markersize=3)
        if len(series) > 1 and len(steps):
            # At the line's end a label hides no other line, as a legend would.
            end = (steps[-1], values[-1])
            axes.annotate(label, end, (6, 0), color=color, **_BESIDE)
    axes.set_title(title, loc="left")
    axes.set_xlabel("step")
    axes.grid(axis="y", alpha=0.2, linewidth=0.6)
    if from_zero:
        axes.set_ylim(bottom=0)
    ends = []
    for label, (_, values) in series.items():
        if len(values):
            ends.append(f"{label} from {values[0]:.4g} to {values[-1]:.4g}")
    return _svg(figure, f"{title} over training steps: {'; '.join(ends)}")


def _shortened(attribute: re.Match[str]) -> str:
    return re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", attribute[0])


def _svg(figure: Figure, description: str) -> str:
    content = io.StringIO()
    # The salt makes element ids differ between charts of a page, and equal between two runs.
    with rc_context({"svg.hashsalt": description}):
        FigureCanvasSVG(figure).print_svg(content, metadata={"Date": None, "Creator": None})
    text = content.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    # The first two patches are the white page and the white plot, which would hide a dark page.
    text = re.sub(r'<g id="patch_1">.*?</g>', "", text, count=1, flags=re.S)
    text = re.sub(r'<g id="patch_2">.*?</g>', "", text, count=1, flags=re.S)
    text = text.replace(_INK, "currentColor").replace("stroke: #000000", "stroke: currentColor")
    # Ids such as line2d_1 repeat from chart to chart; nothing refers to them.
    text = re.sub(rf' id="(?:{_REPEATED_IDS})_\d+"', "", text)
    # Half of a chart's size is digits of coordinates that no screen shows. Only attributes are
    # shortened: the same digits in the text of an axis are values.
    text = re.sub(r' (?:d|x|y|transform)="[^"]*"', _shortened, text)
    head = f'<svg role="img" aria-label="{escape(description)}"'
    return text.replace("<svg", f'{head} style="max-width: 100%; height: auto"', 1)
