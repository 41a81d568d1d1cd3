"""Options of metric learning, and the names that its parts choose from.

Options that cannot work are refused here, before a model or a data set is opened. Nothing heavy is
imported: `glscl eval metric-learning --help` reads this file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from data_pipeline.errors import UsageError
from eval.results.options import ModelOptions, option

Protocol = Literal[
    "classes", "query-gallery", "re-identification", "sysu-all", "sysu-indoor", "revisited"
]
Head = Literal["gdfl", "dolg", "vitgal", "parts"]
Loss = Literal["triplet", "multi_similarity", "proxy_anchor", "supcon", "margin", "arcface"]
Adversary = Literal["grl", "ridge", "none"]

PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
HEADS: tuple[Head, ...] = get_args(Head)
LOSSES: tuple[Loss, ...] = get_args(Loss)
ADVERSARIES: tuple[Adversary, ...] = get_args(Adversary)

# Scikit-learn's k-means and classifiers take no larger seed.
SEED_LIMIT = 2**32


@dataclass(frozen=True, kw_only=True)
class Options(ModelOptions):
    """What `glscl eval metric-learning` takes."""

    stage = "metric-learning"
    about = (
        "retrieval of images of classes not seen in training: a trained head, the frozen tower "
        "and ablations on the same queries"
    )
    example = (
        "glscl eval metric-learning --model runs/demo --base data/labelled/base "
        "--data data/labelled/novel --out runs/demo/metric-learning"
    )

    base: Path = option(
        help="data set to train on; it must share no class with --data", metavar="DIR"
    )
    query: Path | None = option(
        None,
        help="data set of queries, if they are not part of the gallery --data",
        metavar="DIR",
    )
    protocol: Protocol = option(
        "classes",
        help="which images are ranked for a query and which of them are right; 'classes' ranks all "
        "other images of --data",
    )
    head: Head = option("gdfl", help="which head is trained on the frozen tower")
    loss: Loss = option("multi_similarity", help="metric loss of pytorch-metric-learning")
    adversary: Adversary = option(
        "grl", help="adversary that keeps features from encoding the training class"
    )
    lam: float | None = option(
        None,
        help="weight of the adversary (default: chosen on held-out training classes)",
        metavar="X",
        at_least=0,
    )
    layers: tuple[int, ...] | None = option(
        None,
        help="blocks of the tower that the head reads, counted from 1 (default: four, equally "
        "spaced)",
        metavar="N",
        at_least=1,
    )
    pool_grid: int = option(
        7, help="average the patches of an image to a grid of N x N", metavar="N", at_least=1
    )
    embed_dim: int = option(512, help="size of the descriptor", metavar="N", at_least=1)
    per_layer_dim: int = option(
        128, help="size of the feature of each block", metavar="N", at_least=1
    )
    steps: int = option(200, help="training steps per run", metavar="N", at_least=1)
    seeds: tuple[int, ...] = option(
        (0, 1, 2, 3, 4), help="train once with each of these seeds", metavar="S", at_least=0
    )
    parts: int = option(
        0,
        help="horizontal bands of patches in part descriptors; 0: no part descriptors",
        metavar="N",
        at_least=0,
    )
    rerank_k: int = option(
        0,
        help="also re-rank the K best images of each query by local features; 0: no re-ranking",
        metavar="K",
        at_least=0,
    )
    folds: int = option(
        4,
        help="parts of the training classes; each is held out once to choose settings",
        metavar="N",
        at_least=2,
    )
    ks: tuple[int, ...] = option(
        (1, 2, 4, 8), help="the values K of recall@K; must include 1", metavar="K", at_least=1
    )
    clusterings: int = option(
        5, help="k-means runs for NMI and AMI; 0: no clustering", metavar="N", at_least=0
    )

    def __post_init__(self) -> None:
        """Raise UsageError for values that cannot work alone or together."""
        if not self.seeds or _has_repeats(self.seeds) or max(self.seeds) >= SEED_LIMIT:
            raise UsageError(
                f"seeds are {list(self.seeds)}, must be one or more different numbers from 0 to "
                f"{SEED_LIMIT - 1}"
            )
        if self.layers is not None and (not self.layers or _has_repeats(self.layers)):
            raise UsageError(f"layers are {list(self.layers)}, must be different blocks")
        if self.lam is not None and not math.isfinite(self.lam):
            raise UsageError(f"lam is {self.lam}, must be a finite number")
        if 1 not in self.ks:
            raise UsageError("ks must include 1, because methods are compared by recall@1")
        if self.head == "parts" and not self.parts:
            raise UsageError("the head parts needs the number of bands: --parts N")
        self._check_reranking()
        self._check_queries()

    def _check_reranking(self) -> None:
        # The head `parts` has no attention to choose patches by, and patches of infrared and
        # visible images do not match.
        if self.rerank_k and (self.head == "parts" or self.protocol.startswith("sysu")):
            raise UsageError(
                "rerank_k needs a head with attention (gdfl, dolg, vitgal) and images of one "
                "modality"
            )

    def _check_queries(self) -> None:
        if self.protocol == "classes" and self.query is not None:
            raise UsageError(
                "the protocol classes ranks a data set against itself; choose query-gallery for "
                "separate queries"
            )
        needs_queries = self.protocol in ("query-gallery", "re-identification", "revisited")
        if needs_queries and self.query is None:
            raise UsageError(f"the protocol {self.protocol} needs separate queries: --query DIR")


def _has_repeats(numbers: Sequence[int]) -> bool:
    return len(set(numbers)) < len(numbers)
