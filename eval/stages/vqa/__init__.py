"""Visual question answering with the official accuracy."""

from eval.metrics.vqa_accuracy import accuracy
from eval.results.run_stage import evaluator

from .options import Options

evaluate = evaluator(Options)

__all__ = ["Options", "accuracy", "evaluate"]
