"""Options of the alignment stage."""

from __future__ import annotations

from dataclasses import dataclass

from eval.results.options import ModelOptions


@dataclass(frozen=True, kw_only=True)
class Options(ModelOptions):
    """What `glscl eval align` takes."""

    stage = "align"
    about = "how much of the attention of a text falls on the boxes and masks of what it names"
    example = "glscl eval align --model runs/demo --data data/test --out runs/demo/align"
