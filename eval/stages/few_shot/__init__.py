from eval.stages.few_shot.scores import metrics
from eval.stages.few_shot.stage import evaluate

__all__ = ["evaluate", "metrics"]
