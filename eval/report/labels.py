"""Plain English for every name in a result: metrics, methods, values and their units.

In: names as `result.json` holds them, such as `text_to_image/reranked/R@1`. Out: what people read,
such as "Text-to-image recall@1, re-ranked". A metric's name is a path; the tables below say which
words a part of it becomes and where they stand. A part that no table has becomes its own words,
with separators turned into spaces, so a new stage needs no entry here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# In front of the quantity: which task or which queries.
_FRONT = {
    "text_to_image": "text-to-image",
    "image_to_text": "image-to-text",
    "text_to_video": "text-to-video",
    "video_to_text": "video-to-text",
    "local": "phrase",
    "global": "caption",
}
# The quantity itself.
_QUANTITY = {
    "accuracy": "accuracy",
    "consistency": "consistency",
    "mean_accuracy": "mean accuracy over kinds",
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "mean_per_class": "accuracy averaged over classes",
    "mAP": "mean average precision",
    "map": "mean average precision",
    "map@r": "MAP@R",
    "mINP": "mean inverse negative penalty",
    "r_precision": "R-precision",
    "nmi": "normalized mutual information",
    "nmi_std": "normalized mutual information, spread over clusterings",
    "ami": "adjusted mutual information",
    "ami_std": "adjusted mutual information, spread over clusterings",
    "left_out": "queries left out",
    "MdR": "median rank",
    "MeanR": "mean rank",
    "tie_rate": "queries tied with a wrong answer",
    "cut_in_a_tie": "shortlists that end in a tie",
    "mass": "attention inside the region",
    "mass_over_uniform": "attention inside the region, gain over uniform attention",
    "pointing": "pointing accuracy",
    "pointing_over_uniform": "pointing accuracy, gain over uniform attention",
    "IoU": "intersection over union",
    "IoU_over_uniform": "intersection over union, gain over uniform attention",
    "micro_AP": "micro-averaged precision over all labels",
    "micro_P": "micro precision",
    "micro_R": "micro recall",
    "micro_F1": "micro F1",
    "macro_P": "macro precision",
    "macro_R": "macro recall",
    "macro_F1": "macro F1",
    "macro_F1_PR": "F1 of macro precision and macro recall",
    "n_classes_scored": "labels scored",
    "leakage": "training classes that a new classifier reads",
    "text": "text score",
    "image": "image score",
    "group": "group score",
}
# Methods that stages compare.
_METHODS = {
    "zero_shot": "zero-shot (class names only)",
    "nearest_neighbour": "nearest neighbor",
    "proto": "ProtoNet",
    "simpleshot": "SimpleShot",
    "tip_adapter": "Tip-Adapter",
    "linear_probe": "linear probe",
    "cpea": "CPEA",
    "gliml_untrained": "GLIML without training",
    "gliml": "GLIML",
    "lcm": "LCM",
    "lcm_exact": "LCM, exact",
    "lcm_source": "LCM as published",
    "cross": "LCM with cross-interaction",
    "text_similarity": "patches closest to the text",
    "random_patch": "random patches",
    "all_patch": "all patches",
    "text_proto": "label text",
    "tip_adapter_ml": "Tip-Adapter (multi-label)",
    "gdfl": "GDFL head",
    "dolg": "DOLG head",
    "vitgal": "ViTGaL head",
    "parts": "part head",
    "no_adversary": "head without the adversary",
    "last_layer_only": "head on the last layer only",
    "no_attention": "head without attention",
    "frozen_cls": "frozen class token",
    "frozen_mean_patch": "frozen mean patch",
    "frozen_proj": "frozen contrastive feature",
    "frozen_parts": "frozen part features",
}
# Behind the quantity: under which condition.
_BEHIND = {
    "reranked": "re-ranked",
    "reranked_gain": "gain from re-ranking",
    "ceiling": "best possible",
    "contrastive": "contrastive score",
    "matching": "matching head",
    "prior": "without the image",
    "above_prior": "gain over answering without the image",
    "majority": "always the most frequent label",
    "by_type": "most frequent answer to each question type",
    "2017": "answers normalized as in 2017",
    "always": "all answers normalized",
    "pixel": "masks",
    "box": "boxes",
    "linear": "linear probe",
    "mlp": "MLP probe",
} | _METHODS
# The rest of the path is a name from the data, which may hold slashes itself ("yes/no").
_NAMED_BY_DATA = {"class": "class", "type": "question type", "answer_type": "answer type"}


def metric_label(name: str) -> str:
    """Return a metric's name as people read it: what was asked, the quantity, then conditions."""
    front: list[str] = []
    quantity: list[str] = []
    behind: list[str] = []
    parts = name.split("/")
    while parts:
        part = parts.pop(0)
        recall = re.fullmatch(r"(?:R|recall)@(\d+)", part)
        episodes = re.fullmatch(r"(\d+)way-(\d+)shot", part)
        if part in _NAMED_BY_DATA and parts:
            behind.append(f"{_NAMED_BY_DATA[part]} {'/'.join(parts)}")
            parts = []
        elif part == "above" and parts:
            behind.append(f"gain over {method_label(parts.pop(0))}")
        elif recall:
            quantity.append(f"recall@{recall[1]}")
        elif episodes:
            front.append(f"{episodes[1]}-way {episodes[2]}-shot")
        elif re.fullmatch(r"\d+shot", part):
            front.append(part.replace("shot", "-shot"))
        elif part in _FRONT:
            front.append(_FRONT[part])
        elif part in _BEHIND:
            behind.append(_BEHIND[part])
        elif part in _QUANTITY:
            quantity.append(_QUANTITY[part])
        elif part.startswith("above_"):
            # Few-shot names a paired difference after the other method and leaves accuracy unsaid.
            quantity.append("accuracy")
            behind.append(f"gain over {method_label(part.removeprefix('above_'))}")
        elif _two_methods(part):
            behind.append(_two_methods(part))
        else:
            behind.append(words(part))
    first = " ".join(front + quantity)
    return capitalized(", ".join([first, *behind] if first else behind))


