"""Where a run starts from: which checkpoint, whether it fits the run, and what was best so far.

Rank 0 looks at the disk and decides; the others learn the decision, so that all ranks load the same
checkpoint even on file systems that show them different folders for a moment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from accelerate.utils import broadcast_object_list

from data_pipeline.errors import DataError, UsageError
from data_pipeline.loader import Loader
from data_pipeline.sample import Kind
from data_pipeline.shards.manifest import Manifest

from .config import TrainingConfig
from .protocols import Task
from .run.checkpoint import Best, Position, check, find_checkpoint, step_name
from .run.folder import RunFolder


def choose_checkpoint(
    run: RunFolder | None, resume: str, say: Callable[[str], None]
) -> Path | None:
    """Choose the checkpoint to continue from; None: start fresh. Called on all ranks.

    `run` is None except on rank 0, which decides. Raises UsageError for a used folder that must not
    be resumed and for a checkpoint of another run, DataError for a damaged one.
    """
    decision: list[str | None] = [None]
    if run:
        if resume == "never" and run.used:
            raise UsageError(f"{run.path} was used before; --resume never needs an unused folder")
        if resume == "auto":
            newest = find_checkpoint(run.checkpoints, say)
            decision = [str(newest) if newest else None]
        elif resume != "never":
            decision = [str(_named_checkpoint(run, Path(resume)))]
    # Every rank comes here, also those that decide nothing: a broadcast waits for all of them.
    path = broadcast_object_list(decision)[0]
    return Path(path) if path else None


def check_position(
    position: Position,
    checkpoint: Path,
    loaders: Mapping[Kind, Loader],
    config: TrainingConfig,
) -> None:
    """Raise UsageError if the run would not read the data that the checkpoint's next step needs."""
    if position.data.keys() != loaders.keys():
        kinds = " and ".join(position.data) or "nothing"
        raise UsageError(
            f"{checkpoint} was trained on {kinds}, this run on {' and '.join(loaders)}"
        )
    for kind, loader in loaders.items():
        loader.check_state(position.data[kind])
    # The order is counted in samples. Under another batch size the same step would begin elsewhere
    # in it.
    if position.samples != position.step * config.batch.total:
        raise UsageError(
            f"{checkpoint} was written with another batch size, which cannot change on resume"
        )


def changed_ranks_warning(
    position: Position, world: int, config: TrainingConfig, task: Task
) -> str | None:
    """Describe what a new number of ranks changes in the losses; None: nothing."""
    if position.world == world:
        return None
    # Exact accumulation compares all samples of a step, however the ranks divide them.
    plain = config.micro_batches > 1 and config.accumulation == "plain" and task.contrasts
    if not plain and not task.depends_on_ranks:
        return None
    return (
        f"warning: {world} ranks instead of {position.world}: with plain accumulation, negatives "
        "of the rank or published gradients, the losses from here on are not those that the same "
        "samples would have given before"
    )


def note_improvement(
    position: Position, metrics: Mapping[str, float], task: Task, config: TrainingConfig
) -> tuple[Position, bool]:
    """Record the task's best validation value so far; return whether it is a new one.

    Every rank has the same metrics and so returns the same.
    """
    name = f"validation/{task.best}"
    if name not in metrics:
        return position, False
    # On a tie the earlier checkpoint stays the best one.
    if position.best is not None and metrics[name] <= position.best.value:
        return position, False
    best = Best(position.step, name, metrics[name], _validated_split(config))
    return replace(position, best=best), True


def forget_lost_best(position: Position, checkpoints: Path, config: TrainingConfig) -> Position:
    """Forget a best checkpoint that was deleted or measured on another validation split.

    It is gone when a run goes back to an earlier step. Rank 0 looks for all ranks.
    """
    best = position.best
    is_there = best is not None and (checkpoints / step_name(best.step)).is_dir()
    if best is not None and best.split is not None:
        # A run without validation measures nothing that could be compared with the old value.
        is_there &= _validated_split(config) in (None, best.split)
    return position if broadcast_object_list([is_there])[0] else replace(position, best=None)


def _named_checkpoint(run: RunFolder, folder: Path) -> Path:
    if folder.resolve().parent != run.checkpoints.resolve():
        raise UsageError(
            f"--resume {folder} is not a checkpoint of {run.path}; for another run's weights, "
            "use --init-from"
        )
    if problem := check(folder):
        raise DataError(f"--resume {folder}: {problem}")
    return folder


def _validated_split(config: TrainingConfig) -> str | None:
    """Identify the validation data: values measured on different data cannot be compared."""
    validation = config.validation
    if validation is None:
        return None
    # The limit too, because the first samples of a split are another measurement than all of them.
    return f"{Manifest.load(validation.path).digest}:{validation.limit}"
