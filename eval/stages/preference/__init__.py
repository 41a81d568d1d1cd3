"""True captions against captions with swapped attributes or relations."""

from eval.results.run_stage import evaluator

from .options import Options

evaluate = evaluator(Options)

__all__ = ["Options", "evaluate"]
