"""`glscl eval few-shot`, `multi-label`, `metric-learning`, `glscl predict`: classes that a few pictures show."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from launch.commands import CommandResult, add_command, natural
from launch.evaluation import add_evaluation_options, evaluation


def add_few_shot(commands: Any) -> None:
    """Add `few-shot`."""
    few_shot = add_command(
        commands,
        "few-shot",
        partial(_tabled, "few-shot"),
        "recognition of new classes from one or a few pictures of each: GLIML and its baselines on the same episodes",
        "glscl eval few-shot --model runs/demo --data data/labelled/novel --base data/labelled/base "
        "--val data/labelled/val --out runs/demo/few-shot",
    )
    add_evaluation_options(few_shot)
    _add_learning_data(few_shot)
    few_shot.add_argument(
        "--way", metavar="N", type=natural, default=5, help="classes of an episode (%(default)s)"
    )
    few_shot.add_argument(
        "--shot",
        metavar="K",
        type=natural,
        nargs="+",
        default=[1, 5],
        help="support pictures of each (1 5)",
    )
    few_shot.add_argument(
        "--queries",
        metavar="Q",
        type=natural,
        default=15,
        help="query pictures of each class (%(default)s)",
    )
    few_shot.add_argument(
        "--episodes", metavar="T", type=natural, default=1000, help="of each form (%(default)s)"
    )
    few_shot.add_argument(
        "--seed", metavar="S", type=natural, default=0, help="draws the episodes (%(default)s)"
    )
    few_shot.add_argument(
        "--methods",
        metavar="NAME",
        nargs="+",
        help="those to run (default: all that can, and the others are flagged)",
    )
    few_shot.add_argument(
        "--episode-list",
        metavar="FILE",
        type=Path,
        nargs="+",
        help="episodes to run, as an evaluation wrote them",
    )
    few_shot.add_argument(
        "--mode",
        choices=("frozen", "finetune", "none"),
        default="frozen",
        help="what of GLIML is trained on --base: its head, the encoder too, nothing (%(default)s)",
    )
    few_shot.add_argument(
        "--interplay",
        choices=("gated", "additive"),
        default="gated",
        help="of GLIML: weights of patches, or a multiple of the global token, chosen on --val (%(default)s)",
    )
    few_shot.add_argument(
        "--epochs",
        metavar="N",
        type=natural,
        default=20,
        help="of training, 100 episodes each (%(default)s)",
    )
    few_shot.add_argument(
        "--templates",
        metavar="TEXT",
        nargs="+",
        default=None,
        help='sentences such as "a photo of a {}"',
    )


def _add_learning_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base", metavar="DIR", type=Path, help="data set of other classes, to train heads on"
    )
    parser.add_argument(
        "--val",
        metavar="DIR",
        type=Path,
        help="data set of other classes, to choose settings and epochs on",
    )


def add_predict(groups: Any) -> None:
    """Add `glscl predict`."""
    predict = add_command(
        groups,
        "predict",
        _predict,
        "which class pictures show, from a folder with a few example pictures of each class",
        "glscl predict new1.jpg new2.jpg --support examples/ --model runs/demo",
    )
    predict.add_argument(
        "pictures", metavar="PICTURE", nargs="+", type=Path, help="JPEG, PNG or WebP files"
    )
    predict.add_argument(
        "--support",
        metavar="DIR",
        type=Path,
        required=True,
        help="folder with one folder of pictures for each class, at least two",
    )
    predict.add_argument(
        "--model", metavar="DIR", type=Path, required=True, help="any model that few-shot takes"
    )


def _predict(arguments: argparse.Namespace) -> CommandResult:
    from dataclasses import asdict

    from eval.stages.few_shot.predict import predict, table

    found = predict(arguments.pictures, arguments.support, arguments.model)
    return asdict(found), table(found)


def add_multi_label(commands: Any) -> None:
    """Add `multi-label`."""
    multi_label = add_command(
        commands,
        "multi-label",
        partial(_tabled, "multi-label"),
        "which of some new labels pictures have, from one or a few pictures of each: patches chosen by what the loss "
        "loses without them, and baselines on the same draws",
        "glscl eval multi-label --model runs/demo --data data/labelled/novel --base data/labelled/base "
        "--val data/labelled/val --out runs/demo/multi-label",
    )
    add_evaluation_options(multi_label)
    _add_learning_data(multi_label)
    multi_label.add_argument(
        "--labels",
        metavar="LIST",
        help="names of labels: a file, or a shipped list such as coco_52_12_16 (default: what the data set says)",
    )
    multi_label.add_argument(
        "--shot",
        metavar="K",
        type=natural,
        nargs="+",
        default=[1, 5],
        help="support pictures of each label (1 5)",
    )
    multi_label.add_argument(
        "--draws", metavar="R", type=natural, default=20, help="of the support (%(default)s)"
    )
    multi_label.add_argument(
        "--seed", metavar="S", type=natural, default=0, help="draws the support (%(default)s)"
    )
    multi_label.add_argument(
        "--filter",
        choices=("strict", "any"),
        default="strict",
        help="leave out pictures with other labels besides, or ignore these labels (%(default)s)",
    )
    multi_label.add_argument(
        "--methods",
        metavar="NAME",
        nargs="+",
        help="those to run (default: all that can, and the others are flagged)",
    )
    multi_label.add_argument(
        "--init",
        choices=("vl_joint", "learned"),
        default="vl_joint",
        help="patches and labels meet in the model's contrastive space, or in one learned on --base (%(default)s)",
    )
    multi_label.add_argument(
        "--patches",
        metavar="N",
        type=natural,
        default=9,
        help="chosen of a support picture (%(default)s)",
    )
    multi_label.add_argument(
        "--query-pool",
        choices=("mean", "max", "label_attention"),
        default="mean",
        help="how a query's patches are compared with a prototype (%(default)s)",
    )
    multi_label.add_argument(
        "--epochs",
        metavar="N",
        type=natural,
        default=8,
        help="of the cross-interaction (%(default)s)",
    )


def add_metric_learning(commands: Any) -> None:
    """Add `metric-learning`."""
    metric = add_command(
        commands,
        "metric-learning",
        partial(_tabled, "metric-learning"),
        "retrieval of pictures of classes never learnt from: a trained head beside the frozen tower and ablations",
        "glscl eval metric-learning --model runs/demo --base data/labelled/base --data data/labelled/novel "
        "--out runs/demo/metric-learning",
    )
    add_evaluation_options(metric)
    metric.add_argument(
        "--base",
        metavar="DIR",
        type=Path,
        required=True,
        help="data set of other classes to learn on",
    )
    metric.add_argument(
        "--query",
        metavar="DIR",
        type=Path,
        help="queries, where --data is a gallery apart from them",
    )
    metric.add_argument(
        "--protocol",
        choices=(
            "classes",
            "query-gallery",
            "re-identification",
            "sysu-all",
            "sysu-indoor",
            "revisited",
        ),
        default="classes",
        help="what counts as right (default %(default)s: every picture against all others)",
    )
    metric.add_argument(
        "--head", choices=("gdfl", "dolg", "vitgal", "parts"), default="gdfl", help="(%(default)s)"
    )
    metric.add_argument(
        "--loss",
        choices=("triplet", "multi_similarity", "proxy_anchor", "supcon", "margin", "arcface"),
        default="multi_similarity",
        help="of pytorch-metric-learning (%(default)s)",
    )
    metric.add_argument(
        "--adversary",
        choices=("grl", "ridge", "none"),
        default="grl",
        help="against the class (%(default)s)",
    )
    metric.add_argument(
        "--lam",
        metavar="X",
        type=float,
        help="weight of the adversary (default: chosen on held-out training classes)",
    )
    metric.add_argument(
        "--layers",
        metavar="N",
        type=natural,
        nargs="+",
        help="blocks that are read, 1 the first (default: four)",
    )
    metric.add_argument(
        "--pool-grid",
        metavar="N",
        type=natural,
        default=7,
        help="patches are averaged to N x N (%(default)s)",
    )
    metric.add_argument(
        "--steps", metavar="N", type=natural, default=200, help="of a training (%(default)s)"
    )
    metric.add_argument(
        "--seeds",
        metavar="S",
        type=int,
        nargs="+",
        default=[0, 1, 2, 3, 4],
        help="one training each (0 1 2 3 4)",
    )
    metric.add_argument(
        "--parts",
        metavar="N",
        type=natural,
        default=0,
        help="bands of patch rows of part descriptors (default: none)",
    )
    metric.add_argument(
        "--rerank-k",
        metavar="K",
        type=natural,
        default=0,
        help="re-rank so many by local features (default: none)",
    )
    metric.add_argument(
        "--folds",
        metavar="N",
        type=natural,
        default=4,
        help="of the training classes, to choose on (%(default)s)",
    )
    metric.add_argument(
        "--ks", metavar="K", type=natural, nargs="+", default=[1, 2, 4, 8], help="of R@K (1 2 4 8)"
    )
    metric.add_argument(
        "--clusterings",
        metavar="N",
        type=natural,
        default=5,
        help="runs of k-means for NMI and AMI (%(default)s)",
    )


def _tabled(stage: str, arguments: argparse.Namespace) -> CommandResult:
    from importlib import import_module

    from eval.__main__ import STAGES
    from eval.results.schema import Result

    found, path = evaluation(stage, arguments)
    table = import_module(f"{STAGES[stage]}.summary").table(Result.model_validate(found))
    return found, f"{table}\n{path}"