def method_label(name: str) -> str:
    """Return a method's name as people read it."""
    if name.endswith("_reranked"):
        return f"{method_label(name.removesuffix('_reranked'))}, re-ranked"
    return _METHODS.get(name, words(name))


def reference_label(name: str) -> str:
    """Return a method's name as it is compared with, with an article where it needs one."""
    label = method_label(name)
    needs_article = label.startswith(("linear ", "nearest ", "frozen ", "label ", "head "))
    return f"the {label}" if needs_article else label


def method_labels(names: Sequence[str]) -> str:
    """Join the names of several methods."""
    return ", ".join(method_label(name) for name in names)


def episodes_label(form: str) -> str:
    """Return the form of few-shot episodes as people read it: `5way-1shot` is "5-way 1-shot"."""
    return form.replace("way-", "-way ").replace("shot", "-shot")


def value_text(value: float, unit: str) -> str:
    """Write a value with its unit; differences always have their sign."""
    if unit == "percent":
        return f"{value:.1f}%"
    if unit == "percentage points":
        return f"{value:+.1f} points"
    if unit == "rank":
        return f"{value:.1f}"
    return f"{value:,.4g} {unit}".rstrip()


def interval_text(interval: tuple[float, float] | None, unit: str) -> str:
    """Write an interval, nothing where there is none; the unit is printed with the value."""
    if interval is None:
        return ""
    style = "+.1f" if unit == "percentage points" else ".1f"
    return f"{interval[0]:{style}} to {interval[1]:{style}}"


def words(name: str) -> str:
    """Turn the separators of a name into spaces."""
    return re.sub(r"[_\-/\s]+", " ", name).strip()


def capitalized(text: str) -> str:
    """Return the text with a capital first letter, and the others as they are ("VQA", "GLIML")."""
    return text[:1].upper() + text[1:]


def _two_methods(part: str) -> str:
    """Return words for the paired difference `lcm-zero_shot`, nothing for any other part."""
    first, dash, second = part.partition("-")
    if dash and first in _METHODS and second in _METHODS:
        return f"{_METHODS[first]} minus {_METHODS[second]}"
    return ""
