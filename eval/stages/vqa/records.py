"""What a line of `samples.jsonl` holds: one question and its answer."""

from __future__ import annotations

from typing import NotRequired, TypedDict


class VqaRecord(TypedDict):
    """A question, what annotators answered, and what the model (or a blind baseline) answered."""

    query: int | str
    """Id of the question."""
    image: str
    """Key of the image; intervals resample it."""
    question: str
    type: str
    """Type of the question, such as `is there`; empty if the data set has none."""
    answer_type: str
    answers: list[str]
    """Answers of the annotators; empty if they are kept secret."""
    prediction: str | None
    """None if the image cannot be read."""
    score: NotRequired[float | None]
    """Logit of the prediction; absent from blind baselines."""
    accuracy: NotRequired[float]
    """Official accuracy of the prediction, in 0..1; absent without answers."""
    ceiling: NotRequired[float]
    """Accuracy of the best label of the model, in 0..1."""
    chance: NotRequired[float]
    """Mean accuracy of all labels of the model, in 0..1."""
    prior: NotRequired[str]
    """Prediction of the blind baseline that the model is compared with."""
    by_type: NotRequired[str]
    """Only in blind baselines: the most frequent answer to questions of this type."""
