"""Options of image-text retrieval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from eval.results.options import ModelOptions, option


@dataclass(frozen=True, kw_only=True)
class RankingOptions(ModelOptions):
    """What retrieval of images and of videos have in common."""

    rerank_k: int = option(
        16,
        help="candidates per query that the matching head scores again; 0: no re-ranking",
        metavar="K",
        at_least=0,
    )
    score: Literal["itm", "itm+sim"] = option(
        "itm+sim", help="what re-ranks: the matching head alone, or with the contrastive score"
    )


@dataclass(frozen=True, kw_only=True)
class Options(RankingOptions):
    """What `glscl eval retrieval` takes."""

    stage = "retrieval"
    about = (
        "image-text retrieval: contrastive scores, then the matching head on the best candidates"
    )
    example = "glscl eval retrieval --model runs/demo --data data/test --out runs/demo/retrieval"

    folds: int = option(
        1,
        help="consecutive parts of the data ranked separately (5 parts of COCO's 5K are its 1K)",
        metavar="N",
        at_least=1,
    )
