"""Whether a statement is true of two pictures: accuracy, and consistency over all pairs that a sentence is about.

In: a model with a classifier over "False" and "True" for two pictures, and a data set of pairs with
statements. Out: both numbers with intervals, by file. Protocol: lil-lab/nlvr,
nlvr2/eval/metrics.py; a picture that cannot be read makes its statements wrong. All metrics are
computed from the records.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import DataError, UsageError
from data_pipeline.sample import Question
from data_pipeline.shards.manifest import Manifest
from eval.encoding.features import load, processes
from eval.questions.inference import Answer, answer_questions
from eval.results.contamination import flags as overlap_flags
from eval.results.contamination import overlap
from eval.results.intervals import mean_interval
from eval.results.schema import Metric, Result, data_flags, environment, write_result

LABELS = ("False", "True")
FILES = {
    "test1": "test-P",
    "test2": "test-U",
}  # what identifiers say, and what the files are called in papers


def evaluate(
    model: Path | str,
    data: Path | str,
    out: Path | str,
    *,
    limit: int | None = None,
    batch_size: int = 64,
    precision: str = "fp32",
    cache: Path | str | None = None,
) -> Result:
    """Judge the statements of a data set of pairs and write `result.json` and `samples.jsonl` into ``out``.

    Options are those of vqa.

    Raises
    ------
    UsageError, DataError, NumericsError
        For an unknown option or a model without such a classifier, for missing or broken data, for
        scores that are not finite.
    """
    manifest = Manifest.load(data)
    known = overlap(manifest, model)
    loaded = load(model, precision, cache)
    labels = tuple(loaded.model.config.classifier_labels)
    if loaded.model.config.classifier_images != 2 or sorted(labels) != sorted(LABELS):
        raise UsageError(
            f"{model} has no classifier of statements about two pictures: fine-tune it on pairs first"
        )
    started = time.perf_counter()
    answers = answer_questions(loaded, manifest, limit=limit, batch_size=batch_size)
    records = [_record(answer, labels, manifest.name) for answer in answers]
    unreadable = {answer.key: answer.problem for answer in answers if answer.problem}
    flags = overlap_flags(known) + data_flags(manifest)
    if unreadable:
        flags.append("unreadable_images")
    if len(records) > 1 and len({record["prediction"] for record in records}) == 1:
        flags.append("constant_prediction")
    if records[0]["label"] is None:
        flags.append("no_answers")
    state = processes()
    result = Result(
        stage="nlvr2",
        protocol={
            "name": "NLVR2, accuracy and consistency",
            "ties": "the label with the lowest number",
            "precision": precision,
            "intervals": "percentile bootstrap over sets of pairs",
        },
        data={
            "path": str(data),
            "name": manifest.name,
            "hash": f"sha256:{manifest.digest}",
            "pairs": len({answer.key for answer in answers}),
            "statements": len(answers),
            "overlap": known,
            "unreadable": unreadable,
        },
        model=loaded.description,
        environment=environment(state.num_processes, str(loaded.device)),
        metrics=metrics(records),
        flags=flags,
        timing={"total_s": time.perf_counter() - started},
    )
    if state.is_main_process:
        write_result(Path(out), result, records)
    state.wait_for_everyone()
    return result


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
