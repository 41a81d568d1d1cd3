"""Options of the Winoground stage."""

from __future__ import annotations

from dataclasses import dataclass

from eval.results.options import ModelOptions


@dataclass(frozen=True, kw_only=True)
class Options(ModelOptions):
    """What `glscl eval winoground` takes."""

    stage = "winoground"
    about = "two images and two captions of the same words: text, image and group score"
    example = (
        "glscl eval winoground --model runs/demo --data data/winoground --out runs/demo/winoground"
    )
