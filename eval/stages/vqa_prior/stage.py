"""What answers to questions reach without looking at the picture: the line that a model has to be above.

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
from typing import Any

import numpy as np
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
from eval.stages.vqa.stage import PROTOCOL, metrics

from .options import Options

__all__ = ["measure", "metrics"]

LABELS, WORDS = (
    3129,
    5000,
)  # the most frequent answers (as many as published models know) and words, single or in pairs
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
    check_ids([question.id for question in questions], str(manifest.root))
    worth = [_worth(question) for question in training]
    by_words = _by_words(training, worth, questions)
    by_type = _by_type(training, worth)
    records = []
    for (key, question), answer in zip(keyed, by_words, strict=True):
        record: dict[str, Any] = {
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


def _worth(question: Question) -> dict[str, float]:
    """Score each answer to a training question as the official accuracy would."""
    truth = ReferenceAnswers.of(question.answers, "always")
    return {answer: truth.score(answer) for answer in dict.fromkeys(truth.answers)}


def _by_type(
    training: Sequence[Question], worth: Sequence[dict[str, float]]
) -> dict[str | None, str]:
    """Find the answer with the highest mean score for each type, and for all (None); the first of equals in order."""
    totals: dict[str | None, Counter[str]] = defaultdict(Counter)
    for question, scores in zip(training, worth, strict=True):
        for place in (question.type, None):
            for answer, score in scores.items():
                totals[place][answer] += score  # type: ignore[assignment]
    return {
        place: min(total, key=lambda answer: (-total[answer], answer))
        for place, total in totals.items()
    }


def _by_words(
    training: Sequence[Question], worth: Sequence[dict[str, float]], asked: Sequence[Question]
) -> list[str]:
    """Train one linear layer on words and pairs of neighbours with soft targets, and answer with it."""
    votes = Counter(answer for scores in worth for answer in scores)
    labels = [
        answer for answer, _ in sorted(votes.items(), key=lambda item: (-item[1], item[0]))[:LABELS]
    ]
    number = {answer: label for label, answer in enumerate(labels)}
    counts = Counter(word for question in training for word in _words(question))
    features = {word: column for column, (word, _) in enumerate(counts.most_common(WORDS))}
    known = _padded(training, features)
    layer = torch.nn.EmbeddingBag(
        len(features) + 1, len(labels), mode="sum", padding_idx=len(features)
    )
    torch.nn.init.zeros_(layer.weight)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    answers = pad_sequence(
        [torch.tensor([number.get(a, len(labels)) for a in scores]) for scores in worth], True
    )
    targets = pad_sequence([torch.tensor(list(scores.values())) for scores in worth], True)
    for rows in islice(_batches(len(training)), STEPS):
        # Answers that are no label share a column that is cut off; padding adds nothing to the
        # column of label 0.
        wanted = torch.zeros(len(rows), len(labels) + 1).scatter_add_(
            1, answers[rows], targets[rows]
        )[:, :-1]
        loss = binary_cross_entropy_with_logits(layer(known[rows]), wanted, reduction="sum") / len(
            rows
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.inference_mode():
        blocks = [
            layer(rows).numpy().argmax(axis=1) for rows in _padded(asked, features).split(BATCH)
        ]
    return [labels[label] for label in np.concatenate(blocks)]


def _batches(questions: int) -> Iterator[Tensor]:
    random = torch.Generator().manual_seed(0)
    while True:
        yield from torch.randperm(questions, generator=random).split(BATCH)


def _words(question: Question) -> list[str]:
    words = re.findall(r"\w+", question.question.lower())
    return ["", *words, *map(" ".join, pairwise(["", *words, ""]))]  # the empty one is the bias


def _padded(questions: Sequence[Question], features: dict[str, int]) -> Tensor:
    rows = [
        torch.tensor([features[w] for w in _words(question) if w in features])
        for question in questions
    ]
    return pad_sequence(rows, True, len(features))
