"""Retrieval: queries that were answered well, badly and worst, with their best candidates.

In: the records of a `retrieval` or `video-retrieval` result, and its images. Out: what
`retrieval.html.j2` shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eval.report.bars import Bar, BarChart
from eval.report.evaluation import Evaluation, Headline
from eval.report.gallery import Thumbnails, distinct, spread
from eval.report.labels import capitalized, metric_label

TITLE = "Image-text retrieval"
RANK = 10
_SHOWN = 2  # queries of a group that are shown at once


@dataclass(frozen=True)
class Candidate:
    """A retrieved sample in its place; ``image`` is a data URI, None for a text or a lost file."""

    place: int
    right: bool
    image: str | None
    text: str


@dataclass(frozen=True)
class Query:
    """A query with its best candidates, and the expected rank of the correct answer.

    ``first_rank`` is by the contrastive score, ``rank`` by the score that counts in the end.
    """

    text: str
    image: str | None
    candidates: list[Candidate]
    first_rank: float
    rank: float
    key: str


@dataclass(frozen=True)
class Group:
    """Queries of one quality."""

    title: str
    queries: list[Query]

    @property
    def first(self) -> list[Query]:
        """Queries that are shown at once."""
        return self.queries[:_SHOWN]

    @property
    def more(self) -> list[Query]:
        """Queries behind a click."""
        return self.queries[_SHOWN:]


def headlines(evaluation: Evaluation) -> list[Headline]:
    """Return recall@1 and @10 of both directions, re-ranked if they were, beside chance."""
    recalls = []
    for recall in ("R@1", "R@10"):
        for direction in _directions(evaluation):
            metric = evaluation.metrics.get(f"{direction}/reranked/{recall}")
            metric = metric or evaluation.metrics.get(f"{direction}/{recall}")
            if metric is not None:
                recalls.append(Headline(metric, "chance", metric.chance))
    return recalls


def content(evaluation: Evaluation) -> dict[str, Any]:
    """Draw both directions between chance and the best possible, and choose queries to show."""
    medium = "video" if evaluation.result.stage == "video-retrieval" else "image"
    by_text, by_image = [], []
    for line in evaluation.records:
        if line["direction"].startswith("text_to_"):
            by_text.append(line)
        else:
            by_image.append(line)
    charts = [_chart(evaluation, direction) for direction in _directions(evaluation)]
    return {
        "charts": [chart for chart in charts if chart.bars],
        "remark": _remark(evaluation),
        "directions": [
            {"title": f"Text to {medium}", "from": "text", "groups": _groups(by_text, evaluation)},
            {
                "title": f"{capitalized(medium)} to text",
                "from": medium,
                "groups": _groups(by_image, evaluation),
            },
        ],
        "medium": medium,
    }


def _directions(evaluation: Evaluation) -> list[str]:
    medium = "video" if evaluation.result.stage == "video-retrieval" else "image"
    return [f"text_to_{medium}", f"{medium}_to_text"]


def _chart(evaluation: Evaluation, direction: str) -> BarChart:
    """Draw recall@1 of a direction from chance over the baseline to the best possible."""
    name = f"{direction}/R@1"
    recall = evaluation.metrics.get(name)
    if recall is None:
        return BarChart("", [])
    bars = []
    if recall.chance is not None:
        bars.append(Bar("Chance", recall.chance, ours=False))
    baseline = evaluation.baseline("baseline")
    floor = None if baseline is None else baseline.metrics.get(name)
    best = None if baseline is None else baseline.metrics.get(f"ceiling/{name}")
    if floor is not None:
        bars.append(Bar("Baseline without a model", floor.value, floor.ci95, ours=False))
    bars.append(Bar("Contrastive score", recall.value, recall.ci95, name=name))
    reranked = evaluation.metrics.get(f"{direction}/reranked/R@1")
    if reranked is not None:
        bars.append(Bar("Re-ranked", reranked.value, reranked.ci95, name=reranked.name))
    if best is not None:
        bars.append(Bar("Best possible", best.value, ours=False))
    return BarChart(metric_label(name), bars)


def _remark(evaluation: Evaluation) -> str:
    """Compare recall with the best possible one: equal captions set a limit below 100%."""
    baseline = evaluation.baseline("baseline")
    if baseline is None:
        return ""
    name = "text_to_image/R@1"
    best, floor = baseline.metrics.get(f"ceiling/{name}"), baseline.metrics.get(name)
    recalls = headlines(evaluation)
    if best is None or floor is None or not recalls:
        return ""
    value = recalls[0].metric.value
    share = f"{value / best.value:.0%} of the best possible {best.value:.1f}%"
    if floor.value <= 0:
        return f"Text-to-image recall@1 is {share}."
    return (
        f"Text-to-image recall@1 is {share}, which equal captions set, and "
        f"{value / floor.value:.2g} times the {floor.value:.1f}% of a baseline without a model "
        "(closest training caption, then colors)."
    )


def _groups(lines: list[dict[str, Any]], evaluation: Evaluation) -> list[Group]:
    stage = "reranked" if lines and "reranked" in lines[0] else "contrastive"
    right, near, far = [], [], []
    for line in sorted(lines, key=lambda line: _rank(line[stage])):
        rank = _rank(line[stage])
        if rank == 1:
            right.append(line)
        elif rank <= 10:
            near.append(line)
        else:
            far.append(line)
    chosen = {
        "Right: the first answer is correct": spread(right),
        "Wrong: the correct answer is among the first ten": spread(near),
        "Worst: the correct answer is far down": distinct(far[::-1]),
    }
    groups = []
    for title, group in chosen.items():
        if group:
            queries = [_query(line, stage, evaluation.images) for line in group]
            groups.append(Group(title, queries))
    return groups


def _query(line: dict[str, Any], stage: str, images: Thumbnails) -> Query:
    of_text = line["direction"].startswith("text_to_")
    candidates = []
    for place, (candidate, _) in enumerate(line[stage]["top"], 1):
        # A candidate is a sample, or one of its captions by number.
        key, _, number = candidate.partition("#")
        captions: Sequence[str] = images.captions(key)
        text = candidate
        if captions:
            text = captions[0] if of_text else captions[int(number)]
        image = images(key) if of_text else None
        candidates.append(Candidate(place, key == line["image"], image, text))
    return Query(
        text=line.get("text", ""),
        image=images(line["image"]),
        candidates=candidates,
        first_rank=_rank(line["contrastive"]),
        rank=_rank(line[stage]),
        key=line["image"],
    )


def _rank(stage: dict[str, int]) -> float:
    """Return the expected rank of the correct answer when ties are broken at random."""
    return stage["above"] + (stage["tied"] + 1) / (stage["tied_positives"] + 1)
