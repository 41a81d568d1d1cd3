"""VQA accuracy: the evaluator's rules and mistakes one by one, and an independent oracle."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError, UsageError
from eval.metrics.vqa_accuracy import VERSIONS, normalize
from eval.stages.vqa import accuracy

GOLDEN = {
    "Yes!": "yes",
    "  the Cat ": "cat",
    "two": "2",
    "one-way": "1 way",
    "1,000 people": "1000 people",
    "$5.00": "$5.00",
    "3.": "3",
    ".5": ".5",
    "U.S.A.": "usa",
    "10:30": "10:30",
    "dont": "don't",
    "Im": "im",
    "t-shirt": "t shirt",
    "t - shirt": "t shirt",
    "hot-dog, bun": "hot dog bun",
    "black/white": "black white",
    "A": "",
    "...": "",
    "C++": "c",
    "3.14.15": "3.14.15",
    "“stop”": "“stop”",
    "ski\tpole": "ski pole",
    "3-4": "3 4",
    "." * 40: "." * 8,
    "cat.dog": "catdog",
    "none": "0",
    "let's": "let's",
    "somebody'd": "somebodyd",
}

CONTRACTIONS = """
    aint=ain't arent=aren't cant=can't couldve=could've couldnt=couldn't couldn'tve=couldn't've
    couldnt've=couldn't've didnt=didn't doesnt=doesn't dont=don't hadnt=hadn't
    hadnt've=hadn't've hadn'tve=hadn't've hasnt=hasn't havent=haven't hed=he'd hed've=he'd've
    he'dve=he'd've hes=he's howd=how'd howll=how'll hows=how's isnt=isn't itd=it'd
    itd've=it'd've it'dve=it'd've itll=it'll maam=ma'am mightnt=mightn't mightnt've=mightn't've
    mightn'tve=mightn't've mightve=might've mustnt=mustn't mustve=must've neednt=needn't
    notve=not've oclock=o'clock oughtnt=oughtn't ow's'at='ow's'at 'ows'at='ow's'at
    'ow'sat='ow's'at shant=shan't shed've=she'd've she'dve=she'd've shouldve=should've
    shouldnt=shouldn't shouldnt've=shouldn't've shouldn'tve=shouldn't've somebody'd=somebodyd
    somebodyd've=somebody'd've somebody'dve=somebody'd've somebodyll=somebody'll
    somebodys=somebody's someoned=someone'd someoned've=someone'd've someone'dve=someone'd've
    someonell=someone'll someones=someone's somethingd=something'd somethingd've=something'd've
    something'dve=something'd've somethingll=something'll thats=that's thered=there'd
    thered've=there'd've there'dve=there'd've therere=there're theres=there's theyd=they'd
    theyd've=they'd've they'dve=they'd've theyll=they'll theyre=they're theyve=they've
    twas='twas wasnt=wasn't wed've=we'd've we'dve=we'd've weve=we've werent=weren't
    whatll=what'll whatre=what're whats=what's whatve=what've whens=when's whered=where'd
    wheres=where's whereve=where've whod=who'd whod've=who'd've who'dve=who'd've wholl=who'll
    whos=who's whove=who've whyll=why'll whyre=why're whys=why's wont=won't wouldve=would've
    wouldnt=wouldn't wouldnt've=wouldn't've wouldn'tve=wouldn't've yall=y'all yall'll=y'all'll
    y'allll=y'all'll yall'd've=y'all'd've y'alld've=y'all'd've y'all'dve=y'all'd've youd=you'd
    youd've=you'd've you'dve=you'd've youll=you'll youre=you're youve=you've
