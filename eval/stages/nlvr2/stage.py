"""Whether statements about two images are true: accuracy, and consistency over each sentence.

In: a model with a classifier over "False" and "True" for two images, and a data set of pairs with
statements. Out: both numbers with intervals, by file. Protocol: lil-lab/nlvr,
nlvr2/eval/metrics.py; an image that cannot be read makes its statements wrong. All metrics are
computed from the records.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from data_pipeline.errors import DataError, UsageError
from data_pipeline.sample import Question
from data_pipeline.shards.manifest import Manifest
from eval.encoding.features import load
from eval.questions.inference import Answer, answer_questions
from eval.results.intervals import mean_metric
from eval.results.run_stage import Measured
from eval.results.schema import Metric

from .options import Options
from .records import Nlvr2Record

LABELS = ("False", "True")
# Identifiers say test1 and test2; papers call these files test-P and test-U.
FILES = {"test1": "test-P", "test2": "test-U"}


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
    # The order of labels may differ between models; records hold names, not numbers.
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
            "intervals": "Wilson score for proportions, over sets of pairs",
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


def _record(answer: Answer, labels: Sequence[str], data_name: str) -> Nlvr2Record:
    question = answer.question
    file, image_set, group = _identify(question, answer.key, data_name)
    return {
        "query": question.id,
        "statement": question.question,
        "pair": answer.key,
        "image": image_set,
        "file": file,
        "group": group,
        "label": _label(question),
        "prediction": None if answer.label is None else labels[answer.label],
        "score": answer.score,
    }


def _identify(question: Question, key: str, data_name: str) -> tuple[str, str, str]:
    """Return the file, the set of pairs that share images, and the sentence of a statement.

    They are parts of its identifier FILE-SET-PAIR-SENTENCE. Statements with other ids belong to the
    data set's only file, to the set of their pair, and to their `group`.
    """
    # Sentences are written for a set of pairs, so the same one may occur in several pairs of a set.
    fields = str(question.id).split("-")
    if len(fields) != 4:
        return data_name, key, question.group or str(question.id)
    file, number, _, sentence = fields
    image_set = f"{file}-{number}"
    return FILES.get(file, file), image_set, question.group or f"{image_set}-{sentence}"


def _label(question: Question) -> str | None:
    if not question.answers:
        return None
    if len(set(question.answers)) > 1 or question.answers[0] not in LABELS:
        raise DataError(
            f'statement {question.id!r} must have the answer "True" or "False", not '
            f"{question.answers}"
        )
    return question.answers[0]


def metrics(records: Iterable[Nlvr2Record]) -> list[Metric]:
    """Compute every metric from the lines of `samples.jsonl`; none if the labels are kept secret.

    `accuracy` is over statements, `consistency` over sentences (right if all statements with the
    same sentence are), and `majority/accuracy` is that of the more frequent answer, which looks at
    no image. If statements come from several files, there are also `FILE/accuracy` and so on.

    Raises
    ------
    DataError
        If a statement has no prediction, or only some have labels.
    """
    lines = list(records)
    for line in lines:
        # A missing prediction is a broken file, not a wrong answer.
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
    computed = _metrics("", lines)
    files = sorted({line["file"] for line in lines})
    if len(files) > 1:
        for file in files:
            computed += _metrics(f"{file}/", [line for line in lines if line["file"] == file])
    return computed


def _metrics(prefix: str, lines: Sequence[Nlvr2Record]) -> list[Metric]:
    image_sets = [line["image"] for line in lines]
    right = np.array([100.0 * (line["prediction"] == line["label"]) for line in lines])
    rows_of: dict[tuple[str, str], list[int]] = {}
    for row, line in enumerate(lines):
        rows_of.setdefault((line["file"], line["group"]), []).append(row)
    all_right, sets_of_sentences, guessed = [], [], []
    for rows in rows_of.values():
        all_right.append(right[rows].min())
        sets_of_sentences.append(image_sets[rows[0]])
        # Guessing is right on each of n statements with probability 1/2.
        guessed.append(0.5 ** len(rows))
    is_true = np.array([100.0 * (line["label"] == "True") for line in lines])
    # Whichever answer is more frequent: always giving it looks at no image.
    majority = is_true if is_true.mean() >= 50 else 100 - is_true
    return [
        mean_metric(f"{prefix}accuracy", right, image_sets, chance=50.0),
        mean_metric(
            f"{prefix}consistency",
            all_right,
            sets_of_sentences,
            chance=100 * float(np.mean(guessed)),
        ),
        mean_metric(f"{prefix}majority/accuracy", majority, image_sets),
    ]
