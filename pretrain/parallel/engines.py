"""The interface of all engines; each has a file of its own, and the launcher's file chooses one.

An engine wraps the model and its optimizer for one process or many. `__init__.py` lists the
engines, `join.py` starts the one that accelerate's configuration file names. Only the files of the
engines use private names of libraries; `tests/pretrain/test_engines.py` fails clearly where one of
them is gone.
"""

from __future__ import annotations

import math
import os
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn

from pretrain.model import GLSCLModel

from . import ENGINES


class Engine:
    """How ranks share the work of a step; subclasses override what differs between engines.

    Call `prepare` first. A step runs forward and `backward` for every micro-batch inside
    `micro_step`, then `gradient_norm`, which clips, then `update`. Every call runs on all ranks.
    """

    name: str
    distributed_types: ClassVar[tuple[str, ...]]
    """What accelerate calls a start under this engine."""
    portable = True
    """Whether weights and optimizer state are saved as whole tensors, so that another engine or
    number of ranks can resume from them."""
    warms_up = False
    """Whether the first backward pass of a process sums gradients in another order than later
    ones."""

    def __init__(self, accelerator: Accelerator, precision: str):
        self.accelerator, self.precision = accelerator, precision
        self.averaged: dict[str, Tensor] = {}
        """Moving average of each trained weight, sharded as the weights are; empty until `average`
        is called."""

    # Before the process joins the others. ------------------------------------------------------

    @classmethod
    def is_requested(cls) -> bool:
        """Return whether accelerate's launcher asks for this engine through the environment."""
        return False

    @classmethod
    def before_start(cls, precision: str) -> list[Any]:
        """Prepare the environment; return handlers for accelerate.

        Raises UsageError for a precision that the engine does not support.
        """
        if not torch.cuda.is_available():
            # Without this, a plain multi-process configuration starts processes that each believe
            # they are alone.
            os.environ["ACCELERATE_USE_CPU"] = "true"
        return [
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
        ]

    @classmethod
    def mixed_precision(cls, precision: str) -> str:
        """Precision that accelerate applies; "no" where the engine applies it itself."""
        return "no" if precision == "fp32" else precision

    @classmethod
    def parameter_bytes(cls, name: str, averaged: bool) -> tuple[int, int]:
        """Bytes that a float32 parameter takes on every rank, and bytes that the ranks divide.

        Counts weight, gradient and the two moments of AdamW, and the moving average if `averaged`.
        """
        raise NotImplementedError

    # Training. ---------------------------------------------------------------------------------

    def check_averaging(self) -> None:
        """Raise UsageError if the engine cannot keep a moving average of the weights."""

    def prepare(
        self,
        module: nn.Module,
        model: GLSCLModel,
        optimizer: torch.optim.Optimizer,
        micro_batch: int,
        max_grad_norm: float | None,
    ) -> None:
        """Wrap `module`, which holds `model`, and set `wrapped` and `optimizer`."""
        self.accelerator.free_memory()  # frees an earlier run of this process
        self.model, self.max_grad_norm, self.averaged = model, max_grad_norm, {}
        self._configure(micro_batch)
        self.wrapped, self.optimizer = self.accelerator.prepare(module, optimizer)
        self._complete(module)

    def micro_step(self, last: bool) -> AbstractContextManager[None]:
        """Enter one micro-batch; only the last one of a step exchanges gradients."""
        return nullcontext() if last else self.accelerator.no_sync(self.wrapped)

    def backward(self, loss: Tensor) -> None:
        """Run the backward pass of a micro-batch's share of the loss."""
        self.accelerator.backward(loss)

    def gradient_norm(self) -> Tensor:
        """Clip the step's gradient and return its norm before that, (1,), equal on all ranks."""
        norm = self.accelerator.clip_grad_norm_(
            self.model.parameters(), self.max_grad_norm or math.inf
        )
        return self._whole(norm).detach().reshape(1)

    @property
    def scaler(self) -> dict[str, Any] | None:
        """State of the fp16 loss scaler, for checkpoints; None in other precisions."""
        return self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None

    def update(self, finite: bool) -> bool:
        """Update the weights unless the gradient is not finite; return whether it was skipped."""
        # A scaler skips the update itself, and lowers its scale then.
        if finite or self.accelerator.scaler is not None:
            self.optimizer.step()
        self.optimizer.zero_grad()
        return not finite or bool(self.optimizer.step_was_skipped)

    @torch.no_grad()
    def clamp(self, parameter: nn.Parameter, bounds: tuple[float, float]) -> None:
        """Keep a parameter within bounds after an update."""
        parameter.clamp_(*bounds)

    @torch.no_grad()
    def average(self, decay: float) -> None:
        """Move the average towards the weights by 1 - `decay`; the first call copies them."""
        for name, parameter in self._trained().items():
            if name in self.averaged:
                self.averaged[name].lerp_(parameter, 1 - decay)
            else:
                self.averaged[name] = parameter.detach().clone()

    def averaged_weights(self) -> dict[str, Tensor]:
        """Return whole averages by name on rank 0, and nothing on other ranks."""
        # All ranks gather, even though only rank 0 keeps the result.
        whole = {name: self._whole(value).cpu() for name, value in self.averaged.items()}
        return whole if self.accelerator.is_main_process else {}

    def load_average(self, weights: dict[str, Tensor]) -> None:
        """Restore what `averaged_weights` returned."""
        self.averaged = {}
        for name, parameter in self._trained().items():
            self.averaged[name] = self._like(weights[name], parameter)

    def weights(self) -> dict[str, Tensor]:
        """Return whole weights, named as in `state_dict`; ranks other than 0 may get none."""
        return self.model.state_dict()

    def save_optimizer(self, folder: Path) -> dict[str, Tensor]:
        """Return the optimizer state as whole tensors on rank 0.

        An engine that is not portable writes files into `folder` instead, on every rank.
        """
        state = {}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.optimizer.state.get(parameter, {}).items():
                whole = self._whole(value).detach()
                if self.accelerator.is_main_process:
                    state[f"{name}/{key}"] = whole.cpu().contiguous()
        return state

    def load(self, weights: dict[str, Tensor], optimizer: dict[str, Tensor], folder: Path) -> None:
        """Restore, bit for bit, what `weights` and `save_optimizer` saved."""
        with torch.no_grad():
            for name, current in self.model.state_dict().items():
                current.copy_(self._like(weights[name], current))
        inner = self.optimizer.optimizer
        parameters = dict(self.model.named_parameters())
        states: dict[str, dict[str, Tensor]] = {}
        for path, value in optimizer.items():
            name, _, key = path.rpartition("/")
            # AdamW keeps its step count on the CPU unless fused.
            stays = key == "step" and not inner.defaults.get("fused")
            restored = value if stays else self._like(value, parameters[name])
            states.setdefault(name, {})[key] = restored
        for name, state in states.items():
            inner.state[parameters[name]] = state

    def _configure(self, micro_batch: int) -> None:
        """Set what accelerate's file leaves to the run, before the model is wrapped."""

    def _complete(self, module: nn.Module) -> None:
        """Finish what needs the wrapped model."""

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def _whole(self, value: Tensor) -> Tensor:
        """Gather a tensor that may be sharded."""
        return value

    def _like(self, value: Tensor, parameter: Tensor) -> Tensor:
        """Move a whole tensor to where `parameter` lies, sharded like it."""
        return value.to(parameter.device)


def engine_class(name: str) -> type[Engine]:
    """Load the class of an engine by a name of `ENGINES`."""
    module, class_name = ENGINES[name].rsplit(".", 1)
    loaded: type[Engine] = getattr(import_module(module), class_name)
    return loaded


def is_portable(name: str) -> bool:
    """Return whether any engine can resume a checkpoint that the engine `name` wrote."""
    # A stage of DeepSpeed outside the table can train, and resume only as itself.
    return name in ENGINES and engine_class(name).portable


def flag(variable: str) -> bool:
    """Read a switch that `accelerate launch` exports to its processes."""
    return os.environ.get(variable, "").lower() in ("1", "true", "yes")
