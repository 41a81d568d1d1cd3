"""The official VQA accuracy, in two versions of the official evaluator and one variant.

In: a predicted answer and the answers that people gave. Out: an accuracy in 0..1. Source: Agrawal
et al., VQA (arXiv:1505.00468), section 4.1, and the rules of github.com/GT-Vision-Lab/VQA before
2021 and since its commit a013f00. Their mistakes are reproduced, because published numbers include
them.
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
# The official evaluator also means to keep a period after a digit, but its look-behind is
# misspelled. Only a digit behind the period keeps it.
_PERIOD = re.compile(r"\.(?!\d)")
# At most this many periods are removed: the official evaluator passes re.UNICODE, which is 32, as
# the number of replacements.
_PERIODS = 32
_NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4"}
_NUMBERS |= {"five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}
_ARTICLES = {"a", "an", "the"}
# Spellings that lack one of the apostrophes of these words stand for the word. Words with a capital
# ("I'm") are left out: the official evaluator compares in lower case and never reaches them.
_WITH_APOSTROPHES = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've
    hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've
    mightn't mightn't've must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't
    she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
    someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've
    we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've
    who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'd've
    y'all'll you'd you'd've you'll you're you've
"""
_CONTRACTIONS = {"somebody'd": "somebodyd"}  # reversed in the official table
for _word in _WITH_APOSTROPHES.split():
    for _position, _letter in enumerate(_word):
        if _letter == "'":
            _CONTRACTIONS[_word[:_position] + _word[_position + 1 :]] = _word


@dataclass(frozen=True)
class ReferenceAnswers:
    """The answers that people gave to one question, prepared for comparison.

    ``prepare`` brings a prediction into the same form.
    """

    answers: tuple[str, ...]
    prepare: Callable[[str], str]

    @classmethod
    def of(cls, answers: Sequence[str], version: Version = "2021") -> ReferenceAnswers:
        """Prepare ``answers`` as ``version`` does.

        `2021` normalizes answers and prediction, unless all answers are equal: then neither. `2017`
        always normalizes the prediction; in the answers it only removes punctuation, unless all are
        equal. `always` normalizes everything.

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
            if len(set(answers)) == 1:
                return cls(tuple(answers), normalize)
            return cls(tuple(map(_without_punctuation, answers)), normalize)
        cleaned = tuple(map(one_line, answers))
        if len(set(cleaned)) == 1:
            return cls(cleaned, one_line)
        return cls(tuple(map(normalize, cleaned)), normalize)

    def score(self, answer: str) -> float:
        """Return the accuracy, in 0..1, of a prediction that was prepared by `prepare`.

        It is the mean of min(1, matches / 3) over all answers, where the matches are counted among
        the other answers.
        """
        total, equal = len(self.answers), self.answers.count(answer)
        # Leaving out an equal answer leaves one match less.
        without_equal, without_other = min(1.0, (equal - 1) / 3), min(1.0, equal / 3)
        return (equal * without_equal + (total - equal) * without_other) / total


def accuracy(prediction: Any, answers: Sequence[str], version: Version = "2021") -> float:
    """Return the official accuracy, in 0..1, of a prediction against the answers to its question.

    VQA has ten answers per question; fewer are possible. A prediction that is not text scores 0.
    See `ReferenceAnswers.of` for the versions and the errors.
    """
    references = ReferenceAnswers.of(answers, version)
    return references.score(references.prepare(prediction)) if isinstance(prediction, str) else 0.0


@lru_cache(maxsize=2**18)
def normalize(answer: str) -> str:
    """Remove punctuation and articles, and unify numbers up to ten and contractions.

    Apply it only once. A second time may change the answer again, because the treatment of a mark
    depends on the spaces next to it.
    """
    words = _without_punctuation(one_line(answer)).lower().split()
    digits = [_NUMBERS.get(word, word) for word in words]
    return " ".join(_CONTRACTIONS.get(word, word) for word in digits if word not in _ARTICLES)


def one_line(answer: str) -> str:
    """Replace line breaks and tabs by spaces, and strip the ends."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=2**18)
def _without_punctuation(answer: str) -> str:
    """Remove punctuation marks, or replace them by spaces, by the rules of the official evaluator.

    A mark is deleted if it occurs next to a space anywhere in the answer, or if the answer has a
    comma between digits; otherwise it becomes a space.
    """
    result = answer
    has_comma = _DIGIT_COMMA_DIGIT.search(answer) is not None
    for mark in _PUNCTUATION:
        delete = has_comma or f"{mark} " in answer or f" {mark}" in answer
        result = result.replace(mark, "" if delete else " ")
    return _PERIOD.sub("", result, count=_PERIODS)
