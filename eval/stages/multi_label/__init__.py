from .records import metrics
from .stage import evaluate

__all__ = ["evaluate", "metrics"]
