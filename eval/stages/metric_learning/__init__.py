"""Zero-shot metric learning: retrieval of images of unseen classes."""

from eval.results.run_stage import evaluator

from .options import Options

evaluate = evaluator(Options)

__all__ = ["Options", "evaluate"]
