"""DeepSpeed's ZeRO: ranks divide the optimiser's state (1), gradients too (2), weights too (3)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor, nn

from data_pipeline.errors import IncompleteError, UsageError

from .engines import Engine, flag


class ZeRO(Engine):
    """DeepSpeed's ZeRO, stages 1 to 3.

    The optimizer steps inside the last backward pass of a step, and skips a gradient that is not
    finite.
    """

    distributed_types = ("DEEPSPEED",)
    portable = False

    def __init__(self, accelerator: Accelerator, precision: str):
        super().__init__(accelerator, precision)
        self.stage = accelerator.state.deepspeed_plugin.zero_stage
        self.name = f"zero{self.stage}"
        from transformers.integrations import unset_hf_deepspeed_config

        # Under ZeRO-3 transformers would build towers already sharded, which their initialization
        # does not expect.
        unset_hf_deepspeed_config()

    @classmethod
    def is_requested(cls) -> bool:
        """Read what `accelerate launch` exports."""
        return flag("ACCELERATE_USE_DEEPSPEED")

    @classmethod
    def before_start(cls, precision: str) -> list[Any]:
        """Make DeepSpeed run on a CPU over gloo, with nothing compiled."""
        if precision == "fp16":
            # DeepSpeed would clip the gradient before it takes the loss scale out of it.
            raise UsageError(
                "precision fp16 does not work under DeepSpeed with float32 weights: "
                "choose bf16, DDP or FSDP2"
            )
        if torch.cuda.is_available():
            return super().before_start(precision)
        os.environ["DS_ACCELERATOR"] = "cpu"
        from deepspeed import ops

        # DeepSpeed would compile its own shared-memory transport at the first start, for minutes,
        # and a start killed meanwhile would leave a lock that all later ones wait for for ever.
        # Gloo does the same work.
        ops.__compatible_ops__["deepspeed_shm_comm"] = False
        # Without the handler, every rank believes it is alone.
        return [InitProcessGroupKwargs(backend="gloo")]

    @classmethod
    def mixed_precision(cls, precision: str) -> str:
        """DeepSpeed applies the precision itself; see `_configure`."""
        return "no"

    @classmethod
    def parameter_bytes(cls, name: str, averaged: bool) -> tuple[int, int]:
        """Stages divide more and more; the optimizer keeps a second copy of the weights."""
        whole, divided = {"zero1": (8, 12), "zero2": (4, 16), "zero3": (0, 20)}[name]
        return whole + 4 * averaged, divided

    def check_averaging(self) -> None:
        """Refuse stage 3, whose shards cannot be read between steps."""
        if self.stage == 3:
            raise UsageError("optimizer.ema does not work under ZeRO-3: choose zero2 or fsdp2")

    def _configure(self, micro_batch: int) -> None:
        """Fill in what depends on the run: batch, clipping, precision."""
        config = self.accelerator.state.deepspeed_plugin.deepspeed_config
        config |= {
            "train_micro_batch_size_per_gpu": micro_batch,
            "train_batch_size": micro_batch * self.accelerator.num_processes,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": self.max_grad_norm or 0.0,
            # DeepSpeed's own optimizer would be compiled at the first start, for minutes.
            "zero_force_ds_cpu_optimizer": False,
        }
        if self.precision == "bf16":
            # Weights stay float32 and gradients are exchanged in float32, as under other engines.
            config["torch_autocast"] = {
                "enabled": True,
                "dtype": "bfloat16",
                "lower_precision_safe_modules": [],
            }

    def _complete(self, module: nn.Module) -> None:
        """Tell ZeRO-3 which parameters the task reads outside the modules that own them.

        ZeRO-3 gathers the parameters of a module for the forward pass of that module only.
        """
        if self.stage < 3:
            return
        from deepspeed import zero

        model, embeddings = self.model, self.model.vision.embeddings
        parameters = [
            *model.parameters(recurse=False),
            *model.token_type.parameters(),
            *embeddings.parameters(recurse=False),
            *embeddings.position_embedding.parameters(),
        ]
        if model.config.tie_masked_language_head:
            parameters += model.text.get_input_embeddings().parameters()
        for parameter in parameters:
            zero.register_external_parameter(module, parameter)

    @contextmanager
    def micro_step(self, last: bool) -> Iterator[None]:
        """Make DeepSpeed exchange gradients and step in the last micro-batch only."""
        # accelerate passes this flag to DeepSpeed's engine in `backward`.
        self.accelerator.gradient_state._set_sync_gradients(last)
        try:
            yield
        finally:
            self.accelerator.gradient_state._set_sync_gradients(True)

    def gradient_norm(self) -> Tensor:
        """Return the norm that DeepSpeed computed in the update, which is over by now."""
        norm = self.wrapped.get_global_grad_norm()
        if self.optimizer.step_was_skipped or norm is None:
            norm = math.inf
        norm = torch.as_tensor(norm, dtype=torch.float32, device=self.accelerator.device)
        return norm.detach().reshape(1)

    def update(self, finite: bool) -> bool:
        """Return whether DeepSpeed skipped the update, which is over by now."""
        return bool(self.optimizer.step_was_skipped)

    @torch.no_grad()
    def clamp(self, parameter: nn.Parameter, bounds: tuple[float, float]) -> None:
        """Change the optimiser's float32 copy and the weight that the forward pass reads."""
        import deepspeed.utils as access

        if self.stage == 3:
            # Shard by shard: DeepSpeed cannot set a whole parameter that ranks divide unevenly.
            local_shard = access.safe_get_local_fp32_param(parameter)
            access.safe_set_local_fp32_param(parameter, local_shard.clamp(*bounds))
        else:
            whole = access.safe_get_full_fp32_param(parameter)
            access.safe_set_full_fp32_param(parameter, whole.clamp(*bounds))
        with self._gathered(parameter, 0):
            if self.stage < 3 or self.accelerator.is_main_process:
                parameter.clamp_(*bounds)

    def weights(self) -> dict[str, Tensor]:
        """Gather the weights one at a time where they are sharded."""
        if self.stage < 3:
            return self.model.state_dict()
        whole_weights = {}
        trained = dict(self.model.named_parameters())
        for name, value in self.model.state_dict().items():
            with self._gathered(trained[name]) if name in trained else nullcontext():
                if self.accelerator.is_main_process:
                    whole_weights[name] = trained.get(name, value).detach().cpu().clone()
        return whole_weights

    def save_optimizer(self, folder: Path) -> dict[str, Tensor]:
        """Write DeepSpeed's own files, one per rank; raises IncompleteError for a full disk."""
        failures: list[Exception] = []
        writer = self.wrapped.checkpoint_engine
        write = writer.save

        def save(*arguments: Any, **options: Any) -> None:
            # DeepSpeed ends in a barrier, where the others would wait for a rank that raised here.
            try:
                write(*arguments, **options)
            except (RuntimeError, OSError) as error:
                failures.append(error)

        writer.save = save
        # The script assembles whole weights, which the checkpoint holds already.
        self.wrapped._copy_recovery_script = lambda _: None
        try:
            self.wrapped.save_checkpoint(str(folder), tag=self.name, save_latest=False)
        finally:
            writer.save = write
        if failures:
            # torch.save reports a full disk as a RuntimeError, in several wordings.
            raise IncompleteError(
                f"cannot write {folder}: {failures[0]}: make room and run the same command again"
            )
        return {}

    def load(self, weights: dict[str, Tensor], optimizer: dict[str, Tensor], folder: Path) -> None:
        """Read DeepSpeed's own files."""
        if self.wrapped.load_checkpoint(str(folder), tag=self.name)[0] is None:
            raise UsageError(f"DeepSpeed cannot read {folder}: see its messages above")

    def _gathered(
        self, parameter: nn.Parameter, modifier: int | None = None
    ) -> AbstractContextManager[Any]:
        from deepspeed import zero

        return zero.GatheredParameters([parameter], modifier_rank=modifier, enabled=self.stage == 3)
