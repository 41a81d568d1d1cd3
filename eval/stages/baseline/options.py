"""Options of the retrieval baseline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from eval.results.options import StageOptions, option


@dataclass(frozen=True, kw_only=True)
class Options(StageOptions):
    """What `glscl eval baseline` takes."""

    stage = "baseline"
    about = "retrieval of generated scenes without a model, and the best that any model could reach"
    example = "glscl eval baseline --train data/train --data data/test --out runs/baseline"
    positional = ("train", "data", "out")

    train: Path = option(help="data set that the baseline may look at", metavar="DIR")
