"""Options of multi-label few-shot recognition: data sets, draws, methods and training.

This module imports nothing heavy, because the command line reads it for `--help`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_pipeline.errors import UsageError
from eval.results.options import ModelOptions, option

Filter = Literal["strict", "any"]
"""Leave out images that have other labels too, or keep them and ignore those labels."""
Init = Literal["vl_joint", "learned"]
"""Where patches and labels are compared: in the model's contrastive space, or in a learned one."""
QueryPool = Literal["mean", "max", "label_attention"]
"""How the patches of a query are compared with a prototype."""


@dataclass(frozen=True, kw_only=True)
class Options(ModelOptions):
    """Options of `glscl eval multi-label`."""

    stage = "multi-label"
    about = (
        "recognize several new labels from one or a few images of each: patches chosen by loss "
        "change, and baselines on the same draws"
    )
    example = (
        "glscl eval multi-label --model runs/demo --data data/labelled/novel "
        "--base data/labelled/base --val data/labelled/val --out runs/demo/multi-label"
    )

    base: Path | None = option(
        None, help="data set of other labels to train scales and heads on", metavar="DIR"
    )
    val: Path | None = option(
        None,
        help="data set of other labels to choose settings and epochs on",
        metavar="DIR",
    )
    # A shipped list has a name instead of a path; Path holds both.
    labels: Path | None = option(
        None,
        help="names of labels: a file, or a shipped list such as coco_52_12_16 (default: those of "
        "the data set)",
        metavar="LIST",
    )
    shot: tuple[int, ...] = option(
        (1, 5), help="support images per label; each number is evaluated", metavar="K", at_least=1
    )
    # At least two, because intervals are over draws.
    draws: int = option(20, help="draws of the support images", metavar="R", at_least=2)
    seed: int = option(0, help="seed of the draw of support images", metavar="S", at_least=0)
    filter: Filter = option(
        "strict",
        help="leave out images that have other labels too, or ignore those labels",
    )
    methods: tuple[str, ...] | None = option(
        None,
        help="methods to run (default: all that can run; the others are flagged)",
        metavar="NAME",
    )
    init: Init = option(
        "vl_joint",
        help="compare patches and labels in the model's contrastive space, or in one learned on "
        "--base",
    )
    patches: int = option(
        9, help="patches that a label chooses in each support image", metavar="N", at_least=1
    )
    query_pool: QueryPool = option(
        "mean", help="how to compare the patches of a query with a prototype"
    )
    epochs: int = option(
        8, help="training epochs of the cross-interaction", metavar="N", at_least=0
    )
    pool_grid: int = option(7, help="average patches to a grid of N x N", metavar="N", at_least=1)

    def __post_init__(self) -> None:
        """Raise UsageError for options that exclude each other."""
        if self.init == "learned" and self.base is None:
            raise UsageError("init learned trains on base labels: name their data set with --base")
        if not self.shot:
            raise UsageError("shot must name at least one number of support images")
