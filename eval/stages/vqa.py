"""Visual question answering."""

from eval.vqa_accuracy import accuracy

__all__ = ["accuracy"]
