"""The flags of results as warnings in words, those of one kind together.

In: results with their names. Out: one warning for each kind of flag: a sentence that says what it
means for the reader, and below it where it applies. `_KINDS` has the sentences; a flag that is not
in it is shown in its own words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from .labels import capitalized, episodes_label, method_label, method_labels, words

# Pattern of the flag -> sentence for all flags of the kind. Named groups become the details:
# `methods` and `form` are translated, others are printed as they are.
_KINDS = (
    (
        r"overlap: possible: (?P<text>.*)",
        "Test images may be in the training data, so the numbers may be too high.",
    ),
    (
        r"overlap: unknown: (?P<text>.*)",
        "Nobody recorded what the model was trained on, so test images may be in it.",
    ),
    (
        r"limit/(?P<samples>\d+)",
        "Only the first part of the data set was evaluated; do not compare with complete results.",
    ),
    (
        r"left_out/(?P<samples>\d+)",
        "The data set lacks samples of the official one, so the numbers cover only the rest.",
    ),
    (r"left_out/(?P<methods>\w+): (?P<text>.*)", "Some methods could not run and are missing."),
    (r"unreadable_(?:images|videos)", "Some images could not be read."),
    (r"constant_prediction", "The model gives the same answer every time."),
    (r"no_answers", "The data set has no answers, so accuracy cannot be computed."),
    (
        r"(?:constant_match_scores|(?:degenerate|constant)_scores(?:/(?P<text>.*))?)",
        "Scores are the same for all candidates, so their order means nothing.",
    ),
    (
        r"unmatched/(?P<phrases>\d+)",
        "Some phrases do not occur in their captions and are left out.",
    ),
    (r"empty/(?P<regions>\d+)", "Some regions have no area and are left out."),
    (r"zero_map/(?P<maps>\d+)", "Some attention maps are zero everywhere."),
    (
        r"(?P<method>\w+) is not above (?P<others>[\w, ]+) \((?P<form>[\w-]+)\)",
        "A method does not clearly beat all of its baselines.",
    ),
    (
        r"below_frozen: (?P<text>.*)",
        "The trained head retrieves worse than the frozen model: training it is not worthwhile.",
    ),
    (
        r"no label is ever [\w ]+ at threshold 0\.5: "
        r"(?P<methods>[\w, ]+) \((?P<form>\w+)\)",
        "Some methods never predict any label at threshold 0.5; their precision and F1 say little.",
    ),
    (
        r"uncalibrated.*",
        "Thresholds are not calibrated, so precision, recall and F1 are left out.",
    ),
    (
        r"the mean of a base \w+'s patches is not closer .*",
        "Image patches are not closer to their own labels than to other labels.",
    ),
    (
        r"scores_say_nothing/(?P<form>\w+)/(?P<methods>\w+).*",
        "Some scores say nothing about the base labels, so their logits cannot be calibrated.",
    ),
    (
        r"(?P<images>\d+) \w+ of --data are in --(?P<split>\w+) too",
        "Some test images are also in another split.",
    ),
    (
        r"\w+_shared_with/(?P<split>\w+)/(?P<images>\d+)",
        "Some test images are also in another split.",
    ),
    (
        r"no_open_world_interval/(?P<form>[\w-]+).*",
        "There are too few images for episodes that share none, so one interval is missing.",
    ),
    (
        r"(?P<methods>\w+): 0 of \d+ rankings changed: (?P<text>.*)",
        "Re-ranking changed nothing.",
    ),
    (
        r"few_clusters/(?P<text>.*)",
        "Some intervals come from very few independent samples and may be too narrow.",
    ),
)


@dataclass
class WarningGroup:
    """One kind of flag: what it means, and where it was raised."""

    sentence: str
    places: dict[str, list[str]] = field(default_factory=dict)
    """Details by the title of the result; a flag without details leaves the list empty."""


def warnings_of(flagged: Sequence[tuple[str, Sequence[str]]]) -> list[WarningGroup]:
    """Group flags by what they mean, in the order in which they come.

    Parameters
    ----------
    flagged
        Title of a result and its flags.
    """
    groups: dict[str, WarningGroup] = {}
    for title, flags in flagged:
        for flag in flags:
            sentence, detail = _in_words(flag)
            group = groups.setdefault(sentence, WarningGroup(sentence))
            details = group.places.setdefault(title, [])
            if detail and detail not in details:
                details.append(detail)
    return list(groups.values())


def _in_words(flag: str) -> tuple[str, str]:
    """Return the sentence of a flag's kind, and its detail."""
    for pattern, sentence in _KINDS:
        match = re.fullmatch(pattern, flag, flags=re.DOTALL)
        if match:
            return sentence, _detail(match)
    if " " in flag:
        return f"{capitalized(flag)}.", ""
    name, _, rest = flag.partition("/")
    return f"{capitalized(words(name))}.", words(rest)


def _detail(match: re.Match[str]) -> str:
    parts = []
    groups = match.groupdict()
    for name, text in groups.items():
        if text is None:
            continue
        if name == "method":
            parts.append(method_label(text))
        elif name == "others":
            parts.append(f"not above {method_labels(text.split(', '))}")
        elif name == "methods":
            parts.append(method_labels(text.split(", ")))
        elif name == "form":
            parts.append(episodes_label(text))
        elif name == "text":
            parts.append(re.sub(r"\w+_\w+", lambda name: method_label(name[0]), text))
        elif name == "split":
            parts.append(f"split {text}")
        else:  # a count, named for what it counts
            parts.append(f"{int(text):,} {name}")
    return "; ".join(parts)
