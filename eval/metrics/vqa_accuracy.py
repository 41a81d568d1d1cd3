"""The official accuracy of an answer to a question of VQA, as two versions of the evaluator define it, and a third.

In: a predicted answer and the answers that people gave. Out: what share of them agrees, in the
evaluator's sense. Source: Agrawal et al., VQA (arXiv:1505.00468), section 4.1, and the rules of
github.com/GT-Vision-Lab/VQA before 2021 and since its commit a013f00. Their oddities are kept,
because published numbers hold them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

from data_pipeline.errors import DataError, UsageError

Version = Literal["2021", "2017", "always"]
VERSIONS: tuple[Version, ...] = get_args(Version)

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
# Meant to spare the period after a digit too, but its look-behind was misspelled: only a digit that
# follows spares one.
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS = 32  # a flag was passed where the number of replacements belongs
_NUMBERS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
}
_NUMBERS |= {"seven": "7", "eight": "8", "nine": "9", "ten": "10"}
_ARTICLES = {"a", "an", "the"}
# Whoever forgets one of the apostrophes of these words meant the word. Those with a capital ("I'm")
# are left out: they were never reached, because answers are compared in lower case.
_WITH_APOSTROPHES = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""
_CONTRACTIONS = {"somebody'd": "somebodyd"} | {
    word[:place] + word[place + 1 :]: word
    for word in _WITH_APOSTROPHES.split()
    for place, letter in enumerate(word)
    if letter == "'"
}


@dataclass(frozen=True)
class ReferenceAnswers:
    """The answers that people gave to one question, as they are compared; ``read`` brings a prediction to that form."""

    answers: tuple[str, ...]
    prepare: Callable[[str], str]

    @classmethod
    def of(cls, answers: Sequence[str], version: Version = "2021") -> ReferenceAnswers:
        """Prepare ``answers`` as ``version`` does.

        `2021` normalises answers and prediction, unless all answers are equal: then neither. `2017`
        always normalises the prediction, and of the answers only the punctuation, unless all are
        equal. `always` normalises everything.

        Raises
        ------
        UsageError
            If there is no such version.
        DataError
            If there is no answer.
        """
        if version not in VERSIONS:
            raise UsageError(f"version is {version!r}, must be one of {', '.join(VERSIONS)}")
        if not answers:
            raise DataError("a question without answers has no accuracy")
        if version == "always":
            return cls(tuple(map(normalize, answers)), normalize)
        if version == "2017":
            same = len(set(answers)) == 1
            return cls(
                tuple(answers) if same else tuple(map(_without_punctuation, answers)), normalize
            )
        cleaned = tuple(map(one_line, answers))
        if len(set(cleaned)) == 1:
            return cls(cleaned, one_line)
        return cls(tuple(map(normalize, cleaned)), normalize)

    def score(self, answer: str) -> float:
        """Mean over all answers of min(1, matches / 3), the matches being counted among the others; in 0..1.

        ``answer`` is a prediction that was `read`.
        """
        total, equal = len(self.answers), self.answers.count(answer)
        own, others = min(1.0, (equal - 1) / 3), min(1.0, equal / 3)
        return (equal * own + (total - equal) * others) / total


def accuracy(prediction: Any, answers: Sequence[str], version: Version = "2021") -> float:
    """Official accuracy, 0..1, of one prediction against the answers to its question (ten in VQA; fewer are possible).

    A prediction that is no text agrees with nobody. See `ReferenceAnswers.of` for the versions and what is
    raised.
    """
    truth = ReferenceAnswers.of(answers, version)
    return truth.score(truth.prepare(prediction)) if isinstance(prediction, str) else 0.0


@lru_cache(maxsize=2**18)
def normalize(answer: str) -> str:
    """Remove punctuation and articles, write numbers up to ten as digits and contractions with their apostrophes.

    Apply it once: a second time may change the answer again, because marks are judged by the spaces
    beside them.
    """
    words = _without_punctuation(one_line(answer)).lower().split()
    digits = [_NUMBERS.get(word, word) for word in words]
    return " ".join(_CONTRACTIONS.get(word, word) for word in digits if word not in _ARTICLES)


def one_line(answer: str) -> str:
    """Put spaces in the place of line breaks and tabs, and strip the ends."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=2**18)
def _without_punctuation(answer: str) -> str:
    """Delete a mark that stands next to a space anywhere, or any where a number has a comma; others become spaces."""
    found = answer
    has_comma = _DIGIT_COMMA_DIGIT.search(answer) is not None
    for mark in _PUNCTUATION:
        delete = has_comma or f"{mark} " in answer or f" {mark}" in answer
        found = found.replace(mark, "" if delete else " ")
    return _PERIOD.sub("", found, count=_PERIODS)
