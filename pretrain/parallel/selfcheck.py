"""Start the processes and refuse to train when they are not what was asked for.

Several obvious launch commands silently start one process, or several that do not see each other; see docs/training.md.
"""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType
from accelerate.utils import GradientAccumulationPlugin

from data_pipeline.errors import UsageError

WORKING = "accelerate launch --config_file launch/accelerate/ddp.yaml --num_processes {world} -m pretrain CONFIG"


def start(precision: str, trackers: tuple[str, ...], folder: str, world: int | None) -> Accelerator:
    """Join the other ranks; on a machine without CUDA, on the CPU over gloo.

    Raises UsageError when the launcher started more processes than see each other, or when `world` says another number.
    """
    if not torch.cuda.is_available():
        # Without this, a plain multi-process configuration gives two processes that each believe to be alone.
        os.environ["ACCELERATE_USE_CPU"] = "true"
    try:
        accelerator = Accelerator(
            mixed_precision="bf16" if precision == "bf16" else "no",
            log_with=list(trackers) or None,
            project_dir=folder,
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # or an environment variable decides
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
        )
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"cannot join the other processes: {' '.join(str(error).split())}") from None
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
        raise UsageError(f"{accelerator.distributed_type.value} is not supported yet: use {WORKING.format(world='N')}")
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != accelerator.num_processes:
        raise UsageError(
            f"{launched} processes were launched but this one sees {accelerator.num_processes}: they would train "
            f"separately. Launch with: {WORKING.format(world=launched)}"
        )
    if accelerator.num_processes > 1:
        seen = accelerator.gather(torch.tensor([accelerator.process_index], device=accelerator.device)).tolist()
        if sorted(seen) != list(range(accelerator.num_processes)):
            raise UsageError(f"of {accelerator.num_processes} ranks these answered: {seen}")
    if world is not None and world != accelerator.num_processes:
        raise UsageError(
            f"the configuration says world: {world}, but {accelerator.num_processes} train. "
            f"Launch with: {WORKING.format(world=world)}"
        )
    return accelerator
