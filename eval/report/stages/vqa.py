"""Questions on images: accuracy by type beside the blind score, with examples of every type.

In: the records of a `vqa` or `nlvr2` result, and its images. Out: what `vqa.html.j2` shows. The
blind score is what the questions alone give away: what a model learned from images lies above it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from eval.report.bars import Bar, BarChart
from eval.report.evaluation import Evaluation, Headline, beside_chance
from eval.report.gallery import Thumbnails
from eval.report.labels import capitalized

TITLE = "Visual question answering"
RANK = 20
_TYPES = 12  # of questions shown
_OPEN = 6  # of them shown at once
_BLIND = "the questions alone"
_VERDICTS: dict[float | None, tuple[str, str]] = {
    None: ("answer", "soft"),
    1: ("✓ right", "right"),
    0: ("✗ wrong", "wrong"),
}


def headlines(evaluation: Evaluation) -> list[Headline]:
    """Return accuracy beside the blind score, or beside chance where none was measured."""
    accuracy = evaluation.metrics.get("accuracy")
    blind = _blind(evaluation, "accuracy")
    if accuracy is None or blind is None:
        return beside_chance(accuracy)
    difference = evaluation.metrics.get("above_prior/accuracy")
    return [Headline(accuracy, _BLIND, blind, difference)]


def content(evaluation: Evaluation) -> dict[str, Any]:
    """Choose questions (or statements on pairs) of every type, and draw accuracy by type."""
    by_type: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in evaluation.records:
        by_type[line.get("type") or ""].append(line)
    common = sorted(by_type, key=lambda name: (-len(by_type[name]), name))
    noun = "statement" if any("statement" in line for line in evaluation.records) else "question"
    groups = []
    for name in common[:_TYPES]:
        examples = []
        for line in _good_and_bad(by_type[name]):
            examples.append(_example(line, evaluation.images))
        title = f"{capitalized(name) or 'All'}: {len(by_type[name]):,} {noun}s"
        groups.append({"title": title, "examples": examples})
    return {
        "chart": _chart(evaluation, common[:_TYPES]),
        "noun": noun,
        "groups": groups[:_OPEN],
        "more": groups[_OPEN:],
        "left_out": max(0, len(common) - _TYPES),
    }


def _chart(evaluation: Evaluation, types: list[str]) -> BarChart | None:
    shown = [("All", "accuracy")]
    for name in types:
        shown.append((capitalized(name), f"accuracy/type/{name}"))
    bars = []
    for label, name in shown:
        metric = evaluation.metrics.get(name)
        if metric is not None:
            reference = _blind(evaluation, name)
            bars.append(Bar(label, metric.value, metric.ci95, reference=reference, name=name))
    # Where nobody measured the blind score, chance is beside the accuracy in the text above.
    with_blind = any(bar.reference is not None for bar in bars)
    if len(bars) < 2:
        return None
    marks = _BLIND.removeprefix("the ") if with_blind else ""
    return BarChart("Accuracy by type of question", bars, marks)


def _blind(evaluation: Evaluation, name: str) -> float | None:
    """Return a metric's value without the image, from the result itself or from its baseline."""
    prior = evaluation.metrics.get(f"prior/{name}")
    if prior is not None:
        return prior.value
    baseline = evaluation.baseline(evaluation.result.stage)
    other = None if baseline is None else baseline.metrics.get(name)
    return None if other is None else other.value


def _good_and_bad(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a right and a wrong answer from the middle of each; without any, the first two."""
    right = [line for line in lines if _accuracy(line) == 1]
    wrong = [line for line in lines if _accuracy(line) == 0]
    if not right and not wrong:
        return lines[:2]
    return [group[len(group) // 2] for group in (right, wrong) if group]


def _example(line: dict[str, Any], images: Thumbnails) -> dict[str, Any]:
    question = line.get("question", line.get("statement", ""))
    answers = list(line.get("answers") or ())
    if not answers and line.get("label") is not None:
        answers = [line["label"]]
    counted = [f"{answer} ({count} ×)" for answer, count in Counter(answers).most_common(5)]
    prediction = line.get("prediction")
    accuracy = _accuracy(line)
    partly = (f"{100 * (accuracy or 0):.0f}% right", "soft")
    verdict, mark = _VERDICTS.get(accuracy, partly)
    return {
        "image": images(str(line.get("pair", line.get("image")))),
        "alt": f"image of the question: {question}",
        "question": question,
        "prediction": "none: the image cannot be read" if prediction is None else prediction,
        "answers": ", ".join(counted) if len(answers) > 1 else "".join(map(str, answers)),
        "people": len(answers) > 1,
        "mark": mark,
        "verdict": verdict,
    }


def _accuracy(line: dict[str, Any]) -> float | None:
    if "accuracy" in line:
        return float(line["accuracy"])
    if line.get("label") is None:
        return None
    return float(line["label"] == line.get("prediction"))
