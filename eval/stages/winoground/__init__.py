"""Two images and two captions of the same words (Winoground)."""

from eval.results.run_stage import evaluator

from .options import Options

evaluate = evaluator(Options)

__all__ = ["Options", "evaluate"]
