"""Whether a statement is true of two pictures: accuracy, and consistency over all pairs that a sentence is about.

In: a model with a classifier over "False" and "True" for two pictures, and a data set of pairs with
statements. Out: both numbers with intervals, by file. Protocol: lil-lab/nlvr,
nlvr2/eval/metrics.py; a picture that cannot be read makes its statements wrong. All metrics are
computed from the records.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from data_pipeline.errors import DataError, UsageError
from data_pipeline.sample import Question
from data_pipeline.shards.manifest import Manifest
from eval.encoding.features import load
from eval.questions.inference import Answer, answer_questions
from eval.results.intervals import mean_interval
from eval.results.run_stage import Measured
from eval.results.schema import Metric

from .options import Options

LABELS = ("False", "True")
FILES = {
    "test1": "test-P",
    "test2": "test-U",
}  # what identifiers say, and what the files are called in papers


def measure(options: Options, manifest: Manifest) -> Measured:
    """Judge the statements of a data set of pairs.

    Raises
    ------
    UsageError
        If the model has no classifier of statements about two images.
    NumericsError
        If a score is not finite.
    """
    loaded = load(options.model, options.precision, options.cache)
    labels = tuple(loaded.model.config.classifier_labels)
    if loaded.model.config.classifier_images != 2 or sorted(labels) != sorted(LABELS):
        raise UsageError(
            f"{options.model} has no classifier of statements about two images: "
            "fine-tune it on pairs first"
        )
    answers = answer_questions(loaded, manifest, limit=options.limit, batch_size=options.batch_size)
    records = [_record(answer, labels, manifest.name) for answer in answers]
    unreadable = {answer.key: answer.problem for answer in answers if answer.problem}
    flags = []
    if unreadable:
        flags.append("unreadable_images")
    if len(records) > 1 and len({record["prediction"] for record in records}) == 1:
        flags.append("constant_prediction")
    if records[0]["label"] is None:
        flags.append("no_answers")
    return Measured(
        records=records,
        protocol={
            "name": "NLVR2, accuracy and consistency",
            "ties": "the label with the lowest number",
            "precision": options.precision,
            "intervals": "percentile bootstrap over sets of pairs",
        },
        model=loaded.description,
        data={
            "pairs": len({answer.key for answer in answers}),
            "statements": len(answers),
            "unreadable": unreadable,
        },
        flags=flags,
        device=str(loaded.device),
    )


def metrics(records: Iterable[dict[str, Any]]) -> list[Metric]:
    """Compute every metric from the lines of `samples.jsonl`; none where the labels are kept secret.

    `accuracy` over statements, `consistency` over sentences (all statements with the same sentence
    right), `majority/accuracy` of the answer that is more often right on these data, whatever the
    picture; where statements are of several files also `FILE/accuracy` and so on.

    Raises
    ------
    DataError
        If a statement has no prediction, or only some have labels.
    """
    lines = list(records)
    for line in lines:
        if "prediction" not in line:
            raise DataError(
                f"statement {line['query']!r} has no prediction: every one must be judged"
            )
    secret = [line["query"] for line in lines if line["label"] is None]
    if len(secret) == len(lines):
        return []
    if secret:
        raise DataError(
            f"{len(secret)} of {len(lines)} statements have no label, first {secret[0]!r}"
        )
    found = _metrics("", lines)
    files = sorted({line["file"] for line in lines})
    for file in files if len(files) > 1 else []:
        found += _metrics(f"{file}/", [line for line in lines if line["file"] == file])
    return found


def _metrics(prefix: str, lines: Sequence[dict[str, Any]]) -> list[Metric]:
    sets = [line["image"] for line in lines]
    right = np.array([100.0 * (line["prediction"] == line["label"]) for line in lines])
    groups: dict[tuple[str, str], list[int]] = {}
    for number, line in enumerate(lines):
        groups.setdefault((line["file"], line["group"]), []).append(number)
    all_right = [right[numbers].min() for numbers in groups.values()]
    guessed = 100 * float(np.mean([0.5 ** len(numbers) for numbers in groups.values()]))
    true = np.array([100.0 * (line["label"] == "True") for line in lines])
    majority = true if true.mean() >= 50 else 100 - true
    return [
        _metric(f"{prefix}accuracy", right, sets, 50.0),
        _metric(
            f"{prefix}consistency",
            all_right,
            [sets[numbers[0]] for numbers in groups.values()],
            guessed,
        ),
        _metric(f"{prefix}majority/accuracy", majority, sets, None),
    ]


def _metric(name: str, values: Any, sets: Sequence[str], chance: float | None) -> Metric:
    return Metric(
        name=name,
        value=float(np.mean(values)),
        unit="percent",
        ci95=mean_interval(values, sets),
        n=len(values),
        chance=chance,
    )


def _record(answer: Answer, labels: Sequence[str], name: str) -> dict[str, Any]:
    question = answer.question
    file, pictures, group = _places(question, answer.key, name)
    record: dict[str, Any] = {
        "query": question.id,
        "statement": question.question,
        "pair": answer.key,
    }
    record |= {"image": pictures, "file": file, "group": group, "label": _label(question)}
    return record | {
        "prediction": None if answer.label is None else labels[answer.label],
        "score": answer.score,
    }


def _places(question: Question, key: str, name: str) -> tuple[str, str, str]:
    """File, set of pairs that share pictures, and sentence of a statement, from its identifier FILE-SET-PAIR-SENTENCE.

    Statements with other ids belong to the data set's one file, to the set of their pair, and to
    their `group`.
    """
    fields = str(question.id).split("-")
    if len(fields) != 4:
        return name, key, question.group or str(question.id)
    file, number, _, sentence = fields
    return (
        FILES.get(file, file),
        f"{file}-{number}",
        question.group or f"{file}-{number}-{sentence}",
    )


def _label(question: Question) -> str | None:
    if not question.answers:
        return None
    if len(set(question.answers)) > 1 or question.answers[0] not in LABELS:
        raise DataError(
            f'statement {question.id!r} must have the answer "True" or "False", not {question.answers}'
        )
    return question.answers[0]
