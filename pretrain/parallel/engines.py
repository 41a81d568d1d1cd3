"""One process, DDP, FSDP2 and DeepSpeed ZeRO behind one interface; accelerate's configuration file chooses.

Every private name of a library that training relies on stands in this file, and
`tests/pretrain/test_engines.py` fails clearly where one of them is gone.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType, PartialState
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers.modeling_layers import GradientCheckpointingLayer

from data_pipeline.errors import IncompleteError, UsageError
from pretrain.model import GLSCLModel


class Engine:
    """One process or DistributedDataParallel; the other engines change what differs.

    `prepare` comes first. A step is: for every micro-batch forward and `backward` inside
    `micro_step`, then `gradient_norm`, which clips, then `update`. All of it runs on all ranks.
    """

    name = "ddp"
    portable = True
    """Whether weights and optimiser state are saved tensor by tensor, so that ranks and engine may
    change."""
    warms_up = True
    """Whether the first backward of a process sums in another order than all later ones (DDP builds
    its buckets)."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.averaged: dict[str, Tensor] = {}
        """Moving average of each trained weight, divided as the weights are; empty until `average`
        is called."""

    def prepare(
        self,
        module: nn.Module,
        model: GLSCLModel,
        optimizer: torch.optim.Optimizer,
        micro_batch: int,
        max_grad_norm: float | None,
    ) -> None:
        """Wrap `module`, whose weights are those of `model` inside it; then `wrapped` and `optimizer` are there."""
        self.accelerator.free_memory()  # of an earlier run in this process
        self.model, self.max_grad_norm, self.averaged = model, max_grad_norm, {}
        self._configure(micro_batch)
        self.wrapped, self.optimizer = self.accelerator.prepare(module, optimizer)
        self._complete(module)

    def micro_step(self, last: bool) -> AbstractContextManager[None]:
        """Context of one micro-batch; only the last one of a step exchanges gradients."""
        return nullcontext() if last else self.accelerator.no_sync(self.wrapped)

    def backward(self, loss: Tensor) -> None:
        """Backward pass of a micro-batch's share of the loss."""
        self.accelerator.backward(loss)

    def gradient_norm(self) -> Tensor:
        """Norm of the step's gradient, (1,), the same on every rank; the gradient is clipped afterwards."""
        norm = self.accelerator.clip_grad_norm_(
            self.model.parameters(), self.max_grad_norm or math.inf
        )
        return self._whole(norm).detach().reshape(1)

    @property
    def scaler(self) -> dict[str, Any] | None:
        """State of fp16's scaler, which is part of a checkpoint; None in other precisions."""
        return self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None

    def update(self, finite: bool) -> bool:
        """Update the weights, unless the gradient is not finite; returns whether the update was skipped."""
        if (
            finite or self.accelerator.scaler is not None
        ):  # a scaler skips by itself, and lowers its scale
            self.optimizer.step()
        self.optimizer.zero_grad()
        return not finite or bool(self.optimizer.step_was_skipped)

    @torch.no_grad()
    def clamp(self, parameter: nn.Parameter, bounds: tuple[float, float]) -> None:
        """Keep a parameter within bounds after an update."""
        parameter.clamp_(*bounds)

    @torch.no_grad()
    def average(self, decay: float) -> None:
        """Move the average of the weights by 1 - `decay` towards them; it starts at the first weights it sees."""
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                if name in self.averaged:
                    self.averaged[name].lerp_(parameter, 1 - decay)
                else:
                    self.averaged[name] = parameter.detach().clone()

    def averaged_weights(self) -> dict[str, Tensor]:
        """Whole averages by name, on rank 0."""
        found = {name: self._whole(value).cpu() for name, value in self.averaged.items()}
        return found if self.accelerator.is_main_process else {}

    def load_average(self, weights: dict[str, Tensor]) -> None:
        """Put back what `averaged_weights` gave."""
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.averaged = {
            name: self._like(weights[name], parameter) for name, parameter in trained.items()
        }

    def weights(self) -> dict[str, Tensor]:
        """Whole weights by name, as `GLSCLModel.state_dict` names them; on ranks other than 0 perhaps none."""
        return self.model.state_dict()

    def save_optimizer(self, folder: Path) -> dict[str, Tensor]:
        """Optimiser state as whole tensors, on rank 0; an engine that is not portable writes files into `folder`."""
        found = {}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.optimizer.state.get(parameter, {}).items():
                whole = self._whole(value).detach()
                if self.accelerator.is_main_process:
                    found[f"{name}/{key}"] = whole.cpu().contiguous()
        return found

    def load(self, weights: dict[str, Tensor], optimizer: dict[str, Tensor], folder: Path) -> None:
        """Put back, bit for bit, what `weights` and `save_optimizer` gave."""
        with torch.no_grad():
            for name, own in self.model.state_dict().items():
                own.copy_(self._like(weights[name], own))
        inner = self.optimizer.optimizer
        for name, parameter in self.model.named_parameters():
            prefix = f"{name}/"
            state = {
                key.removeprefix(prefix): value
                for key, value in optimizer.items()
                if key.startswith(prefix)
            }
            if state:
                # AdamW keeps its step count on the CPU unless fused.
                inner.state[parameter] = {
                    key: value
                    if key == "step" and not inner.defaults.get("fused")
                    else self._like(value, parameter)
                    for key, value in state.items()
                }

    def _configure(self, micro_batch: int) -> None:
        """Complete what accelerate's file leaves to the run, before the model is wrapped."""

    def _complete(self, module: nn.Module) -> None:
        """Do what can only be done with the wrapped model."""

    def _whole(self, value: Tensor) -> Tensor:
        return value

    def _like(self, value: Tensor, parameter: Tensor) -> Tensor:
        return value.to(parameter.device)


