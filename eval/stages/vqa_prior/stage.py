"""Answers to questions by someone who cannot see: the line that a model has to be above.

In: training questions and the questions to answer. Out: a result of stage vqa, to be compared with
a model's question by question. Source: the blind baselines of Antol et al., VQA (arXiv:1505.00468),
section 5: the most frequent answer to questions of a type, and one linear layer on the words of the
question.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.utils.rnn import pad_sequence

from data_pipeline.errors import DataError
from data_pipeline.sample import Question
from data_pipeline.shards.manifest import Manifest
from eval.metrics.vqa_accuracy import ReferenceAnswers, accuracy
from eval.questions.inference import check_ids
from eval.questions.vocabulary import read_questions
from eval.results.run_stage import Measured
from eval.stages.vqa.records import VqaRecord
from eval.stages.vqa.stage import PROTOCOL, metrics

from .options import Options

__all__ = ["measure", "metrics"]

LABELS = 3129  # the most frequent answers, as many as published models know
WORDS = 5000  # the most frequent words and pairs of words
STEPS, BATCH, RATE, DECAY = 500, 512, 0.02, 1e-2


def measure(options: Options, manifest: Manifest) -> Measured:
    """Answer questions with nothing but the questions and answers of the training data.

    Predictions come from a linear layer on words; `by_type` of a record holds the most frequent
    answer to questions of its type.

    Raises
    ------
    DataError
        If the training data set is missing or broken, or its questions have no answers.
    """
    train = Manifest.load(options.train)
    training = [question for _, question in read_questions(train) if question.answers]
    if not training:
        raise DataError(f"the questions of {options.train} have no answers to learn from")
    keyed = list(read_questions(manifest, options.limit))
    questions = [question for _, question in keyed]
    # Results are compared by question id, so an id must occur once.
    check_ids([question.id for question in questions], str(manifest.root))
    answer_scores = [_answer_scores(question) for question in training]
    by_words = _answers_by_words(training, answer_scores, questions)
    by_type = _answers_by_type(training, answer_scores)
    records = []
    for (key, question), answer in zip(keyed, by_words, strict=True):
        record: VqaRecord = {
            "query": question.id,
            "image": key,
            "question": question.question,
            "type": question.type,
            "answer_type": question.answer_type,
            "answers": list(question.answers),
            "prediction": answer,
            "by_type": by_type.get(question.type, by_type[None]),
        }
        if question.answers:
            record["accuracy"] = accuracy(answer, question.answers)
        records.append(record)
    # Numbers before texts: the order in which a model's answers are written.
    records.sort(key=lambda record: (isinstance(record["query"], str), record["query"]))
    return Measured(
        stage="vqa",
        records=records,
        protocol=PROTOCOL,
        model={
            "name": "question only: one linear layer on words and pairs of words",
            "hash": None,
            "labels": LABELS,
        },
        data={
            "questions": len(questions),
            "train_path": str(options.train),
            "train_hash": f"sha256:{train.digest}",
            "train_questions": len(training),
        },
        metrics=metrics(records),
    )


def _answer_scores(question: Question) -> dict[str, float]:
    """Score each answer to a training question as the official accuracy would."""
    truth = ReferenceAnswers.of(question.answers, "always")
    return {answer: truth.score(answer) for answer in dict.fromkeys(truth.answers)}


def _answers_by_type(
    training: Sequence[Question], answer_scores: Sequence[dict[str, float]]
) -> dict[str | None, str]:
    """Return the answer with the highest mean score for each type, and for all questions (None).

    Of equal ones it is the first in alphabetical order.
    """
    totals: dict[str | None, Counter[str]] = defaultdict(Counter)
    for question, scores in zip(training, answer_scores, strict=True):
        for group in (question.type, None):
            for answer, score in scores.items():
                totals[group][answer] += score  # type: ignore[assignment]
    return {group: _first_by_total(total)[0] for group, total in totals.items()}


def _first_by_total(total: Counter[str]) -> list[str]:
    """Sort answers by their total, highest first, and equal ones alphabetically."""
    return sorted(total, key=lambda answer: (-total[answer], answer))


def _answers_by_words(
    training: Sequence[Question],
    answer_scores: Sequence[dict[str, float]],
    questions: Sequence[Question],
) -> list[str]:
    """Answer with a linear layer on words and pairs of neighbours, trained with soft targets."""
    votes: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for question, scores in zip(training, answer_scores, strict=True):
        votes.update(scores.keys())
        counts.update(_words(question))
    labels = _first_by_total(votes)[:LABELS]
    label_number = {answer: number for number, answer in enumerate(labels)}
    column = {word: number for number, (word, _) in enumerate(counts.most_common(WORDS))}
    # An embedding bag: a dense matrix of questions by words would fill gigabytes.
    layer = _train(training, answer_scores, label_number, column)
    answers = []
    with torch.inference_mode():
        for words in _word_columns(questions, column).split(BATCH):
            answers += [labels[number] for number in layer(words).argmax(dim=1).tolist()]
    return answers


def _train(
    training: Sequence[Question],
    answer_scores: Sequence[dict[str, float]],
    label_number: dict[str, int],
    column: dict[str, int],
) -> torch.nn.EmbeddingBag:
    words = _word_columns(training, column)
    layer = torch.nn.EmbeddingBag(
        len(column) + 1, len(label_number), mode="sum", padding_idx=len(column)
    )
    torch.nn.init.zeros_(layer.weight)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    no_label = len(label_number)
    numbers, targets = [], []
    for scores in answer_scores:
        numbers.append(torch.tensor([label_number.get(answer, no_label) for answer in scores]))
        targets.append(torch.tensor(list(scores.values())))
    padded_numbers, padded_targets = pad_sequence(numbers, True), pad_sequence(targets, True)
    for rows in islice(_batches(len(training)), STEPS):
        # Answers that are not labels share a column, which is cut off. Padding adds a target of 0
        # to label 0, which changes nothing.
        target = torch.zeros(len(rows), no_label + 1)
        target.scatter_add_(1, padded_numbers[rows], padded_targets[rows])
        logits = layer(words[rows])
        loss = binary_cross_entropy_with_logits(logits, target[:, :-1], reduction="sum")
        optimizer.zero_grad()
        (loss / len(rows)).backward()
        optimizer.step()
        schedule.step()
    return layer


def _batches(questions: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    while True:
        yield from torch.randperm(questions, generator=generator).split(BATCH)


def _words(question: Question) -> list[str]:
    """Return the words of a question and its pairs of neighbours, and "", which is the bias."""
    words = re.findall(r"\w+", question.question.lower())
    return ["", *words, *map(" ".join, pairwise(["", *words, ""]))]


def _word_columns(questions: Sequence[Question], column: dict[str, int]) -> Tensor:
    """Return the columns of each question's known words (questions, words), padded."""
    rows = []
    for question in questions:
        columns = [column[word] for word in _words(question) if word in column]
        rows.append(torch.tensor(columns))
    return pad_sequence(rows, True, len(column))
