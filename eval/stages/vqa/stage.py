"""Visual question answering with the official accuracy, beside what the labels allow and what blind answers reach.

In: a model with a classifier over answers, and a data set with questions. Out: accuracy with
intervals, by type of question and of answer, under both versions of the official evaluator; an
answer file for the test server. All metrics are computed from the records.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError, UsageError
from data_pipeline.files import write_whole
from data_pipeline.shards.manifest import Manifest
from eval.encoding.features import load
from eval.metrics.vqa_accuracy import accuracy
from eval.questions.inference import Answer, answer_questions
from eval.questions.vocabulary import LabelScores
from eval.results.intervals import mean_interval
from eval.results.run_stage import Measured
from eval.results.schema import Metric, read_records, read_result

from .options import Options

SUBMISSION_NAME = "submission.json"
PROTOCOL = {
    "name": "VQA, official accuracy of 2021",
    "ties": "the first label, which is the most frequent in training",
    "intervals": "percentile bootstrap over pictures",
}


def measure(options: Options, manifest: Manifest) -> Measured:
    """Answer the questions of a data set.

    Where the questions have no answers, as on a test server, there are predictions and no metrics.

    Raises
    ------
    UsageError
        If the model has no classifier for single images.
    DataError
        If ids are not what a test server takes.
    """
    prior = None if options.prior is None else _prior_predictions(options.prior, manifest)
    loaded = load(options.model, options.precision, options.cache)
    if loaded.model.config.classifier_images != 1:
        raise UsageError(
            f"the classifier of {options.model} is for pairs of images: evaluate it with nlvr2"
        )
    answers = answer_questions(loaded, manifest, limit=options.limit, batch_size=options.batch_size)
    labels = list(loaded.model.config.classifier_labels)
    records = _records(answers, labels, prior)
    unreadable = {answer.key: answer.problem for answer in answers if answer.problem}
    flags = []
    if len(records) > 1 and len({record["prediction"] for record in records}) == 1:
        flags.append("constant_prediction")
    if unreadable:
        flags.append("unreadable_images")
    if not records[0]["answers"]:
        flags.append("no_answers")
    question_ids = [answer.question.id for answer in answers]

    def submission(out: Path) -> None:
        write_submission(out / SUBMISSION_NAME, records, question_ids)

    return Measured(
        records=records,
        protocol=PROTOCOL | {"precision": options.precision},
        model=loaded.description | {"labels": len(labels)},
        data={
            "images": len({answer.key for answer in answers}),
            "questions": len(answers),
            "unreadable": unreadable,
        },
        flags=flags,
        device=str(loaded.device),
        write_more=submission if options.submit else None,
    )


def metrics(records: Iterable[dict[str, Any]]) -> list[Metric]:
    """Compute every metric from the lines of `samples.jsonl`; none where the questions have no answers.

    `accuracy` is the official one of 2021, `accuracy/2017` and `accuracy/always` those of the other
    versions, `accuracy/type/TYPE` and `accuracy/answer_type/TYPE` parts of it. `ceiling` is what
    the best labels reach, `prior/accuracy` what the answers without a picture do,
    `above_prior/accuracy` the paired difference; `by_type/accuracy`, of such answers, what the most
    frequent answer to each type of question does.
    """
    lines = list(records)
    unanswered = [line["query"] for line in lines if not line["answers"]]
    if len(unanswered) == len(lines):
        return []
    if unanswered:
        raise DataError(
            f"{len(unanswered)} of {len(lines)} questions have no answers, first {unanswered[0]!r}"
        )
    right = scores(lines)
    found = [_mean("accuracy", right, lines)]
    for version in ("2017", "always"):
        other = np.array(
            [100 * accuracy(line["prediction"], line["answers"], version) for line in lines]
        )
        found.append(_mean(f"accuracy/{version}", other, lines, guessed=False))
    for field in ("type", "answer_type"):
        for name in sorted({line[field] for line in lines} - {""}):
            chosen = [number for number, line in enumerate(lines) if line[field] == name]
            found.append(
                _mean(
                    f"accuracy/{field}/{name}", right[chosen], [lines[number] for number in chosen]
                )
            )
    if "ceiling" in lines[0]:
        best = np.array([100 * line["ceiling"] for line in lines])
        found.append(_mean("ceiling", best, lines, guessed=False))
    if "by_type" in lines[0]:
        found.append(_mean("by_type/accuracy", scores(lines, "by_type"), lines, guessed=False))
    if "prior" in lines[0]:
        blind = scores(lines, "prior")
        found.append(_mean("prior/accuracy", blind, lines, guessed=False))
        above = _mean("above_prior/accuracy", right - blind, lines, guessed=False)
        found.append(above.model_copy(update={"unit": "percentage points", "chance": 0.0}))
    return found


def scores(lines: Sequence[dict[str, Any]], field: str = "prediction") -> NDArray[np.float64]:
    """Official accuracy of 2021, in percent, of each line's prediction or another field (lines,)."""
    return np.array([100 * accuracy(line[field], line["answers"]) for line in lines])