"""
SPELLED = dict(pair.split("=") for pair in CONTRACTIONS.split())


def oracle(prediction: str, answers: list[str], version: str) -> float:
    """Apply the rules with loops over characters and over all ways to leave one person out."""

    def marks(text: str) -> str:
        before, after = " " + text, text + " "
        around = list(zip(before[:-1], text, after[1:], strict=True))
        grouped = any(a.isdecimal() and b == "," and c.isdecimal() for a, b, c in around)
        beside_space = {b for a, b, _ in around[1:] if a == " "}
        beside_space |= {b for _, b, c in around[:-1] if c == " "}
        bare, result, periods = "", "", 0
        for letter in text:
            if letter not in ';/[]"{}()=+\\_-><@`,?!':
                bare += letter
            elif not grouped and letter not in beside_space:
                bare += " "
        for letter, following in zip(bare, bare[1:] + " ", strict=False):
            if letter == "." and not following.isdecimal() and periods < 32:
                periods += 1
            else:
                result += letter
        return result

    def words(text: str) -> str:
        numbers = {"none": "0"}
        names = [
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
        ]
        numbers |= {name: str(number) for number, name in enumerate(names)}
        digits = [numbers.get(word, word) for word in text.lower().split()]
        without_articles = [word for word in digits if word not in ("a", "an", "the")]
        return " ".join(SPELLED.get(word, word) for word in without_articles)

    def cleaned(text: str) -> str:
        return text.replace("\n", " ").replace("\t", " ").strip()

    prediction = cleaned(prediction)
    if version != "2017":
        answers = [cleaned(answer) for answer in answers]
    agreed = all(answer == answers[0] for answer in answers)
    if version == "2017" and not agreed:
        answers = [marks(answer) for answer in answers]
    if version == "always" or (version == "2021" and not agreed):
        answers = [words(marks(answer)) for answer in answers]
    if version != "2021" or not agreed:
        prediction = words(marks(prediction))
    accuracies = []
    for others in combinations(answers, len(answers) - 1):
        accuracies.append(min(others.count(prediction) / 3, 1))
    return sum(accuracies) / len(accuracies)


@pytest.mark.parametrize(("answer", "expected"), GOLDEN.items())
def test_normalization_equals_the_official_one(answer: str, expected: str) -> None:
    assert normalize(answer) == expected


def test_every_contraction_is_spelled_out() -> None:
    assert {word: normalize(word) for word in SPELLED} == SPELLED
    unknown = ["hell", "id", "ill", "its", "shed", "well", "were", "wed", "i'm", "she's"]
    assert [normalize(word) for word in unknown] == unknown


@pytest.mark.parametrize(
    ("answers", "prediction", "in_2017", "in_2021"),
    [
        (["yes"] * 10, "Yes", 1, 0),
        (["the cat"] * 10, "the cat", 0, 1),
        (["The cat"] * 9 + ["cat"], "cat", 0.3, 1),
        (["two"] * 9 + ["2"], "2", 0.3, 1),
        (["none"] * 5 + ["nothing"] * 5, "none", 0, 1),
        (["t-shirt"] * 6 + ["shirt"] * 4, "tshirt", 0, 0),
    ],
)
def test_the_versions_differ_in_the_known_cases(
    answers: list[str], prediction: str, in_2017: float, in_2021: float
) -> None:
    assert accuracy(prediction, answers, version="2017") == pytest.approx(in_2017)
    assert (
        accuracy(prediction, answers)
        == accuracy(prediction, answers, version="2021")
        == pytest.approx(in_2021)
    )


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("matches", range(11))
def test_an_answer_that_three_other_people_gave_is_right(matches: int, version: str) -> None:
    """Leaving out one of several equal answers leaves out one match, not all."""
    expected = [0, 0.3, 0.6, 0.9, 1, 1, 1, 1, 1, 1, 1][matches]
    assert accuracy("cat", ["cat"] * matches + ["dog"] * (10 - matches), version) == pytest.approx(
        expected
    )


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["cat"], 0),
        (["cat"] * 3, 2 / 3),
        (["cat", "dog", "dog"], 2 / 9),
        (["cat"] * 5, 1),
        (["cat"] * 2, 1 / 3),
    ],
)
def test_fewer_answers_leave_fewer_other_people(answers: list[str], expected: float) -> None:
    assert accuracy("cat", answers) == pytest.approx(expected)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "prediction", ["", "the", " \n", "x" * 1000, "," * 1000, None, 3, b"cat", ["cat"]]
)
def test_an_odd_prediction_is_wrong_and_not_an_error(prediction: object, version: str) -> None:
    assert accuracy(prediction, ["cat"] * 4 + ["3"] * 4 + ["none"] * 2, version) == 0


def test_an_empty_prediction_equals_an_empty_answer() -> None:
    assert accuracy("the", ["A"] * 9 + ["cat"]) == 1


def test_a_question_without_answers_and_an_unknown_version_are_refused() -> None:
    with pytest.raises(DataError, match="without answers"):
        accuracy("cat", [])
    with pytest.raises(UsageError, match="version is '2019', must be one of 2021, 2017, always"):
        accuracy("cat", ["cat"], version="2019")


PIECES = st.sampled_from(
    ["two", "2", "none", "a", "the", "An", "dont", "y'allll", "Cat", "cat", "1,000", "5.0"]
    + [".", "..", "-", "?", ",", "/"]
    + [" ", " ", "\n", "\t", "’", "²", "٣,٣", "E", "'", "_", "$"]
)
ANSWERS = st.lists(PIECES, max_size=6).map("".join)


@settings(max_examples=200, deadline=None)
@given(st.data(), st.sampled_from(VERSIONS))
def test_the_official_numbers_agree_with_an_independent_implementation(
    data: st.DataObject, version: str
) -> None:
    some = data.draw(st.lists(ANSWERS, min_size=1, max_size=3))
    answers = data.draw(st.lists(st.sampled_from(some), min_size=1, max_size=10))
    prediction = data.draw(st.sampled_from(some) | ANSWERS)
    assert accuracy(prediction, answers, version) == pytest.approx(
        oracle(prediction, answers, version), abs=1e-12
    )
