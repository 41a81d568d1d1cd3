"""Whether the model prefers a true caption to one with two attributes exchanged or a relation reversed.

In: a model and a scenes split, whose graphs say which changed captions are false. Out: the share of
pairs in which the true caption scores higher, by the contrastive score and by the matching head;
ties count half, guessing reaches 50 %.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.scenes.truth import is_scene, swapped
from data_pipeline.shards.manifest import Manifest
from eval.encoding.features import Images, encode_images, encode_texts, load
from eval.encoding.matching_scores import match_margins
from eval.results.intervals import mean_interval
from eval.results.options import ModelOptions
from eval.results.run_stage import Measured
from eval.results.schema import Metric

from .options import Options

SCORES = ("contrastive", "matching")
KINDS = ("attributes", "relation")


@dataclass(frozen=True)
class Choice:
    """A picture with a caption that is true of it and one that is not; ``kind`` says how the false one was made.

    ``query`` names it in the records (default: its number), ``picture`` what is resampled (default:
    the sample).
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
        Of the stage.
    protocol
        Name of the protocol in the result.
    needed
        Says in an error which data have choices.
    choices_of
        Finds the choices in the encoded images.
    """
    loaded = load(options.model, options.precision, options.cache)
    images = encode_images(loaded, manifest, batch_size=options.batch_size, limit=options.limit)
    choices = choices_of(images)
    if not choices:
        raise DataError(
            f"{options.data} has no captions with a false counterpart: it must be {needed}"
        )
    captions = [choice.true for choice in choices] + [choice.false for choice in choices]
    image = np.tile([choice.image for choice in choices], 2)
    texts = encode_texts(loaded, captions, batch_size=options.batch_size)
    image_features, text_features = images.features[images.row[image]], texts.features[texts.row]
    # Summed in float64, so that equal captions tie whatever block they were encoded in.
    cosines = np.einsum("ij,ij->i", image_features, text_features, dtype=np.float64)
    margins = match_margins(loaded, images, texts, image, np.arange(len(captions)))
    scores = {
        "contrastive": cosines.astype(np.float32).reshape(2, -1),
        "matching": margins.reshape(2, -1),
    }
    records = []
    for number, choice in enumerate(choices):
        record: dict[str, Any] = {
            "query": number if choice.query is None else choice.query,
            "image": images.keys[choice.image],
        }
        if choice.picture is not None:
            record["picture"] = choice.picture
        record |= {"kind": choice.kind, "true": choice.true, "false": choice.false}
        for name, both in scores.items():
            record[name] = [float(both[0, number]), float(both[1, number])]
        records.append(record)
    flags = []
    for name, both in scores.items():
        if np.ptp(both) <= 1e-6 * np.abs(both).max():
            flags.append(f"constant_scores/{name}")
    return Measured(
        records=records,
        protocol={
            "name": protocol,
            "ties": "half",
            "score_dtype": "float32",
            "precision": options.precision,
            "intervals": "percentile bootstrap over pictures",
        },
        model=loaded.description,
        data={"images": len(images.keys), "pairs": len(choices)},
        flags=flags,
        device=str(loaded.device),
    )


def choices_of(images: Images) -> list[Choice]:
    """Pair every caption with its false counterpart, where it has one."""
    found = []
    for number, annotation in enumerate(images.annotations):
        if not is_scene(annotation):
            continue
        for which, true in enumerate(annotation["captions"]):
            false = swapped(annotation, which)
            if false is not None:
                found.append(Choice(number, true, false, _kind(true, false)))
    return found


def metrics(records: Iterable[dict[str, Any]]) -> list[Metric]:
    """Compute every metric from the lines of `samples.jsonl`: `SCORE/accuracy`, and `SCORE/accuracy/KIND`."""
    lines = list(records)
    found = []
    for score in SCORES:
        found.append(accuracy(f"{score}/accuracy", score, lines))
        for kind in KINDS:
            chosen = [line for line in lines if line["kind"] == kind]
            if chosen:
                found.append(accuracy(f"{score}/accuracy/{kind}", score, chosen))
    return found


def accuracy(name: str, score: str, lines: Sequence[dict[str, Any]]) -> Metric:
    """Share of the lines whose true caption scores higher, with ties as half and the two extremes as its bounds."""
    true, false = np.array([line[score] for line in lines]).T
    right = 100 * ((true > false) + 0.5 * (true == false))
    return Metric(
        name=name,
        value=float(right.mean()),
        unit="percent",
        ci95=mean_interval(right, [line.get("picture", line["image"]) for line in lines]),
        n=len(lines),
        chance=50.0,
        bounds=(100 * float((true > false).mean()), 100 * float((true >= false).mean())),
    )


def _kind(true: str, false: str) -> str:
    """Exchanged attributes only move words (but for a and an); a reversed relation changes one."""
    counts = [
        Counter(w for w in re.findall(r"\w+", text) if w not in ("a", "an"))
        for text in (true, false)
    ]
    return "attributes" if counts[0] == counts[1] else "relation"