class FSDP2(Engine):
    """`torch.distributed.fsdp.fully_shard` on every layer of the towers and the fusion encoder."""

    name = "fsdp2"
    warms_up = False

    def _configure(self, micro_batch: int) -> None:
        """Shard the layers one by one, then what is left as one group."""
        plugin = self.accelerator.state.fsdp_plugin
        if plugin.fsdp_version != 2:
            raise UsageError(
                "FSDP 1 is not supported: say fsdp_version: 2, as launch/accelerate/fsdp2.yaml does"
            )
        layers = {
            type(part).__name__
            for part in self.model.modules()
            if isinstance(part, GradientCheckpointingLayer)
        }
        plugin.transformer_cls_names_to_wrap = sorted(layers)
        # Weights stay float32 and gradients are exchanged in it, as under the other engines;
        # autocast does the rest.
        plugin.mixed_precision_policy = MixedPrecisionPolicy()

    def _complete(self, module: nn.Module) -> None:
        """Run the forward pass in the run's precision, which accelerate leaves to the policy above."""
        forward = self.wrapped.forward

        def in_precision(*inputs: Any) -> Any:
            with self.accelerator.autocast():
                return forward(*inputs)

        self.wrapped.forward = in_precision

    def weights(self) -> dict[str, Tensor]:
        """Gather one tensor after the other; only rank 0 keeps them."""
        found = {}
        for name, value in self.model.state_dict().items():
            whole = self._whole(value).detach()
            if self.accelerator.is_main_process:
                found[name] = whole.cpu()
        return found

    def _whole(self, value: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor

        return value.full_tensor() if isinstance(value, DTensor) else value

    def _like(self, value: Tensor, parameter: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor, distribute_tensor

        if isinstance(parameter, DTensor) and value.shape == parameter.shape:
            return distribute_tensor(
                value.to(parameter.device), parameter.device_mesh, parameter.placements
            )
        return super()._like(value, parameter)


class ZeRO(Engine):
    """DeepSpeed's ZeRO; the optimiser steps inside the last backward pass, and skips what is not finite."""

    portable = False
    warms_up = False

    def __init__(self, accelerator: Accelerator, precision: str):
        super().__init__(accelerator)
        self.stage = accelerator.state.deepspeed_plugin.zero_stage
        self.name, self.precision = f"zero{self.stage}", precision

    def _configure(self, micro_batch: int) -> None:
        """Fill in what belongs to the run and not to accelerate's file: batch, clipping, precision."""
        config = self.accelerator.state.deepspeed_plugin.deepspeed_config
        config |= {
            "train_micro_batch_size_per_gpu": micro_batch,
            "train_batch_size": micro_batch * self.accelerator.num_processes,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": self.max_grad_norm or 0.0,
            "zero_force_ds_cpu_optimizer": False,  # DeepSpeed's own would be compiled at start, for minutes
        }
        if self.precision == "bf16":
            # Weights stay float32 and gradients are exchanged in it, as under the other engines.
            config["torch_autocast"] = {
                "enabled": True,
                "dtype": "bfloat16",
                "lower_precision_safe_modules": [],
            }

    def _complete(self, module: nn.Module) -> None:
        """Tell ZeRO-3, which gathers a module's parameters for that module's forward, what the task's own reads."""
        if self.stage < 3:
            return
        from deepspeed import zero

        model, embeddings = self.model, self.model.vision.embeddings
        read = [
            *model.parameters(recurse=False),
            *model.token_type.parameters(),
            *embeddings.parameters(recurse=False),
            *embeddings.position_embedding.parameters(),
        ]
        if model.config.tie_masked_language_head:
            read += model.text.get_input_embeddings().parameters()
        for parameter in read:
            zero.register_external_parameter(module, parameter)

    @contextmanager
    def micro_step(self, last: bool) -> Iterator[None]:
        """DeepSpeed exchanges gradients and steps where accelerate says that they are synchronised."""
        self.accelerator.gradient_state._set_sync_gradients(last)
        try:
            yield
        finally:
            self.accelerator.gradient_state._set_sync_gradients(True)

    def gradient_norm(self) -> Tensor:
        """Norm that DeepSpeed computed in the update, which has been made."""
        norm = self.wrapped.get_global_grad_norm()
        if self.optimizer.step_was_skipped or norm is None:
            norm = math.inf
        return (
            torch.as_tensor(norm, dtype=torch.float32, device=self.accelerator.device)
            .detach()
            .reshape(1)
        )

    def update(self, finite: bool) -> bool:
        """Say what has happened."""
        return bool(self.optimizer.step_was_skipped)

    @torch.no_grad()
    def clamp(self, parameter: nn.Parameter, bounds: tuple[float, float]) -> None:
        """Change the float32 copy that the optimiser owns, and what the forward pass reads."""
        import deepspeed.utils as access

        if (
            self.stage == 3
        ):  # part by part: DeepSpeed cannot set a whole one that the ranks do not divide evenly
            own = access.safe_get_local_fp32_param(parameter)
            access.safe_set_local_fp32_param(parameter, own.clamp(*bounds))
        else:
            access.safe_set_full_fp32_param(
                parameter, access.safe_get_full_fp32_param(parameter).clamp(*bounds)
            )
        with self._gathered(parameter, 0):
            if self.stage < 3 or self.accelerator.is_main_process:
                parameter.clamp_(*bounds)

    def weights(self) -> dict[str, Tensor]:
        """Gather one tensor after the other where they are sharded."""
        if self.stage < 3:
            return self.model.state_dict()
        found = {}
        trained = dict(self.model.named_parameters())
        for name, value in self.model.state_dict().items():
            with self._gathered(trained[name]) if name in trained else nullcontext():
                if self.accelerator.is_main_process:
                    found[name] = trained.get(name, value).detach().cpu().clone()
        return found

    def save_optimizer(self, folder: Path) -> dict[str, Tensor]:
        """Write DeepSpeed's own files, one per rank; IncompleteError for a full disk."""
        failures: list[Exception] = []
        writer = self.wrapped.checkpoint_engine
        write = writer.save

        def save(*arguments: Any, **options: Any) -> None:
            # DeepSpeed ends in a barrier, where the other ranks would wait for one that has failed.
            try:
                write(*arguments, **options)
            except (RuntimeError, OSError) as error:
                failures.append(error)

        writer.save = save
        self.wrapped._copy_recovery_script = lambda _: (
            None
        )  # the checkpoint holds the whole weights already
        try:
            self.wrapped.save_checkpoint(str(folder), tag=self.name, save_latest=False)
        finally:
            writer.save = write
        for error in failures:  # torch.save calls a full disk a RuntimeError, in several wordings
            raise IncompleteError(
                f"cannot write {folder}: {error}: make room and run the same command again"
            )
        return {}

    def load(self, weights: dict[str, Tensor], optimizer: dict[str, Tensor], folder: Path) -> None:
        """Read DeepSpeed's own files."""
        if self.wrapped.load_checkpoint(str(folder), tag=self.name)[0] is None:
            raise UsageError(f"{folder} cannot be read by DeepSpeed: see what it said above")

    def _gathered(
        self, parameter: nn.Parameter, modifier: int | None = None
    ) -> AbstractContextManager[Any]:
        from deepspeed import zero

        return zero.GatheredParameters([parameter], modifier_rank=modifier, enabled=self.stage == 3)


def join(precision: str, trackers: tuple[str, ...], folder: str) -> Engine:
    """Join the other ranks with the engine that the launcher's configuration names; on a CPU over gloo.

    Raises UsageError for a precision that the machine or the engine does not have, and where
    another engine would train than the one that the file names.
    """
    cuda = torch.cuda.is_available()
    sharded, zero = (
        _asked_for(name) for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
    )
    handlers: list[Any] = [
        DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    ]
    if precision == "fp16" and not cuda:
        raise UsageError("precision fp16 needs a GPU: choose bf16 or fp32")
    if (
        precision == "fp16" and zero
    ):  # DeepSpeed would clip the gradient before it takes the scale out of it
        raise UsageError(
            "precision fp16 does not work under DeepSpeed with float32 weights: choose bf16, DDP or FSDP2"
        )
    if zero and not cuda:
        os.environ["DS_ACCELERATOR"] = "cpu"
        from deepspeed import ops

        # Its own way between the ranks of a machine would be compiled at the first start, for
        # minutes, and a start killed meanwhile would leave a lock that all later ones wait for
        # without end. Gloo does the same.
        ops.__compatible_ops__["deepspeed_shm_comm"] = False
        handlers = [
            InitProcessGroupKwargs(backend="gloo")
        ]  # without it every rank believes to be alone
    elif not cuda:
        # Without this, a plain multi-process configuration gives two processes that each believe to
        # be alone.
        os.environ["ACCELERATE_USE_CPU"] = "true"
        if sharded and not PartialState._shared_state and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            PartialState(cpu=True)
            # accelerate turns several ranks into FSDP only where it takes them for GPUs.
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    accelerator = Accelerator(
        mixed_precision="no" if zero or precision == "fp32" else precision,
        log_with=list(trackers) or None,
        project_dir=folder,
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=1
        ),  # or an environment variable decides
        kwargs_handlers=handlers,
    )
    found = accelerator.distributed_type
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    if several and (
        (sharded and found != DistributedType.FSDP) or (zero and found != DistributedType.DEEPSPEED)
    ):
        raise UsageError(
            f"the configuration of accelerate names another engine, but {found.value} would train"
        )
    if found == DistributedType.DEEPSPEED:
        from transformers.integrations import unset_hf_deepspeed_config

        # Under ZeRO-3 transformers would build towers already sharded, which their initialisation
        # does not expect.
        unset_hf_deepspeed_config()
        return ZeRO(accelerator, precision)
    if found == DistributedType.FSDP:
        return FSDP2(accelerator)
    return Engine(accelerator)


def _asked_for(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes")
