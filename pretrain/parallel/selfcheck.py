"""Start the processes and refuse to train when they are not what was asked for.

Several obvious launch commands silently start one process, or several that do not see each other;
see docs/training.md.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from data_pipeline.errors import UsageError
from data_pipeline.randomness import hash_key

from .engines import Engine, join
from .gather import gather_counts

WORKING = "accelerate launch --config_file launch/accelerate/ddp.yaml --num_processes {world} -m pretrain CONFIG"
_ENGINES = ("NO", "MULTI_GPU", "MULTI_CPU", "FSDP", "DEEPSPEED")


def start(precision: str, trackers: tuple[str, ...], folder: str, world: int | None) -> Engine:
    """Join the other ranks; on a machine without CUDA, on the CPU over gloo.

    Raises UsageError when the launcher started more processes than see each other, or when `world`
    says another number.
    """
    try:
        engine = join(precision, trackers, folder)
    except (ValueError, RuntimeError) as error:
        raise UsageError(
            f"cannot join the other processes: {' '.join(str(error).split())}"
        ) from None
    accelerator = engine.accelerator
    if accelerator.distributed_type.value not in _ENGINES:
        raise UsageError(
            f"{accelerator.distributed_type.value} is not supported: use {WORKING.format(world='N')}"
        )
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != accelerator.num_processes:
        raise UsageError(
            f"{launched} processes were launched but this one sees {accelerator.num_processes}: they would train "
            f"separately. Launch with: {WORKING.format(world=launched)}"
        )
    if accelerator.num_processes > 1:
        seen = accelerator.gather(
            torch.tensor([accelerator.process_index], device=accelerator.device)
        ).tolist()
        if sorted(seen) != list(range(accelerator.num_processes)):
            raise UsageError(f"of {accelerator.num_processes} ranks these answered: {seen}")
    if accelerator.device.type == "cuda":
        device = str(torch.cuda.get_device_properties(accelerator.device).uuid)
        check_devices(gather_counts([hash_key(device) >> 1])[0])
    if world is not None and world != accelerator.num_processes:
        raise UsageError(
            f"the configuration says world: {world}, but {accelerator.num_processes} train. "
            f"Launch with: {WORKING.format(world=world)}"
        )
    return engine


def check_devices(devices: Sequence[int]) -> None:
    """Raise UsageError where two ranks have the same GPU; `devices` are hashes of what identifies it."""
    for rank, device in enumerate(devices):
        first = devices.index(device)
        if first < rank:
            raise UsageError(f"ranks {first} and {rank} share a GPU: start one process per GPU")


def check_samples(hashes: Sequence[int]) -> None:
    """Raise UsageError where two ranks have read the same samples; `hashes` are of what each has read."""
    for rank, value in enumerate(hashes):
        first = hashes.index(value)
        if first < rank:
            raise UsageError(
                f"ranks {first} and {rank} read the same samples: {WORKING.format(world=len(hashes))}"
            )
