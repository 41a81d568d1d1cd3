"""Options of the NLVR2 stage."""

from __future__ import annotations

from dataclasses import dataclass

from eval.results.options import ModelOptions


@dataclass(frozen=True, kw_only=True)
class Options(ModelOptions):
    """What `glscl eval nlvr2` takes."""

    stage = "nlvr2"
    about = "whether statements about pairs of images are true: accuracy and consistency"
    example = "glscl eval nlvr2 --model runs/nlvr2 --data data/pairs/test --out runs/nlvr2/nlvr2"
