"""Options of the caption preference stage."""

from __future__ import annotations

from dataclasses import dataclass

from eval.results.options import ModelOptions


@dataclass(frozen=True, kw_only=True)
class Options(ModelOptions):
    """What `glscl eval preference` takes."""

    stage = "preference"
    about = "whether a true caption scores higher than one with swapped attributes or relation"
    example = "glscl eval preference --model runs/demo --data data/test --out runs/demo/preference"
