"""SugarCrepe: a picture's caption against hard false ones, by the contrastive score and by the matching head.

In: a model and a data set whose samples have `foils` (`glscl data import sugarcrepe`). Out: the
share of the false captions that score lower than the true one, for each of the seven kinds. A tie
counts half; the published code counts it as wrong, which is the lower of a metric's `bounds`.
Guessing reaches 50 %.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.shards.manifest import Manifest
from eval.encoding.features import Images
from eval.results.intervals import mean_of_means_interval
from eval.results.run_stage import Measured
from eval.results.schema import Metric
from eval.stages.preference.stage import SCORES, Choice, accuracy, compare_captions

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
    """Pair every foil with the caption that it stands against."""
    return [
        Choice(
            image,
            annotation["captions"][0],
            foil["caption"],
            foil["kind"],
            query=foil["id"],
            picture=str(annotation.get("image_id", images.keys[image])),
        )
        for image, annotation in enumerate(images.annotations)
        for foil in annotation.get("foils", ())
    ]


def metrics(records: Iterable[dict[str, Any]]) -> list[Metric]:
    """Compute every metric from the lines of `samples.jsonl`.

    `SCORE/accuracy/KIND`, `SCORE/accuracy` over all lines, and `SCORE/mean_accuracy`, the mean over
    the kinds.
    """
    lines = list(records)
    kinds = sorted({line["kind"] for line in lines})
    found = []
    for score in SCORES:
        found.append(accuracy(f"{score}/accuracy", score, lines))
        by_kind = {kind: [line for line in lines if line["kind"] == kind] for kind in kinds}
        found += [
            accuracy(f"{score}/accuracy/{kind}", score, of_kind)
            for kind, of_kind in by_kind.items()
        ]
        found.append(_mean_over_kinds(f"{score}/mean_accuracy", score, lines, kinds))
    return found


def _mean_over_kinds(
    name: str, score: str, lines: list[dict[str, Any]], kinds: list[str]
) -> Metric:
    true, false = np.array([line[score] for line in lines]).T
    kind = np.array([line["kind"] for line in lines])

    def mean(right: NDArray[Any]) -> float:
        return 100 * float(np.mean([right[kind == one].mean() for one in kinds]))

    right = (true > false) + 0.5 * (true == false)
    return Metric(
        name=name,
        value=mean(right),
        unit="percent",
        ci95=mean_of_means_interval(
            100 * right, kind.tolist(), [line["picture"] for line in lines]
        ),
        n=len(lines),
        chance=50.0,
        bounds=(mean(true > false), mean(true >= false)),
    )
