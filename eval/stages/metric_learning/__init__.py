"""Zero-shot metric learning: descriptors learnt on some classes, measured by retrieval among others."""

from .scores import metrics
from .stage import evaluate

__all__ = ["evaluate", "metrics"]
