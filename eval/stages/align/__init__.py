"""Alignment of words and image regions (ALIGN-BENCH)."""

from eval.results.run_stage import evaluator

from .options import Options

evaluate = evaluator(Options)

__all__ = ["Options", "evaluate"]
