"""Options of few-shot classification: data sets, form of the episodes, methods and training.

This module imports nothing heavy, because the command line reads it for `--help`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_pipeline.errors import UsageError
from eval.results.options import ModelOptions, option

Mode = Literal["frozen", "finetune", "none"]
"""Training of GLIML on base classes: of its head, of the encoder too, or none."""
Interplay = Literal["gated", "additive"]
"""How GLIML uses the global token: it gates patches without training, or is added to them."""


@dataclass(frozen=True, kw_only=True)
class Options(ModelOptions):
    """Options of `glscl eval few-shot`."""

    stage = "few-shot"
    about = (
        "classify images of new classes from one or a few images of each: GLIML and its baselines "
        "on the same episodes"
    )
    example = (
        "glscl eval few-shot --model runs/demo --data data/labelled/novel "
        "--base data/labelled/base --val data/labelled/val --out runs/demo/few-shot"
    )

    base: Path | None = option(
        None, help="data set of other classes to train heads on", metavar="DIR"
    )
    val: Path | None = option(
        None,
        help="data set of other classes to choose settings and epochs on",
        metavar="DIR",
    )
    way: int = option(5, help="classes per episode", metavar="N", at_least=2)
    shot: tuple[int, ...] = option(
        (1, 5), help="support images per class; each number is evaluated", metavar="K", at_least=1
    )
    queries: int = option(15, help="query images per class", metavar="Q", at_least=1)
    episodes: int = option(1000, help="episodes per number of shots", metavar="T", at_least=1)
    seed: int = option(0, help="seed of the draw of episodes", metavar="S", at_least=0)
    methods: tuple[str, ...] | None = option(
        None,
        help="methods to run (default: all that can run; the others are flagged)",
        metavar="NAME",
    )
    episode_list: tuple[Path, ...] | None = option(
        None, help="files of episodes to use instead of drawing them", metavar="FILE"
    )
    mode: Mode = option(
        "frozen",
        help="train GLIML's head on --base, train the encoder with it, or train nothing",
    )
    interplay: Interplay = option(
        "gated",
        help="GLIML weights patches by a gate, or adds a multiple of the global token, chosen on "
        "--val",
    )
    # Not `at_least`: the error below says what to do instead.
    epochs: int = option(
        20, help="training epochs of 100 episodes; the best on --val is kept", metavar="N"
    )
    pool_grid: int = option(7, help="average patches to a grid of N x N", metavar="N", at_least=1)
    templates: tuple[str, ...] | None = option(
        None, help='sentences for class names, such as "a photo of a {}"', metavar="TEXT"
    )

    def __post_init__(self) -> None:
        """Raise UsageError if there is not a single epoch or number of support images."""
        if not self.shot:
            raise UsageError("shot must name at least one number of support images")
        if self.epochs < 1:
            raise UsageError(
                f"epochs must be at least 1, not {self.epochs}: use the mode none to train nothing"
            )
