"""Options of few-shot classification."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_pipeline.errors import UsageError
from eval.results.options import ModelOptions, option

Mode = Literal["frozen", "finetune", "none"]
"""What of GLIML is trained on base classes: its head, the encoder too, or nothing."""
Interplay = Literal["gated", "additive"]
"""How GLIML's patches are weighted: by a gate that needs no training, or by a global token."""


@dataclass(frozen=True, kw_only=True)
class Options(ModelOptions):
    """What `glscl eval few-shot` takes."""

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
        None, help="data set of other classes, on which heads are trained", metavar="DIR"
    )
    val: Path | None = option(
        None,
        help="data set of other classes, on which settings and epochs are chosen",
        metavar="DIR",
    )
    way: int = option(5, help="classes per episode", metavar="N", at_least=2)
    shot: tuple[int, ...] = option(
        (1, 5), help="support images per class; each number is evaluated", metavar="K", at_least=1
    )
    queries: int = option(15, help="query images per class", metavar="Q", at_least=1)
    episodes: int = option(1000, help="episodes per number of shots", metavar="T", at_least=1)
    seed: int = option(0, help="seed that the episodes are drawn with", metavar="S", at_least=0)
    methods: tuple[str, ...] | None = option(
        None, help="methods to run (default: all that can; the others are flagged)", metavar="NAME"
    )
    episode_list: tuple[Path, ...] | None = option(
        None, help="files of episodes to use instead of drawing them", metavar="FILE"
    )
    mode: Mode = option(
        "frozen", help="what GLIML trains on --base: its head, the encoder too, or nothing"
    )
    interplay: Interplay = option(
        "gated",
        help="how GLIML weights patches: a gate, or a multiple of the global token chosen on --val",
    )
    epochs: int = option(
        20, help="training epochs of 100 episodes; the best on --val is kept", metavar="N"
    )
    pool_grid: int = option(
        7, help="patches are averaged to a grid of N x N", metavar="N", at_least=1
    )
    templates: tuple[str, ...] | None = option(
        None, help='sentences such as "a photo of a {}" for class names', metavar="TEXT"
    )

    def __post_init__(self) -> None:
        """Raise UsageError for a training without epochs."""
        if self.epochs < 1:
            raise UsageError(
                f"epochs must be at least 1, not {self.epochs}: use the mode none to train nothing"
            )
