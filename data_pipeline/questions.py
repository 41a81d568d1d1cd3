"""Questions as the text of a training batch: which answers are labels, and soft targets for them.

In: a sample's questions and the labels of a classifier. Out: the questions that can be trained on,
and for each a row of soft targets, float32 (labels,).
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

    `labels` maps answers, as the data spells them, to labels 0 to `count` - 1; other answers count
    for no label. With `soft` = `vqa`, a target is the official accuracy that the label would get:
    the mean over the annotators of min(1, m / 3), where m of the other annotators gave that answer.
    With `share` it is the share of the answers, and a sample is bad if an answer has no label.
    """

    labels: tuple[tuple[str, int], ...]
    count: int
    soft: Literal["vqa", "share"]

    def __post_init__(self) -> None:
        """Raise UsageError for labels that are out of range or an answer with two labels."""
        if self.soft not in ("vqa", "share"):
            raise UsageError(f'soft targets are "vqa" or "share", not {self.soft!r}')
        if not self.labels or not all(0 <= label < self.count for _, label in self.labels):
            raise UsageError(f"answers need labels from 0 to {self.count - 1}, at least one")
        for answer, times in Counter(answer for answer, _ in self.labels).items():
            if times > 1:
                raise UsageError(f"the answer {answer!r} has {times} labels instead of one")


def answered(key: str, questions: Sequence[Question], config: QuestionConfig) -> list[Question]:
    """Return the questions that have answers, which training needs.

    Raises `BadSample` if there are none, or, with `share`, if an answer has no label.
    """
    with_answers = [question for question in questions if question.answers]
    if not with_answers:
        raise BadSample("missing-field", f"sample {key}: none of its questions has answers")
    if config.soft == "share":
        labeled = [answer for answer, _ in config.labels]
        for question in with_answers:
            for answer in question.answers:
                if answer not in labeled:
                    names = ", ".join(map(repr, labeled))
                    raise BadSample(
                        "bad-json",
                        f"sample {key}: the answer {answer!r} is not one of the labels {names}",
                    )
    return with_answers


def targets(
    answers: Sequence[str], labels: dict[str, int], config: QuestionConfig
) -> NDArray[np.float32]:
    """Return the soft targets of a question, float32 (config.count,).

    `labels` is `dict(config.labels)`, made once by the caller.
    """
    row = np.zeros(config.count, dtype=np.float32)
    people = len(answers)
    for label, votes in Counter(labels[answer] for answer in answers if answer in labels).items():
        if config.soft == "share":
            row[label] = votes / people
        else:
            # Each annotator is left out once. The `votes` annotators who chose this label see one
            # vote less than the others do.
            left_out_a_vote = votes * min(1, (votes - 1) / 3)
            left_out_another = (people - votes) * min(1, votes / 3)
            row[label] = (left_out_a_vote + left_out_another) / people
    return row
