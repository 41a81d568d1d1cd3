"""SugarCrepe: the caption of an image against hard false ones.

In: a model and a data set whose samples have `foils` (`glscl data import sugarcrepe`). Out: the
share of the false captions that score lower than the true one, for each of the seven kinds, by the
contrastive score and by the matching head. A tie counts as half; the published code counts it as
wrong, which is the lower of a metric's `bounds`. Guessing reaches 50 %.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data_pipeline.shards.manifest import Manifest
from eval.encoding.features import Images
from eval.results.intervals import mean_of_means_interval
from eval.results.run_stage import Measured
from eval.results.schema import Metric
from eval.stages.preference.records import ChoiceRecord
from eval.stages.preference.stage import SCORES, Choice, Score, accuracy, compare_captions

from .options import Options


def measure(options: Options, manifest: Manifest) -> Measured:
    """Compare true and false captions.

    Raises
    ------
    DataError
        If the data have no false captions.
    NumericsError
        If a score is not finite.
    """
    return compare_captions(
        options,
        manifest,
        protocol="SugarCrepe",
        needed='what "glscl data import sugarcrepe" wrote',
        choices_of=choices_of,
    )


def choices_of(images: Images) -> list[Choice]:
    """Pair every foil with the true caption."""
    choices = []
    for row, annotation in enumerate(images.annotations):
        for foil in annotation.get("foils", ()):
            choices.append(
                Choice(
                    row,
                    annotation["captions"][0],
                    foil["caption"],
                    foil["kind"],
                    query=foil["id"],
                    # Several samples show the same image of COCO; they are not independent.
                    picture=str(annotation.get("image_id", images.keys[row])),
                )
            )
    return choices


def metrics(records: Iterable[ChoiceRecord]) -> list[Metric]:
    """Compute every metric from the lines of `samples.jsonl`.

    `SCORE/accuracy` is over all lines, `SCORE/accuracy/KIND` over those of a kind, and
    `SCORE/mean_accuracy` the mean over the kinds.
    """
    lines = list(records)
    kinds = sorted({line["kind"] for line in lines})
    computed = []
    for score in SCORES:
        computed.append(accuracy(f"{score}/accuracy", score, lines))
        for kind in kinds:
            of_kind = [line for line in lines if line["kind"] == kind]
            computed.append(accuracy(f"{score}/accuracy/{kind}", score, of_kind))
        computed.append(_mean_over_kinds(f"{score}/mean_accuracy", score, lines))
    return computed


def _mean_over_kinds(name: str, score: Score, lines: list[ChoiceRecord]) -> Metric:
    true, false = np.array([line[score] for line in lines]).T
    kinds = [line["kind"] for line in lines]
    images = [line["picture"] for line in lines]
    right = (true > false) + 0.5 * (true == false)
    return Metric(
        name=name,
        value=_mean_of_means(right, kinds),
        unit="percent",
        ci95=mean_of_means_interval(100 * right, kinds, images, scale=100.0),
        n=len(lines),
        clusters=len(set(images)),
        chance=50.0,
        bounds=(_mean_of_means(true > false, kinds), _mean_of_means(true >= false, kinds)),
    )


def _mean_of_means(right: ArrayLike, kinds: list[str]) -> float:
    """Average over kinds the share of right lines of each, in percent."""
    # Kinds differ tenfold in size; here each has the same weight.
    number: NDArray[np.intp] = np.unique(kinds, return_inverse=True)[1]
    shares = np.bincount(number, weights=np.asarray(right)) / np.bincount(number)
    return 100 * float(shares.mean())
