"""Options of the blind baseline of visual question answering."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from eval.results.options import StageOptions, option


@dataclass(frozen=True, kw_only=True)
class Options(StageOptions):
    """What `glscl eval vqa-prior` takes."""

    stage = "vqa-prior"
    about = "the accuracy of answers that know the training questions but see no image"
    example = "glscl eval vqa-prior --train data/train --data data/test --out runs/vqa-prior"
    positional = ("train", "data", "out")

    train: Path = option(help="data set whose questions and answers it learns from", metavar="DIR")
