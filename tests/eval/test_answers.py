"""The vocabulary holds the answers that are frequent enough; others still count in the accuracy."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError, UsageError
from data_pipeline.questions import QuestionConfig, targets
from data_pipeline.shards.manifest import Manifest
from eval.metrics.vqa_accuracy import VERSIONS, accuracy, normalize
from eval.questions.vocabulary import LabelScores, Vocabulary, read_questions

from .questions import question, write_questions

TRAINING = [
    ["Two"] * 6 + ["2"] * 4,
    ["two."] * 10,
    ["The cat"] * 5 + ["cat"] * 5,
    ["cat"] * 10,
    ["a cat"] * 9 + ["dog"],
    ["dog"] * 10,
    ["A"] * 10,
    ["A"] * 10,
    [],
]


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = [[question(i, "what is it?", answers)] for i, answers in enumerate(TRAINING)]
    return write_questions(tmp_path_factory.mktemp("answers") / "train", samples)


def test_normalized_answers_are_counted_and_the_most_frequent_is_first(training: Path) -> None:
    vocabulary = Vocabulary.build([training], min_count=2)
    assert vocabulary.labels == ("cat", "2")
    assert Vocabulary.build([training, training], min_count=2).labels == ("cat", "2", "dog")
    assert [name for name, digest in vocabulary.sources if digest.startswith("sha256:")] == [
        "train"
    ]


def test_every_spelling_of_a_label_maps_to_it(training: Path) -> None:
    vocabulary = Vocabulary.build([training], min_count=2)
    table = dict(vocabulary.label_table())
    assert table == {"Two": 1, "2": 1, "two.": 1, "The cat": 0, "cat": 0, "a cat": 0}
    config = QuestionConfig(
        labels=vocabulary.label_table(), count=len(vocabulary.labels), soft="vqa"
    )
    assert targets(TRAINING[0], table, config).tolist() == [0.0, 1.0]
    assert targets(["a cat"] * 3 + ["ox"] * 7, table, config).tolist() == [pytest.approx(0.9), 0.0]


def test_a_vocabulary_is_read_back_unchanged_and_refused_after_a_change(
    training: Path, tmp_path: Path
) -> None:
    vocabulary = Vocabulary.build([training], min_count=2)
    path = tmp_path / "answers.json"
    vocabulary.save(path)
    assert Vocabulary.load(path) == vocabulary
    assert json.loads(path.read_text())["sha256"] == vocabulary.digest
    assert Vocabulary.build([training], min_count=1).digest != vocabulary.digest
    path.write_text(path.read_text().replace('"cat"', '"cow"', 1))
    with pytest.raises(DataError, match="was changed after it was written"):
        Vocabulary.load(path)
    for text in ("{}", "[]", "no", '{"format": "x", "sha256": "y"}'):
        path.write_text(text)
        with pytest.raises(DataError, match=r"answers\.json is not a vocabulary"):
            Vocabulary.load(path)
    with pytest.raises(DataError, match="cannot read the vocabulary"):
        Vocabulary.load(tmp_path / "none.json")


def test_too_rare_answers_and_missing_data_are_refused(training: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="no answer in .* is the most frequent answer of 9 questions"
    ):
        Vocabulary.build([training])
    with pytest.raises(UsageError, match="min_count of at least 1, not 0"):
        Vocabulary.build([training], min_count=0)
    with pytest.raises(UsageError, match="needs data sets"):
        Vocabulary.build([])


def test_a_vocabulary_skips_as_many_bad_samples_as_training_does(tmp_path: Path) -> None:
    good = [[question(i, "what is it?", answers)] for i, answers in enumerate(TRAINING)]
    one_bad = write_questions(tmp_path / "one", [[], *good])
    assert Vocabulary.build([one_bad], min_count=2).labels == ("cat", "2")
    with pytest.raises(DataError, match='has no "questions"'):
        list(read_questions(Manifest.load(one_bad)))
    many_bad = write_questions(tmp_path / "many", [*good, *[[]] * 20])
    with pytest.raises(
        DataError, match='more than 1% of the samples of .*many are bad .* has no "questions"'
    ):
        Vocabulary.build([many_bad], min_count=2)


def test_a_question_that_no_label_answers_has_accuracy_zero() -> None:
    scores = LabelScores(["cat", "2"])
    assert scores.best_and_mean(["ox"] * 10) == (0.0, 0.0)
    assert scores.best_and_mean(["cat"] * 10) == (1.0, 0.5)
    # Only the version of 2021 compares without normalization if all people agree.
    assert scores.best_and_mean(["two"] * 10) == (0.0, 0.0)
    assert scores.best_and_mean(["two"] * 10, "always") == (1.0, 0.5)


WORDS = st.sampled_from(["cat", "the cat", "two", "2", "t-shirt", "t shirt", "3.", "ox", "A", ""])


@settings(deadline=None)  # a busy machine is not a failure
@given(
    st.lists(WORDS, min_size=1, max_size=10),
    st.lists(WORDS, min_size=1, unique=True),
    st.sampled_from(VERSIONS),
)
def test_best_and_mean_equal_those_over_all_labels_in_turn(
    answers: list[str], labels: list[str], version: str
) -> None:
    accuracies = [accuracy(label, answers, version) for label in labels]
    best, mean = LabelScores(labels).best_and_mean(answers, version)
    assert best == max(accuracies)
    assert mean == pytest.approx(sum(accuracies) / len(accuracies))


def test_labels_are_sorted_by_falling_frequency(training: Path) -> None:
    vocabulary = Vocabulary.build([training], min_count=1)
    normalized = [normalize(answers[0]) for answers in TRAINING if answers]
    counts = [normalized.count(label) for label in vocabulary.labels]
    assert all(before >= after for before, after in pairwise(counts))
