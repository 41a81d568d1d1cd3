"""Options of multi-label few-shot recognition."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_pipeline.errors import UsageError
from eval.results.options import ModelOptions, option

Filter = Literal["strict", "any"]
"""Leave out images that have other labels besides, or keep them and ignore those labels."""
Init = Literal["vl_joint", "learned"]
"""Where patches and labels meet: in the model's contrastive space, or in one learned on --base."""
QueryPool = Literal["mean", "max", "label_attention"]
"""How the patches of a query are compared with a prototype."""


@dataclass(frozen=True, kw_only=True)
class Options(ModelOptions):
    """What `glscl eval multi-label` takes."""

    stage = "multi-label"
    about = (
        "recognise several new labels from one or a few images of each: patches chosen by loss "
        "change, and baselines on the same draws"
    )
    example = (
        "glscl eval multi-label --model runs/demo --data data/labelled/novel "
        "--base data/labelled/base --val data/labelled/val --out runs/demo/multi-label"
    )

    base: Path | None = option(
        None, help="data set of other labels, on which scales and heads are trained", metavar="DIR"
    )
    val: Path | None = option(
        None,
        help="data set of other labels, on which settings and epochs are chosen",
        metavar="DIR",
    )
    labels: str | None = option(
        None,
        help="names of labels: a file, or a shipped list such as coco_52_12_16 (default: those of "
        "the data set)",
        metavar="LIST",
    )
    shot: tuple[int, ...] = option(
        (1, 5), help="support images per label; each number is evaluated", metavar="K", at_least=1
    )
    draws: int = option(20, help="draws of the support images", metavar="R", at_least=2)
    seed: int = option(0, help="seed that the support is drawn with", metavar="S", at_least=0)
    filter: Filter = option(
        "strict",
        help="leave out images that have other labels besides, or ignore those labels",
    )
    methods: tuple[str, ...] | None = option(
        None, help="methods to run (default: all that can; the others are flagged)", metavar="NAME"
    )
    init: Init = option(
        "vl_joint",
        help="compare patches and labels in the model's contrastive space or in one learned on --base",
    )
    patches: int = option(
        9, help="patches that a label chooses in a support image", metavar="N", at_least=1
    )
    query_pool: QueryPool = option(
        "mean", help="how the patches of a query are compared with a prototype"
    )
    epochs: int = option(
        8, help="training epochs of the cross-interaction", metavar="N", at_least=0
    )
    pool_grid: int = option(
        7, help="patches are averaged to a grid of N x N", metavar="N", at_least=1
    )

    def __post_init__(self) -> None:
        """Raise UsageError for options that exclude each other."""
        if self.init == "learned" and self.base is None:
            raise UsageError("init learned trains on base labels: name their data set with --base")
        if not self.shot:
            raise UsageError("shot must name at least one number of support images")
