"""Whether the model prefers a true caption to one with swapped attributes or a reversed relation.

In: a model and a split of generated scenes, whose graphs say which changed captions are false. Out:
the share of pairs in which the true caption scores higher, by the contrastive score and by the
matching head; a tie counts as half, and guessing reaches 50 %.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.scenes.truth import is_scene, swapped
from data_pipeline.shards.manifest import Manifest
from eval.encoding.features import Images, encode_images, encode_texts, load
from eval.encoding.matching_scores import flag_constant_scores, match_margins
from eval.results.intervals import mean_metric
from eval.results.options import ModelOptions
from eval.results.run_stage import Measured
from eval.results.schema import Metric

from .options import Options
from .records import ChoiceRecord

Score = Literal["contrastive", "matching"]
SCORES: tuple[Score, ...] = ("contrastive", "matching")
KINDS = ("attributes", "relation")


@dataclass(frozen=True)
class Choice:
    """A true and a false caption of an image; ``kind`` says how the false one was made.

    ``query`` names the choice in the records (default: its number), ``picture`` the unit that
    intervals resample (default: the sample).
    """

    image: int
    true: str
    false: str
    kind: str
    query: str | None = None
    picture: str | None = None


def measure(options: Options, manifest: Manifest) -> Measured:
    """Compare true and swapped captions over a split of generated scenes.

    Raises
    ------
    DataError
        If the data are not generated scenes.
    NumericsError
        If a score is not finite.
    """
    return compare_captions(
        options,
        manifest,
        protocol="true against changed caption",
        needed="a split of generated scenes",
        choices_of=choices_of,
    )


def compare_captions(
    options: ModelOptions,
    manifest: Manifest,
    *,
    protocol: str,
    needed: str,
    choices_of: Callable[[Images], list[Choice]],
) -> Measured:
    """Score the true and the false caption of every choice.

    Parameters
    ----------
    options, manifest
        As a stage's `measure` takes them.
    protocol
        Name of the protocol in the result.
    needed
        What an error says the data must be.
    choices_of
        Returns the choices among the captions of encoded images.
    """
    loaded = load(options.model, options.precision, options.cache)
    images = encode_images(loaded, manifest, batch_size=options.batch_size, limit=options.limit)
    choices = choices_of(images)
    if not choices:
        raise DataError(
            f"{options.data} has no captions with a false counterpart: it must be {needed}"
        )
    captions = [choice.true for choice in choices] + [choice.false for choice in choices]
    # All true captions come first, then all false ones, so the images repeat in this order.
    image = np.tile([choice.image for choice in choices], 2)
    texts = encode_texts(loaded, captions, batch_size=options.batch_size)
    image_features, text_features = images.features[images.row[image]], texts.features[texts.row]
    # Summed in float64, so that equal captions tie whatever block they were encoded in.
    cosines = np.einsum("ij,ij->i", image_features, text_features, dtype=np.float64)
    margins = match_margins(loaded, images, texts, image, np.arange(len(captions)))
    # (true and false, choices)
    contrastive = cosines.astype(np.float32).reshape(2, -1)
    matching = margins.reshape(2, -1)
    records = []
    for number, choice in enumerate(choices):
        record: ChoiceRecord = {
            "query": number if choice.query is None else choice.query,
            "image": images.keys[choice.image],
            "kind": choice.kind,
            "true": choice.true,
            "false": choice.false,
            "contrastive": contrastive[:, number].tolist(),
            "matching": matching[:, number].tolist(),
        }
        if choice.picture is not None:
            record["picture"] = choice.picture
        records.append(record)
    return Measured(
        records=records,
        protocol={
            "name": protocol,
            "ties": "half",
            "score_dtype": "float32",
            "precision": options.precision,
            "intervals": "Wilson score for proportions, else percentile bootstrap; over images",
        },
        model=loaded.description,
        data={"images": len(images.keys), "pairs": len(choices)},
        flags=flag_constant_scores({"contrastive": contrastive, "matching": matching}),
        device=str(loaded.device),
    )


def choices_of(images: Images) -> list[Choice]:
    """Pair every caption with its false counterpart, if it has one."""
    choices = []
    for row, annotation in enumerate(images.annotations):
        if not is_scene(annotation):
            continue
        for number, true in enumerate(annotation["captions"]):
            false = swapped(annotation, number)
            # Not every caption can be changed into a false one: some have a single attribute.
            if false is not None:
                choices.append(Choice(row, true, false, _kind(true, false)))
    return choices


def _kind(true: str, false: str) -> str:
    """Say how a false caption was made: a reversed relation changes a word.

    Swapped attributes only move words, but for the articles in front of them.
    """
    return "attributes" if _word_counts(true) == _word_counts(false) else "relation"


def _word_counts(caption: str) -> Counter[str]:
    return Counter(word for word in re.findall(r"\w+", caption) if word not in ("a", "an"))


def metrics(records: Iterable[ChoiceRecord]) -> list[Metric]:
    """Compute every metric from the lines of `samples.jsonl`.

    `SCORE/accuracy` is over all lines, `SCORE/accuracy/KIND` over those of a kind.
    """
    lines = list(records)
    computed = []
    for score in SCORES:
        computed.append(accuracy(f"{score}/accuracy", score, lines))
        for kind in KINDS:
            of_kind = [line for line in lines if line["kind"] == kind]
            if of_kind:
                computed.append(accuracy(f"{score}/accuracy/{kind}", score, of_kind))
    return computed


def accuracy(name: str, score: Score, lines: Sequence[ChoiceRecord]) -> Metric:
    """Return the share of lines whose true caption scores higher.

    A tie counts as half; the bounds are the shares if all ties were wrong, and right.
    """
    true, false = np.array([line[score] for line in lines]).T
    right = 100 * ((true > false) + 0.5 * (true == false))
    images = [line.get("picture", line["image"]) for line in lines]
    bounds = (100 * float((true > false).mean()), 100 * float((true >= false).mean()))
    return mean_metric(name, right, images, chance=50.0).model_copy(update={"bounds": bounds})
