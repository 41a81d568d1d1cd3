"""The part of a page that shows one result beyond its numbers: galleries, questions by type, true and false captions.

A stage gets a part by a line in ``_PARTS``: a title, a template, and a function from its result to
what that shows. One without has its table of metrics.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from eval.results.schema import Result, read_records

from .charts import Bar, interval_chart
from .few_shot import NAMES, few_shot
from .gallery import Thumbnails, image_queries, text_queries
from .metric_learning import metric_learning
from .multi_label import multi_label
from .overlays import overlays

_EXAMPLES = 8  # true and false captions shown
_TYPES = 12  # of questions shown
WORDS = {
    "text_to_image": "text → image",
    "image_to_text": "image → text",
    "text_to_video": "text → video",
    "video_to_text": "video → text",
    "reranked": "re-ranked",
    "reranked_gain": "gain by re-ranking",
    "contrastive": "contrastive score",
    "matching": "matching head",
    "MdR": "median rank",
    "MeanR": "mean rank",
    "tie_rate": "queries tied with a wrong answer",
    "cut_in_a_tie": "shortlists cut in a tie",
    "vqa": "VQA",
    "nlvr2": "NLVR2",
    "above_prior": "above the prior",
    "answer_type": "answer type",
    "align": "alignment",
    "mass": "attention inside",
    "mass_over_uniform": "attention inside, over uniform",
    "pointing_over_uniform": "pointing, over uniform",
    "IoU_over_uniform": "IoU, over uniform",
    "mean_per_class": "mean per class",
    **NAMES,
    "above_proto": "above ProtoNet",
    "above_zero_shot": "above zero-shot",
}


@dataclass(frozen=True)
class Section:
    """A part of the page: what ``template`` shows of ``content``, whose ``problem`` says why pictures are missing."""

    anchor: str
    title: str
    template: str
    content: dict[str, Any]


def sections_of(read: Sequence[tuple[Path, Result]], names: Sequence[str]) -> list[Section]:
    """Make the parts of a page, in the order of the results; ``names`` tell results apart."""
    found = []
    for number, ((folder, result), name) in enumerate(zip(read, names, strict=True)):
        if result.stage in _PARTS:
            title, template, content = _PARTS[result.stage]
            suffix = name.removeprefix(result.stage)
            thumbnails = Thumbnails(Path(str(result.data.get("path"))), result.data.get("hash"))
            shown = {"problem": thumbnails.problem} | content(
                list(read_records(folder)), result, thumbnails
            )
            found.append(Section(f"{result.stage}-{number}", title + suffix, template, shown))
    return found


def tell_apart(read: Sequence[tuple[Path, Result]]) -> list[str]:
    """Name results by their stages, and several of one stage by as much of their folders as tells them apart.

    Raises
    ------
    DataError
        If a folder is named twice.
    """
    folders = [folder.resolve() for folder, _ in read]
    for folder, count in Counter(folders).items():
        if count > 1:
            raise DataError(f"{folder} is named {count} times")
    names = []
    for (_, result), folder in zip(read, folders, strict=True):
        same = [
            other for (_, r), other in zip(read, folders, strict=True) if r.stage == result.stage
        ]
        if len(same) == 1:
            names.append(result.stage)
            continue
        parts = next(
            n
            for n in range(1, len(folder.parts) + 1)
            if len({other.parts[-n:] for other in same}) == len(same)
        )
        names.append(f"{result.stage} ({'/'.join(folder.parts[-parts:])})")
    return names


def label(name: str) -> str:
    """Name of a metric as people read it."""
    return " · ".join(WORDS.get(part, part) for part in name.split("/"))


def _gallery(
    records: list[dict[str, Any]], result: Result, thumbnails: Thumbnails
) -> dict[str, Any]:
    return {
        "text": text_queries(records, thumbnails),
        "image": image_queries(records, thumbnails),
        "media": "video" if result.stage == "video-retrieval" else "image",
    }


def _preference(
    records: list[dict[str, Any]], result: Result, thumbnails: Thumbnails
) -> dict[str, Any]:
    kinds = sorted({line["kind"] for line in records})
    shown = []
    for kind in kinds:
        several = [line for line in records if line["kind"] == kind]
        count = -(-_EXAMPLES // len(kinds))
        shown += [several[i * len(several) // count] for i in range(min(count, len(several)))]
    examples = [
        {
            "picture": thumbnails(line["image"]),
            "kind": line["kind"],
            "true": line["true"],
            "false": line["false"],
            "right": line["matching"][0] > line["matching"][1],
        }
        for line in shown
    ]
    return {"examples": examples}


def _questions(
    records: list[dict[str, Any]], result: Result, thumbnails: Thumbnails
) -> dict[str, Any]:
    """Choose questions (or statements on pairs) of every type, and draw the accuracy of the types."""
    by_type: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in records:
        by_type[line.get("type") or ""].append(line)
    common = sorted(by_type, key=lambda name: (-len(by_type[name]), name))
    groups = [
        {
            "title": f"{name or 'All'}: {len(by_type[name]):,} questions",
            "examples": [_asked(line, thumbnails) for line in _good_and_bad(by_type[name])],
        }
        for name in common[:_TYPES]
    ]
    bars = [
        Bar(metric.name.rpartition("/")[2], metric.value, metric.ci95, True)
        for metric in result.metrics
        if metric.name.startswith("accuracy/type/")
        and metric.name.rpartition("/")[2] in common[:_TYPES]
    ]
    others = {"prior/accuracy": "all, without the picture", "accuracy": "all"}
    bars += [
        Bar(words, m.value, m.ci95, "with" not in words)
        for m in result.metrics
        if (words := others.get(m.name, ""))
    ]
    chart = interval_chart("Accuracy by type of question", bars) if len(bars) > 1 else None
    return {"groups": groups, "chart": chart, "left_out": max(0, len(common) - _TYPES)}


def _good_and_bad(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    right = [line for line in lines if _accuracy(line) == 1]
    wrong = [line for line in lines if _accuracy(line) == 0]
    if not right and not wrong:
        return lines[:2]
    return [several[len(several) // 2] for several in (right, wrong) if several]


def _asked(line: dict[str, Any], thumbnails: Thumbnails) -> dict[str, Any]:
    question = line.get("question", line.get("statement", ""))
    accuracy = _accuracy(line)
    said = Counter(
        line.get("answers") or ([line["label"]] if line.get("label") is not None else [])
    )
    verdicts: dict[float | None, str] = {None: "answer", 1: "✓ right", 0: "✗ wrong"}
    marks: dict[float | None, str] = {1: "right", 0: "wrong"}
    return {
        "picture": thumbnails(str(line.get("pair", line.get("image")))),
        "alt": f"picture of the question: {question}",
        "question": question,
        "prediction": "none: the picture cannot be read"
        if line.get("prediction") is None
        else line["prediction"],
        "answers": ", ".join(f"{answer} ({count} ×)" for answer, count in said.most_common(5)),
        "mark": marks.get(accuracy, "soft"),
        "verdict": verdicts.get(accuracy, f"{100 * (accuracy or 0):.0f} % right"),
    }


def _accuracy(line: dict[str, Any]) -> float | None:
    if "accuracy" in line:
        return float(line["accuracy"])
    if line.get("label") is None:
        return None
    return float(line["label"] == line.get("prediction"))


def _alignment(
    records: list[dict[str, Any]], result: Result, thumbnails: Thumbnails
) -> dict[str, Any]:
    return {"groups": overlays(records, thumbnails)}


_PARTS: dict[
    str, tuple[str, str, Callable[[list[dict[str, Any]], Result, Thumbnails], dict[str, Any]]]
] = {
    "retrieval": ("Retrieval", "retrieval.html.j2", _gallery),
    "video-retrieval": ("Video retrieval", "retrieval.html.j2", _gallery),
    "preference": ("True or false captions", "preference.html.j2", _preference),
    "few-shot": ("Few-shot recognition", "few_shot.html.j2", few_shot),
    "metric-learning": ("Metric learning", "metric_learning.html.j2", metric_learning),
    "align": ("Alignment", "alignment.html.j2", _alignment),
    "vqa": ("Questions", "questions.html.j2", _questions),
    "nlvr2": ("Statements on two pictures", "questions.html.j2", _questions),
    "multi-label": ("Several labels from few pictures", "multi_label.html.j2", multi_label),
}
