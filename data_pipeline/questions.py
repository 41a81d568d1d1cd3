"""Questions as the text of a training batch: which answers are labels, and how much of each label a question wants.

In: a sample's questions. Out: a row of soft targets, float32 (labels,).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import UsageError
from data_pipeline.sample import BadSample, Question


@dataclass(frozen=True)
class QuestionConfig:
    """Labels of a classifier, and how answers become soft targets.

    `labels` gives answers as they stand in the data their label, 0 to `count` - 1; what it does not
    name counts for none. `soft` is `vqa`, the official accuracy that a label would get (the mean
    over the annotators of min(1, m / 3), with m of the others who say so), or `share`, the share of
    the answers, where a sample is bad if one has no label.
    """

    labels: tuple[tuple[str, int], ...]
    count: int
    soft: Literal["vqa", "share"]

    def __post_init__(self) -> None:
        """Raise UsageError for labels that are out of range, or an answer with two of them."""
        if self.soft not in ("vqa", "share"):
            raise UsageError(f'soft targets are "vqa" or "share", not {self.soft!r}')
        if not self.labels or not all(0 <= label < self.count for _, label in self.labels):
            raise UsageError(f"answers need labels from 0 to {self.count - 1}, at least one")
        for answer, times in Counter(answer for answer, _ in self.labels).items():
            if times > 1:
                raise UsageError(f"the answer {answer!r} has {times} labels, it can have one")


def answered(key: str, questions: Sequence[Question], config: QuestionConfig) -> list[Question]:
    """Those questions that have answers, which training needs.

    Raises `BadSample` where there are none, or, of `share`, where one of the answers is no label.
    """
    found = [question for question in questions if question.answers]
    if not found:
        raise BadSample("missing-field", f"sample {key}: none of its questions has answers")
    if config.soft == "share":
        known = [answer for answer, _ in config.labels]
        for answer in (answer for question in found for answer in question.answers):
            if answer not in known:
                names = ", ".join(map(repr, known))
                raise BadSample(
                    "bad-json", f"sample {key}: the answer {answer!r} is none of the labels {names}"
                )
    return found


def targets(
    answers: Sequence[str], labels: dict[str, int], config: QuestionConfig
) -> NDArray[np.float32]:
    """Soft targets of a question, float32 (config.count,); `labels` is `dict(config.labels)`."""
    row = np.zeros(config.count, dtype=np.float32)
    people = len(answers)
    for label, votes in Counter(labels[answer] for answer in answers if answer in labels).items():
        if config.soft == "share":
            row[label] = votes / people
        else:  # each annotator is left out once: those who voted for the label see one vote less
            row[label] = (
                votes * min(1, (votes - 1) / 3) + (people - votes) * min(1, votes / 3)
            ) / people
    return row