def write_submission(path: Path, records: Sequence[dict[str, Any]], asked: Sequence[Any]) -> None:
    """Write the answer file of the VQA test server: `[{"question_id": 1, "answer": "yes"}, ...]`.

    ``asked`` are the ids of all questions of the split.

    Raises
    ------
    DataError
        If an id is no whole number, an id is missing, unknown or there twice, or a picture could
        not be read.
    """
    for record in records:
        if not isinstance(record["query"], int) or isinstance(record["query"], bool):
            raise DataError(
                f"question id {record['query']!r} is no whole number, as the test server wants them"
            )
        if record["prediction"] is None:
            raise DataError(
                f"question {record['query']} has no answer: the picture {record['image']} cannot be read"
            )
    questions, answers = Counter(asked), Counter(record["query"] for record in records)
    twice = (questions - Counter(set(questions))) + (answers - Counter(set(answers)))
    for what, counts in (
        ("asked or answered more than once", twice),
        ("not answered", questions - answers),
        ("answered but not asked", answers - questions),
    ):
        if counts:
            raise DataError(
                f"{path}: {len(counts)} question ids are {what}, first {next(iter(counts))}"
            )
    entries = [
        {"question_id": record["query"], "answer": record["prediction"]} for record in records
    ]
    write_whole(path, json.dumps(entries))


def _records(
    answers: Sequence[Answer], labels: Sequence[str], prior: dict[str | int, str] | None
) -> list[dict[str, Any]]:
    allowed = LabelScores(labels)
    records = []
    for answer in answers:
        question = answer.question
        record: dict[str, Any] = {
            "query": question.id,
            "image": answer.key,
            "question": question.question,
        }
        record |= {
            "type": question.type,
            "answer_type": question.answer_type,
            "answers": list(question.answers),
        }
        record |= {
            "prediction": None if answer.label is None else labels[answer.label],
            "score": answer.score,
        }
        if question.answers:
            record["accuracy"] = accuracy(record["prediction"], question.answers)
            record["ceiling"], record["chance"] = allowed.best_and_mean(question.answers)
        if prior is not None:
            if question.id not in prior:
                raise DataError(
                    f"the prior does not answer question {question.id!r}: evaluate it without limit"
                )
            record["prior"] = prior[question.id]
        records.append(record)
    return records


def _prior_predictions(folder: Path | str, manifest: Manifest) -> dict[str | int, str]:
    result = read_result(folder)
    if (
        result.stage != "vqa"
        or result.model["hash"] is not None
        or result.data.get("hash") != f"sha256:{manifest.digest}"
    ):
        raise DataError(
            f"{folder} is no vqa-prior result on {manifest.root}: evaluate the prior on the same data"
        )
    return {record["query"]: record["prediction"] for record in read_records(folder)}


def _mean(
    name: str, values: NDArray[np.float64], lines: Sequence[dict[str, Any]], guessed: bool = True
) -> Metric:
    """Average percentages; with ``guessed`` beside what drawing a label reaches, where the lines say it."""
    drawn = guessed and "chance" in lines[0]
    return Metric(
        name=name,
        value=float(np.mean(values)),
        unit="percent",
        ci95=mean_interval(values, [line["image"] for line in lines]),
        n=len(lines),
        chance=100 * float(np.mean([line["chance"] for line in lines])) if drawn else None,
    )
