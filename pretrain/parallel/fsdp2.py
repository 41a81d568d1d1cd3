"""FSDP2: ranks divide weights, gradients and moments, and gather a layer's weights when it runs."""

from __future__ import annotations

import os
from typing import Any

import torch
from accelerate import DistributedType, PartialState
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers.modeling_layers import GradientCheckpointingLayer

from data_pipeline.errors import UsageError

from .engines import Engine, flag


class FSDP2(Engine):
    """`torch.distributed.fsdp.fully_shard` on every layer of the towers and the fusion encoder."""

    name = "fsdp2"
    distributed_types = ("FSDP",)

    @classmethod
    def is_requested(cls) -> bool:
        """Read what `accelerate launch` exports."""
        return flag("ACCELERATE_USE_FSDP")

    @classmethod
    def before_start(cls, precision: str) -> list[Any]:
        """Make accelerate accept ranks on a CPU, over gloo."""
        handlers = super().before_start(precision)
        several = int(os.environ.get("WORLD_SIZE", 1)) > 1
        if not torch.cuda.is_available() and several and not PartialState._shared_state:
            PartialState(cpu=True)
            # accelerate turns several ranks into FSDP only where it takes them for GPUs.
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        return handlers

    @classmethod
    def parameter_bytes(cls, name: str, averaged: bool) -> tuple[int, int]:
        """Ranks divide everything, the moving average included."""
        return 0, 16 + 4 * averaged

    def _configure(self, micro_batch: int) -> None:
        """Shard layer by layer, and the remaining parameters as one group."""
        plugin = self.accelerator.state.fsdp_plugin
        if plugin.fsdp_version != 2:
            raise UsageError(
                "FSDP 1 is not supported: set fsdp_version: 2, as launch/accelerate/fsdp2.yaml does"
            )
        layers = set()
        for part in self.model.modules():
            if isinstance(part, GradientCheckpointingLayer):
                layers.add(type(part).__name__)
        plugin.transformer_cls_names_to_wrap = sorted(layers)
        # An empty policy: weights stay float32 and gradients are exchanged in float32, as under the
        # other engines. `_complete` applies autocast to the forward pass.
        plugin.mixed_precision_policy = MixedPrecisionPolicy()

    def _complete(self, module: nn.Module) -> None:
        """Run the forward pass in the run's precision, which accelerate leaves to the policy."""
        forward = self.wrapped.forward

        def in_precision(*inputs: Any) -> Any:
            with self.accelerator.autocast():
                return forward(*inputs)

        self.wrapped.forward = in_precision

    def weights(self) -> dict[str, Tensor]:
        """Gather the weights one at a time; only rank 0 keeps them."""
        whole_weights = {}
        for name, value in self.model.state_dict().items():
            whole = self._whole(value).detach()
            if self.accelerator.is_main_process:
                whole_weights[name] = whole.cpu()
        return whole_weights

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
