"""Visual question answering with the official accuracy, beside its ceiling and blind baselines.

In: a model with a classifier over answers, and a data set with questions. Out: accuracy with
intervals, by type of question and of answer, under both versions of the official evaluator; an
answer file for the test server. All metrics are computed from the records.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError, UsageError
from data_pipeline.files import write_whole
from data_pipeline.shards.manifest import Manifest
from eval.encoding.features import load
from eval.metrics.vqa_accuracy import Version, accuracy
from eval.questions.inference import Answer, answer_questions
from eval.questions.vocabulary import LabelScores
from eval.results.intervals import mean_metric
from eval.results.run_stage import Measured
from eval.results.schema import Metric, read_records, read_result

from .options import Options
from .records import VqaRecord

SUBMISSION_NAME = "submission.json"
PROTOCOL = {
    "name": "VQA, official accuracy of 2021",
    "ties": "the first label, which is the most frequent in training",
    "intervals": "Wilson score for proportions, else percentile bootstrap; over images",
}


def measure(options: Options, manifest: Manifest) -> Measured:
    """Answer the questions of a data set.

    If the questions have no answers, as on a test server, there are predictions and no metrics.

    Raises
    ------
    UsageError
        If the model has no classifier for single images.
    DataError
        If `--submit` is given and the test server would not accept the question ids.
    """
    # Before the model is loaded: a prior on other data is an error that needs no waiting.
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
        # A classifier that has collapsed still scores well where one answer is common.
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


def _prior_predictions(folder: Path, manifest: Manifest) -> dict[int | str, str]:
    """Read the predictions of a blind baseline by question id."""
    result = read_result(folder)
    is_blind = result.stage == "vqa" and result.model["hash"] is None
    # A prior of the first N samples has "/first-N" behind the hash of the whole; questions that it
    # does not answer are refused one by one.
    whole = str(result.data.get("hash")).partition("/")[0]
    if not is_blind or whole != f"sha256:{manifest.digest}":
        raise DataError(
            f"{folder} is not a vqa-prior result on {manifest.root}: evaluate the prior on the "
            "same data"
        )
    return {record["query"]: record["prediction"] for record in read_records(folder)}


def _records(
    answers: Sequence[Answer], labels: Sequence[str], prior: dict[int | str, str] | None
) -> list[VqaRecord]:
    label_scores = LabelScores(labels)
    records = []
    for answer in answers:
        question = answer.question
        record: VqaRecord = {
            "query": question.id,
            "image": answer.key,
            "question": question.question,
            "type": question.type,
            "answer_type": question.answer_type,
            "answers": list(question.answers),
            "prediction": None if answer.label is None else labels[answer.label],
            "score": answer.score,
        }
        if question.answers:
            record["accuracy"] = accuracy(record["prediction"], question.answers)
            # No model can score more than its best label, and drawing a label scores the mean.
            record["ceiling"], record["chance"] = label_scores.best_and_mean(question.answers)
        if prior is not None:
            # A paired difference needs an answer from both to every question.
            if question.id not in prior:
                raise DataError(
                    f"the prior does not answer question {question.id!r}: evaluate it without limit"
                )
            record["prior"] = prior[question.id]
        records.append(record)
    return records


def metrics(records: Iterable[VqaRecord]) -> list[Metric]:
    """Compute every metric from the lines of `samples.jsonl`; none if there are no answers.

    `accuracy` is the official one of 2021; `accuracy/2017` and `accuracy/always` are those of other
    versions; `accuracy/type/TYPE` and `accuracy/answer_type/TYPE` are parts of it. `ceiling` is the
    accuracy of the best labels, `prior/accuracy` that of the blind baseline, and
    `above_prior/accuracy` the paired difference. In a blind baseline `by_type/accuracy` is the
    accuracy of the most frequent answer to each type of question.
    """
    lines = list(records)
    unanswered = [line["query"] for line in lines if not line["answers"]]
    if len(unanswered) == len(lines):
        return []
    # Metrics over a part of the questions would pass for those of the whole set.
    if unanswered:
        raise DataError(
            f"{len(unanswered)} of {len(lines)} questions have no answers, first {unanswered[0]!r}"
        )
    images = [line["image"] for line in lines]
    right = scores(lines)
    computed = [_accuracy("accuracy", right, lines)]
    versions: tuple[Version, ...] = ("2017", "always")
    for version in versions:
        other = [100 * accuracy(line["prediction"], line["answers"], version) for line in lines]
        computed.append(mean_metric(f"accuracy/{version}", other, images))
    computed += _by_type(lines, right, "type")
    computed += _by_type(lines, right, "answer_type")
    if "ceiling" in lines[0]:
        best = [100 * line["ceiling"] for line in lines]
        computed.append(mean_metric("ceiling", best, images))
    if "by_type" in lines[0]:
        computed.append(mean_metric("by_type/accuracy", scores(lines, "by_type"), images))
    if "prior" in lines[0]:
        blind = scores(lines, "prior")
        computed.append(mean_metric("prior/accuracy", blind, images))
        computed.append(
            mean_metric(
                "above_prior/accuracy", right - blind, images, unit="percentage points", chance=0.0
            )
        )
    return computed


def _by_type(
    lines: Sequence[VqaRecord], right: NDArray[np.float64], field: Literal["type", "answer_type"]
) -> list[Metric]:
    """Compute the accuracy of each type of question, or of answer, that the data set names."""
    rows_of: dict[str, list[int]] = {}
    for row, line in enumerate(lines):
        rows_of.setdefault(line[field], []).append(row)
    computed = []
    for name in sorted(rows_of):
        if name:
            rows = rows_of[name]
            part = [lines[row] for row in rows]
            computed.append(_accuracy(f"accuracy/{field}/{name}", right[rows], part))
    return computed


def _accuracy(name: str, right: NDArray[np.float64], lines: Sequence[VqaRecord]) -> Metric:
    """Average accuracies; chance is that of a label drawn at random, where labels are known."""
    chance = None
    if "chance" in lines[0]:
        chance = 100 * float(np.mean([line["chance"] for line in lines]))
    return mean_metric(name, right, [line["image"] for line in lines], chance=chance)


def scores(
    lines: Sequence[VqaRecord], field: Literal["prediction", "by_type", "prior"] = "prediction"
) -> NDArray[np.float64]:
    """Return the official accuracy of 2021, in percent, of a field of each line (lines,)."""
    return np.array([100 * accuracy(line[field], line["answers"]) for line in lines])


def write_submission(
    path: Path, records: Sequence[VqaRecord], question_ids: Sequence[int | str]
) -> None:
    """Write the answer file of the VQA test server: `[{"question_id": 1, "answer": "yes"}, ...]`.

    ``question_ids`` are the ids of all questions of the split.

    Raises
    ------
    DataError
        If an id is not a whole number, is missing, unknown or repeated, or an image could not be
        read.
    """
    for record in records:
        # A bool is an int in Python, and `true` is not an id to the test server.
        if not isinstance(record["query"], int) or isinstance(record["query"], bool):
            raise DataError(
                f"question id {record['query']!r} is not a whole number, which the test server "
                "requires"
            )
        if record["prediction"] is None:
            raise DataError(
                f"question {record['query']} has no answer: the image {record['image']} cannot be "
                "read"
            )
    questions = Counter(question_ids)
    answers = Counter(record["query"] for record in records)
    # Subtracting each distinct id once leaves the ids that occur more than once.
    repeated = (questions - Counter(set(questions))) + (answers - Counter(set(answers)))
    for problem, counts in (
        ("asked or answered more than once", repeated),
        ("not answered", questions - answers),
        ("answered but not asked", answers - questions),
    ):
        if counts:
            first = next(iter(counts))
            raise DataError(f"{path}: {len(counts)} question ids are {problem}, first {first}")
    entries = []
    for record in records:
        entries.append({"question_id": record["query"], "answer": record["prediction"]})
    write_whole(path, json.dumps(entries))
