"""The answers that a classifier chooses from: taken from training questions, frozen in a file, and what they allow.

In: data sets with questions. Out: a `Vocabulary`, whose labels are normalised answers that were the
most frequent one of enough training questions, and the best and the average that labels can score
on a question.
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
BAD_SHARE = 0.01  # of the samples of training data, as while training


@dataclass(frozen=True)
class Vocabulary:
    """Answers as labels 0, 1, ..., the most frequent first.

    ``spellings`` are the answers of the training data, as they stand there, with the labels that
    they normalise to; ``sources`` names these data sets with their hashes.
    """

    labels: tuple[str, ...]
    spellings: tuple[tuple[str, int], ...]
    min_count: int
    sources: tuple[tuple[str, str], ...]

    @classmethod
    def build(cls, data: Sequence[Path | str], min_count: int = 9) -> Vocabulary:
        """Take the answers that are the most frequent one of at least ``min_count`` questions of data sets.

        Give it the training split alone: answers of the validation split would flatter its
        accuracy.

        Raises
        ------
        UsageError
            If ``min_count`` is less than 1, or there is no data set.
        DataError
            If a data set is missing or broken, too many of its samples are bad, or no answer is
            frequent enough.
        """
        if min_count < 1 or not data:
            raise UsageError(
                f"a vocabulary needs data sets and min_count of at least 1, not {min_count}"
            )
        manifests = [Manifest.load(path) for path in data]
        chosen: Counter[str] = Counter()
        seen: dict[str, str] = {}
        for manifest in manifests:
            for _, question in read_questions(manifest, strict=False):
                seen |= {
                    answer: normalize(answer) for answer in question.answers if answer not in seen
                }
                if question.answers:
                    # Of equally frequent answers the first counts, as for the data set's own
                    # multiple_choice_answer.
                    [(answer, _)] = Counter(
                        seen[answer] for answer in question.answers
                    ).most_common(1)
                    chosen[answer] += 1
        frequent = [answer for answer, count in chosen.items() if count >= min_count and answer]
        if not frequent:
            raise DataError(
                f"no answer in {', '.join(map(str, data))} is the answer to {min_count} questions or more"
            )
        labels = sorted(frequent, key=lambda answer: (-chosen[answer], answer))
        number = {answer: label for label, answer in enumerate(labels)}
        return cls(
            labels=tuple(labels),
            spellings=tuple(
                (raw, number[answer]) for raw, answer in sorted(seen.items()) if answer in number
            ),
            min_count=min_count,
            sources=tuple((manifest.name, f"sha256:{manifest.digest}") for manifest in manifests),
        )

    @property
    def digest(self) -> str:
        """SHA-256 of all that the vocabulary holds."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()

    def label_table(self) -> tuple[tuple[str, int], ...]:
        """List the answers of the training data, as they stand there, with their labels; other spellings have none."""
        return self.spellings

    def save(self, path: Path | str) -> None:
        """Write the vocabulary as JSON with its hash; the file appears whole or not at all."""
        content = {"format": FORMAT, "sha256": self.digest} | asdict(self)
        write_whole(Path(path), json.dumps(content, ensure_ascii=False, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path | str) -> Vocabulary:
        """Read a vocabulary.

        Raises
        ------
        DataError
            If the file is missing, is no vocabulary, or was changed after it was written.
        """
        try:
            content = json.loads(Path(path).read_text("utf-8"))
            found_format, digest = content.pop("format"), content.pop("sha256")
            vocabulary = TypeAdapter(cls).validate_python(content)
        except OSError as error:
            raise DataError(f"cannot read the vocabulary {path}: {error.strerror}") from None
        except (
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
        ):  # not JSON, not an object, not these fields
            raise DataError(f"{path} is not a vocabulary of answers ({FORMAT})") from None
        if found_format != FORMAT:
            raise DataError(f"{path} has format {found_format!r}, this version reads {FORMAT!r}")
        if digest != vocabulary.digest:
            raise DataError(
                f"{path} was changed after it was written: its sha256 does not fit: build it again"
            )
        return vocabulary


class LabelScores:
    """What predictions out of given labels can score on a question."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._count = len(labels)
        readings: tuple[Callable[[str], str], ...] = (one_line, normalize)
        self._known = {read: Counter(map(read, labels)) for read in readings}

    def best_and_mean(
        self, answers: Sequence[str], version: Version = "2021"
    ) -> tuple[float, float]:
        """Official accuracy of the best label and of one that is drawn at random; 0 where no label is an answer."""
        truth = ReferenceAnswers.of(answers, version)
        known = self._known[truth.prepare]
        scores = {answer: truth.score(answer) for answer in set(truth.answers) if answer in known}
        drawn = sum(score * known[answer] for answer, score in sorted(scores.items()))
        return max(scores.values(), default=0.0), drawn / self._count


def read_questions(
    manifest: Manifest, limit: int | None = None, *, strict: bool = True
) -> Iterator[tuple[str, Question]]:
    """Yield the questions of the first ``limit`` samples with the samples' keys; no picture is read.

    Raises
    ------
    DataError
        If a sample has no questions, or they are malformed; unless ``strict``, if so many samples
        do that training would stop.
    """
    total = manifest.samples if limit is None else min(limit, manifest.samples)
    borne = max(FEWEST - 1, int(BAD_SHARE * total))
    with closing(Store([manifest])) as store:
        for number in range(total):
            try:
                found = questions_of(store, number)
            except BadSample as error:
                if strict:
                    raise
                borne -= 1
                if borne < 0:
                    raise DataError(
                        f"more than {BAD_SHARE:.0%} of the samples of {manifest.root} are bad (the last: {error}): "
                        f'check them with "glscl data verify {manifest.root}"'
                    ) from error
                continue
            for question in found:
                yield store.key(0, number), question


def questions_of(store: Store, number: int) -> tuple[Question, ...]:
    """Read the questions of one sample of the store's first data set; raises DataError where there is none."""
    key = store.key(0, number)
    return parse_questions(key, parse_annotations(key, store.members(0, number, {"json"})))
