"""The top of the page: a paragraph, five numbers, and every evaluation beside its reference.

In: sections of the page, and what is known of the training. Out: what the top of the template
shows. A reader who stops here knows what was trained, how far it got, and where it is no better
than something simpler.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .bars import Bar, BarChart
from .evaluation import Headline
from .sections import Section

_FIRST = 5  # numbers that stand on top


@dataclass(frozen=True)
class Tile:
    """One of the first numbers, and the section it is from."""

    section: Section
    headline: Headline


@dataclass(frozen=True)
class OverviewRow:
    """An evaluation beside its reference, with its bar."""

    section: Section
    headline: Headline
    chart: BarChart


def tiles(sections: Sequence[Section]) -> list[Tile]:
    """Choose the first numbers: one of every stage, then, with fewer stages, further ones."""
    chosen: list[Tile] = []
    most = max((len(section.headlines) for section in sections), default=0)
    for place in range(most):
        for section in sections:
            if place < len(section.headlines) and len(chosen) < _FIRST:
                chosen.append(Tile(section, section.headlines[place]))
    return chosen


def overview(sections: Sequence[Section]) -> list[OverviewRow]:
    """Put the first number of every section beside its reference, all on one scale."""
    rows = []
    for section in sections:
        if not section.headlines:
            continue
        headline = section.headlines[0]
        metric = headline.metric
        if metric.unit != "percent":
            continue
        bar = Bar(headline.label, metric.value, metric.ci95, reference=headline.reference_value)
        # The second, empty bar makes every row's scale end at 100%.
        chart = BarChart("", [bar, Bar("", 100.0)], headline.reference)
        rows.append(OverviewRow(section, headline, chart))
    return rows


def paragraph(sections: Sequence[Section], training: str, warnings: int) -> str:
    """Say in a few sentences what the model is, how far it got, and what to be careful about."""
    sentences = [sentence for sentence in (_model(sections), training) if sentence]
    sentences += _verdicts(sections)
    if warnings:
        count = "1 kind of warning" if warnings == 1 else f"{warnings} kinds of warnings"
        sentences.append(f"There are {count}, listed below.")
    return " ".join(sentences)


def _verdicts(sections: Sequence[Section]) -> list[str]:
    """Count where the model beats its reference, and name where it does not."""
    better = 0
    behind: dict[str, list[str]] = {}
    for section in sections:
        headline = section.headlines[0] if section.headlines else None
        if headline is None or headline.verdict is None:
            continue
        if headline.verdict == "above":
            better += 1
            continue
        phrase = "no better than" if headline.verdict == "level with" else "clearly worse than"
        behind.setdefault(f"{phrase} {headline.reference}", []).append(_lower(section.title))
    judged = better + sum(len(titles) for titles in behind.values())
    if not judged:
        return []
    evaluations = "1 evaluation" if judged == 1 else f"{judged} evaluations"
    sentences = [
        "It clearly beats its reference, which is chance or a simpler method, "
        f"in {better} of {evaluations}."
    ]
    if behind:
        listed = [f"{phrase} at {_joined(titles)}" for phrase, titles in behind.items()]
        sentences.append(f"It is {_joined(listed, ';')}.")
    return sentences


def _model(sections: Sequence[Section]) -> str:
    sizes, sides = [], []
    for section in sections:
        model = section.evaluation.result.model
        if "parameters" in model:
            sizes.append(int(model["parameters"]))
            sides.append(int(model.get("image_size", 0)))
    if not sizes:
        return ""
    smallest, largest = _millions(min(sizes)), _millions(max(sizes))
    size = smallest if smallest == largest else f"{smallest} to {largest}"
    side = f" and reads images of {sides[0]} × {sides[0]} pixels" if sides[0] else ""
    return f"The model has {size} million parameters{side}."


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:,.2f}" if parameters < 1e7 else f"{parameters / 1e6:,.0f}"


def _joined(parts: Sequence[str], comma: str = ",") -> str:
    if len(parts) < 2:
        return "".join(parts)
    last = f"{comma} and " if comma == ";" else " and "
    return f"{f'{comma} '.join(parts[:-1])}{last}{parts[-1]}"


def _lower(title: str) -> str:
    """Return a title for the middle of a sentence; an acronym keeps its capitals."""
    return title if title[1:2].isupper() else title[:1].lower() + title[1:]
