"""Statements about pairs of images (NLVR2)."""

from eval.results.run_stage import evaluator

from .options import Options

evaluate = evaluator(Options)

__all__ = ["Options", "evaluate"]
