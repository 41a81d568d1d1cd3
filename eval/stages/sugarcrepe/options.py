"""Options of the SugarCrepe stage."""

from __future__ import annotations

from dataclasses import dataclass

from eval.results.options import ModelOptions


@dataclass(frozen=True, kw_only=True)
class Options(ModelOptions):
    """What `glscl eval sugarcrepe` takes."""

    stage = "sugarcrepe"
    about = "whether a true caption scores higher than a hard false one (SugarCrepe)"
    example = (
        "glscl eval sugarcrepe --model runs/demo --data data/sugarcrepe --out runs/demo/sugarcrepe"
    )
