"""Join the other ranks, and refuse to train if they are not what the user asked for.

Several obvious launch commands silently start one process, or several that do not see each other;
see docs/training.md.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from data_pipeline.errors import UsageError
from data_pipeline.randomness import hash_key

from .engines import Engine
from .gather import gather_counts
from .join import COMMAND, join


def start(precision: str, trackers: tuple[str, ...], folder: str, world: int | None) -> Engine:
    """Join the other ranks and return the engine that they train with.

    Raises UsageError if fewer processes see each other than were launched, if two share a GPU, or
    if their number is not `world`.
    """
    try:
        engine = join(precision, trackers, folder)
    except (ValueError, RuntimeError) as error:
        raise UsageError(
            f"cannot join the other processes: {' '.join(str(error).split())}"
        ) from None
    accelerator = engine.accelerator
    # The launcher sets WORLD_SIZE, whatever group this process then joined.
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != accelerator.num_processes:
        raise UsageError(
            f"{launched} processes were launched but this one sees {accelerator.num_processes}: "
            f"they would train separately. Launch with: {COMMAND.format(world=launched)}"
        )
    if accelerator.num_processes > 1:
        index = torch.tensor([accelerator.process_index], device=accelerator.device)
        seen = accelerator.gather(index).tolist()
        if sorted(seen) != list(range(accelerator.num_processes)):
            raise UsageError(f"only these of {accelerator.num_processes} ranks answered: {seen}")
    if accelerator.device.type == "cuda":
        # Not the device's index: CUDA_VISIBLE_DEVICES may differ between the ranks.
        device = str(torch.cuda.get_device_properties(accelerator.device).uuid)
        # Shifted, because a tensor of int64 has no room for an unsigned hash.
        check_devices(gather_counts([hash_key(device) >> 1])[0])
    if world is not None and world != accelerator.num_processes:
        raise UsageError(
            f"the configuration says world: {world}, but {accelerator.num_processes} train. "
            f"Launch with: {COMMAND.format(world=world)}"
        )
    return engine


def check_devices(devices: Sequence[int]) -> None:
    """Raise UsageError if two ranks have the same GPU; `devices` hashes the GPU of each rank."""
    for rank, device in enumerate(devices):
        first = devices.index(device)
        if first < rank:
            raise UsageError(f"ranks {first} and {rank} share a GPU: start one process per GPU")


def check_samples(hashes: Sequence[int]) -> None:
    """Raise UsageError if two ranks read the same samples; `hashes` has one value per rank."""
    for rank, value in enumerate(hashes):
        first = hashes.index(value)
        if first < rank:
            command = COMMAND.format(world=len(hashes))
            raise UsageError(f"ranks {first} and {rank} read the same samples: {command}")
