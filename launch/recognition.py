"""`glscl eval few-shot`, `multi-label` and `metric-learning`: recognition of classes that a few pictures show."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from launch.commands import CommandResult, add_command, natural
from launch.evaluation import add_evaluation_options, evaluation


def add_few_shot(commands: Any) -> None:
    """Add `few-shot`."""


def add_multi_label(commands: Any) -> None:
    """Add `multi-label`."""


def add_metric_learning(commands: Any) -> None:
    """Add `metric-learning`."""
    metric = add_command(
        commands,
        "metric-learning",
        _metric_learning,
        "retrieval of pictures of classes never learnt from: a trained head beside the frozen tower and ablations",
        "glscl eval metric-learning --model runs/demo --base data/labelled/base --data data/labelled/novel "
        "--out runs/demo/metric-learning",
    )
    add_evaluation_options(metric)
    metric.add_argument("--base", metavar="DIR", type=Path, required=True, help="data set of other classes to learn on")
    metric.add_argument("--query", metavar="DIR", type=Path, help="queries, where --data is a gallery apart from them")
    metric.add_argument(
        "--protocol",
        choices=("classes", "query-gallery", "re-identification", "sysu-all", "sysu-indoor", "revisited"),
        default="classes",
        help="what counts as right (default %(default)s: every picture against all others)",
    )
    metric.add_argument("--head", choices=("gdfl", "dolg", "vitgal", "parts"), default="gdfl", help="(%(default)s)")
    metric.add_argument(
        "--loss",
        choices=("triplet", "multi_similarity", "proxy_anchor", "supcon", "margin", "arcface"),
        default="multi_similarity",
        help="of pytorch-metric-learning (%(default)s)",
    )
    metric.add_argument(
        "--adversary", choices=("grl", "ridge", "none"), default="grl", help="against the class (%(default)s)"
    )
    metric.add_argument(
        "--lam", metavar="X", type=float, help="weight of the adversary (default: chosen on held-out training classes)"
    )
    metric.add_argument(
        "--layers", metavar="N", type=natural, nargs="+", help="blocks that are read, 1 the first (default: four)"
    )
    metric.add_argument(
        "--pool-grid", metavar="N", type=natural, default=7, help="patches are averaged to N x N (%(default)s)"
    )
    metric.add_argument("--steps", metavar="N", type=natural, default=200, help="of a training (%(default)s)")
    metric.add_argument(
        "--seeds", metavar="S", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="one training each (0 1 2 3 4)"
    )
    metric.add_argument(
        "--parts", metavar="N", type=natural, default=0, help="bands of patch rows of part descriptors (default: none)"
    )
    metric.add_argument(
        "--rerank-k", metavar="K", type=natural, default=0, help="re-rank so many by local features (default: none)"
    )
    metric.add_argument(
        "--folds", metavar="N", type=natural, default=4, help="of the training classes, to choose on (%(default)s)"
    )
    metric.add_argument("--ks", metavar="K", type=natural, nargs="+", default=[1, 2, 4, 8], help="of R@K (1 2 4 8)")
    metric.add_argument(
        "--clusterings", metavar="N", type=natural, default=5, help="runs of k-means for NMI and AMI (%(default)s)"
    )


def _metric_learning(arguments: argparse.Namespace) -> CommandResult:
    from eval.schema import Result
    from eval.stages.metric_learning.summary import table

    found, path = evaluation("metric-learning", arguments)
    return found, f"{table(Result.model_validate(found))}\n{path}"
