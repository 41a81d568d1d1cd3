"""The vocabulary of answers: a classifier's labels, built from training questions.

In: data sets with questions. Out: a `Vocabulary`, whose labels are the normalized answers that are
the most frequent answer of enough training questions; and the best and the mean accuracy that
labels can reach on a question (`LabelScores`).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from data_pipeline.errors import DataError, UsageError
from data_pipeline.files import write_whole
from data_pipeline.quarantine import FEWEST
from data_pipeline.sample import BadSample, Question, parse_annotations, parse_questions
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.store import Store
from eval.metrics.vqa_accuracy import ReferenceAnswers, Version, normalize, one_line

FORMAT = "glscl-answers/1"
BAD_SHARE = 0.01  # bad samples that are accepted, as in training


@dataclass(frozen=True)
class Vocabulary:
    """Answers as labels 0, 1, ..., the most frequent first.

    ``spellings`` are the raw answers of the training data with the labels that they normalize to;
    ``sources`` are the names and hashes of the data sets.
    """

    labels: tuple[str, ...]
    spellings: tuple[tuple[str, int], ...]
    min_count: int
    sources: tuple[tuple[str, str], ...]

    @classmethod
    def build(cls, data: Sequence[Path | str], min_count: int = 9) -> Vocabulary:
        """Collect the answers that are the most frequent one of at least ``min_count`` questions.

        Pass the training split only: answers of the validation split would raise its accuracy.

        Raises
        ------
        UsageError
            If ``min_count`` is less than 1, or ``data`` is empty.
        DataError
            If a data set is missing or broken, too many of its samples are bad, or no answer is
            frequent enough.
        """
        if min_count < 1 or not data:
            raise UsageError(
                f"a vocabulary needs data sets and a min_count of at least 1, not {min_count}"
            )
        manifests = [Manifest.load(path) for path in data]
        question_counts: Counter[str] = Counter()
        normalized: dict[str, str] = {}
        for manifest in manifests:
            for _, question in read_questions(manifest, strict=False):
                if not question.answers:
                    continue
                answers = []
                for raw in question.answers:
                    if raw not in normalized:
                        normalized[raw] = normalize(raw)
                    answers.append(normalized[raw])
                # Counter keeps the order of first occurrence, so that of equally frequent answers
                # the first counts, as in the data set's own multiple_choice_answer.
                [(most_frequent, _)] = Counter(answers).most_common(1)
                question_counts[most_frequent] += 1
        # An answer that consists of articles and punctuation only is empty once normalized.
        counts = question_counts.items()
        frequent = [answer for answer, count in counts if count >= min_count and answer]
        if not frequent:
            raise DataError(
                f"no answer in {', '.join(map(str, data))} is the most frequent answer of "
                f"{min_count} questions or more"
            )
        labels = sorted(frequent, key=lambda answer: (-question_counts[answer], answer))
        label_of = {answer: label for label, answer in enumerate(labels)}
        spellings = []
        for raw, answer in sorted(normalized.items()):
            if answer in label_of:
                spellings.append((raw, label_of[answer]))
        return cls(
            labels=tuple(labels),
            spellings=tuple(spellings),
            min_count=min_count,
            sources=tuple((manifest.name, f"sha256:{manifest.digest}") for manifest in manifests),
        )

    @property
    def digest(self) -> str:
        """SHA-256 of the whole vocabulary."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()

    def label_table(self) -> tuple[tuple[str, int], ...]:
        """Return the raw answers of the training data with their labels."""
        return self.spellings

    def save(self, path: Path | str) -> None:
        """Write the vocabulary as JSON with its hash; the file is complete or not there."""
        content = {"format": FORMAT, "sha256": self.digest} | asdict(self)
        write_whole(Path(path), json.dumps(content, ensure_ascii=False, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path | str) -> Vocabulary:
        """Read a vocabulary.

        Raises
        ------
        DataError
            If the file is missing, is not a vocabulary, or was changed after it was written.
        """
        try:
            content = json.loads(Path(path).read_text("utf-8"))
            file_format, digest = content.pop("format"), content.pop("sha256")
            vocabulary = TypeAdapter(cls).validate_python(content)
        except OSError as error:
            raise DataError(f"cannot read the vocabulary {path}: {error.strerror}") from None
        # Not JSON, not an object, or not these fields.
        except (ValueError, TypeError, KeyError, AttributeError):
            raise DataError(f"{path} is not a vocabulary of answers ({FORMAT})") from None
        if file_format != FORMAT:
            raise DataError(f"{path} has format {file_format!r}, this version reads {FORMAT!r}")
        if digest != vocabulary.digest:
            raise DataError(
                f"{path} was changed after it was written (its sha256 differs): build it again"
            )
        return vocabulary


class LabelScores:
    """Accuracies that predictions from a list of labels can reach on a question."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._count = len(labels)
        # By both ways in which the evaluator prepares a prediction; two labels may become equal.
        preparations: tuple[Callable[[str], str], ...] = (one_line, normalize)
        self._counts = {prepare: Counter(map(prepare, labels)) for prepare in preparations}

    def best_and_mean(
        self, answers: Sequence[str], version: Version = "2021"
    ) -> tuple[float, float]:
        """Return the official accuracy of the best label, and the mean over all labels.

        Both are 0 if no label is an answer.
        """
        references = ReferenceAnswers.of(answers, version)
        counts = self._counts[references.prepare]
        answerable = [answer for answer in set(references.answers) if answer in counts]
        scores = {answer: references.score(answer) for answer in answerable}
        # Sorted, because the order of a set changes from process to process, and with it the sum.
        total = sum(score * counts[answer] for answer, score in sorted(scores.items()))
        return max(scores.values(), default=0.0), total / self._count


def read_questions(
    manifest: Manifest, limit: int | None = None, *, strict: bool = True
) -> Iterator[tuple[str, Question]]:
    """Yield the questions of the first ``limit`` samples with the samples' keys; read no images.

    Raises
    ------
    DataError
        If the questions of a sample are missing or malformed. Without ``strict``, only if there are
        too many such samples, by the rule that stops training.
    """
    total = manifest.samples if limit is None else min(limit, manifest.samples)
    accepted = max(FEWEST - 1, int(BAD_SHARE * total))
    with closing(Store([manifest])) as store:
        for number in range(total):
            try:
                questions = questions_of(store, number)
            except BadSample as error:
                if strict:
                    raise
                accepted -= 1
                if accepted < 0:
                    raise DataError(
                        f"more than {BAD_SHARE:.0%} of the samples of {manifest.root} are bad "
                        f"(the last: {error}): "
                        f'check them with "glscl data verify {manifest.root}"'
                    ) from error
                continue
            for question in questions:
                yield store.key(0, number), question


def questions_of(store: Store, number: int) -> tuple[Question, ...]:
    """Read the questions of one sample of the store's first data set.

    Raises DataError if there are none.
    """
    key = store.key(0, number)
    return parse_questions(key, parse_annotations(key, store.members(0, number, {"json"})))
