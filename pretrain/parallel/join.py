"""Join the other ranks with the engine that the launcher's configuration names, and leave them."""

from __future__ import annotations

import gc
import os

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import GradientAccumulationPlugin

from data_pipeline.errors import UsageError

from . import DEFAULT_ENGINE, ENGINES
from .engines import Engine, engine_class

COMMAND = (
    f"accelerate launch --config_file launch/accelerate/{DEFAULT_ENGINE}.yaml "
    "--num_processes {world} -m pretrain CONFIG"
)


def join(precision: str, trackers: tuple[str, ...], folder: str) -> Engine:
    """Join the other ranks; on a machine without CUDA, on the CPU over gloo.

    Raises UsageError for a precision that the machine or the engine does not support, and where
    another engine would train than the one that the launcher's file names.
    """
    if precision == "fp16" and not torch.cuda.is_available():
        raise UsageError("precision fp16 needs a GPU: choose bf16 or fp32")
    default = engine_class(DEFAULT_ENGINE)
    # A dict, because several names share a class.
    classes = list(dict.fromkeys(engine_class(name) for name in ENGINES))
    requested = next((kind for kind in classes if kind.is_requested()), default)
    handlers = requested.before_start(precision)
    accelerator = Accelerator(
        mixed_precision=requested.mixed_precision(precision),
        log_with=list(trackers) or None,
        project_dir=folder,
        # Otherwise an environment variable decides.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=handlers,
    )
    started = accelerator.distributed_type.value
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    if several and requested is not default and started not in requested.distributed_types:
        raise UsageError(
            f"accelerate's configuration names another engine, but {started} would train"
        )
    # The requested engine comes first: another one may train under the same type of accelerate.
    for kind in (requested, *classes):
        if started in kind.distributed_types:
            return kind(accelerator, precision)
    raise UsageError(f"{started} is not supported: use {COMMAND.format(world='N')}")


def leave() -> None:
    """Leave the other ranks; every rank calls it, once, when its work has succeeded.

    A rank that ends while another one still exchanges data with it can abort that one, or abort
    itself in a thread of gloo that outlives the interpreter. So all ranks wait for each other, and
    each closes its connections before it exits. After an error there is no call: the others may
    never come, and the launcher ends them.
    """
    if not dist.is_initialized():
        return
    # A model wrapped by DDP holds the process group alive, and is part of reference cycles.
    gc.collect()
    PartialState().wait_for_everyone()
    dist.destroy_process_group()
