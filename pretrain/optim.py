"""Parameter groups of AdamW, and the learning rate as a pure function of the step (nothing to save or restore)."""

from __future__ import annotations

import torch
from torch import nn

from .config import OptimizerConfig

FUSION = ("fusion.", "text_projection.", "image_projection.", "text_pooler.", "image_pooler.")
HEADS = ("matching_head.", "masked_language_head.", "classifier.")


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters.

    Vectors (biases, norms, the class and mask tokens, the temperature) are not decayed, or what
    `config.decay` says. Each group keeps its `multiplier`, which `set_learning_rate` applies.
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
    return torch.optim.AdamW(
        [
            {"params": parameters, "multiplier": multiplier, "weight_decay": decay}
            for (multiplier, decay), parameters in groups.items()
        ],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=torch.cuda.is_available(),
    )


def _published_decay(name: str) -> bool:
    """Whether the authors decay a parameter: they name the exceptions, and CLIP's norms have other names."""
    norm = "LayerNorm" in name or name.startswith("masked_language_head.transform.2.")
    return not (norm or name.endswith("bias"))


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """Rate of the update that makes step `step` (from 0): linear warm-up, then linear decay to 0 after the last."""
    warmup = int(steps * config.warmup)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.lr * (steps - step) / max(1, steps - warmup)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Write the rate, times each group's multiplier, into the optimiser."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["multiplier"]
