"""Image-text retrieval in both directions."""

from .stage import evaluate, metrics

__all__ = ["evaluate", "metrics"]
