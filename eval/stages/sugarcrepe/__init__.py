"""True captions against hard false captions (SugarCrepe)."""

from eval.results.run_stage import evaluator

from .options import Options

evaluate = evaluator(Options)

__all__ = ["Options", "evaluate"]
