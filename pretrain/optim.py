"""Parameter groups of AdamW, and the learning rate.

The rate is a pure function of the step, so that no scheduler state must be saved or restored.
"""

from __future__ import annotations

import torch
from torch import nn

from .config import OptimizerConfig

FUSION = ("fusion.", "text_projection.", "image_projection.", "text_pooler.", "image_pooler.")
HEADS = ("matching_head.", "masked_language_head.", "classifier.")


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Make AdamW over the trainable parameters, grouped by learning rate and weight decay.

    With `config.decay` "matrices", vectors (biases, norms, the class and mask tokens, the
    temperature) are not decayed; otherwise the authors' rule decides. Each group stores its
    `multiplier`, which `set_learning_rate` applies.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        multiplier = 1.0
        if name.startswith(FUSION):
            multiplier = config.fusion_multiplier
        elif name.startswith(HEADS):
            multiplier = config.head_multiplier
        decayed = parameter.ndim > 1 if config.decay == "matrices" else _published_decay(name)
        decay = config.weight_decay if decayed else 0.0
        groups.setdefault((multiplier, decay), []).append(parameter)
    parameter_groups = []
    for (multiplier, decay), parameters in groups.items():
        group = {"params": parameters, "multiplier": multiplier, "weight_decay": decay}
        parameter_groups.append(group)
    return torch.optim.AdamW(
        parameter_groups,
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        # One kernel for all parameters; on a CPU the plain form is used.
        fused=torch.cuda.is_available(),
    )


def _published_decay(name: str) -> bool:
    """Whether the authors decay a parameter: all but those with certain names."""
    # CLIP names its norms differently, so that the authors do decay them.
    norm = "LayerNorm" in name or name.startswith("masked_language_head.transform.2.")
    return not (norm or name.endswith("bias"))


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """Return the rate for step `step` (from 0): linear warm-up, then linear decay to 0.

    The rate reaches 0 one step after the last.
    """
    # The first step has a rate above 0, or it would be wasted.
    warmup = int(steps * config.warmup)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.lr * (steps - step) / max(1, steps - warmup)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate, times each group's multiplier, in the optimizer."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["multiplier"]
