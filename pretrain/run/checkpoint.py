"""Write and read checkpoints, which are either complete or not there.

A checkpoint is written to a temporary folder, hashed, and renamed; the file `latest` changes last.
The file `best` names the checkpoint with the best validation metric, which is never deleted. A
folder `step-00001000` holds `model/` (for `from_pretrained`, with tokenizer and image processor),
`ema/` (the same with averaged weights, if there are any), the optimizer's state, `trainer.json`
(step, data position, ranks and engine) and `COMMITTED.json` (size and hash of every other file).
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from data_pipeline.errors import DataError, IncompleteError, UsageError
from data_pipeline.files import sha256, sync, write_json, write_whole
from pretrain.model import GLSCLModel, GLSCLProcessor
from pretrain.parallel.gather import gather_counts

# Only for types: evaluation and export read checkpoints too, without accelerate or DeepSpeed.
if TYPE_CHECKING:
    from pretrain.parallel.engines import Engine

COMMITTED = "COMMITTED.json"
BEST = "best"
OPTIMIZER = "optimizer.safetensors"
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Best:
    """The step with the highest value of a validation metric."""

    step: int
    metric: str
    value: float
    split: str | None = None
    """The validation data: digest and limit; None if not recorded."""


@dataclass(frozen=True)
class Position:
    """The position of a run: steps made, samples consumed, and the state of the data order.

    `world` and `engine` are the number of ranks and the engine that wrote the checkpoint.
    """

    step: int
    samples: int
    data: dict[str, Any]
    world: int
    engine: str
    scaler: dict[str, Any] | None = None
    """State of the loss scaler of fp16."""
    best: Best | None = None


def save_checkpoint(
    checkpoints: Path,
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    position: Position,
    keep: int,
) -> Path:
    """Write a checkpoint, then delete all but the newest `keep` and the best.

    All ranks must call it; rank 0 commits. After an error, such as a full disk, earlier checkpoints
    and `latest` are unchanged.
    """
    main = engine.accelerator.is_main_process
    final = checkpoints / step_name(position.step)
    beside = checkpoints / f".{final.name}.tmp"

    # Rank 0 makes the folder before any rank writes into it (DeepSpeed writes on every rank).
    def prepare() -> None:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)

    def commit() -> None:
        for name in models if engine.averaged else ("model",):
            engine.model.save_pretrained(beside / name, state_dict=models[name])
            GLSCLProcessor.build(engine.model.config, tokenizer).save_pretrained(beside / name)
        if engine.portable:  # an empty file if every update so far was skipped
            save_file(optimizer, beside / OPTIMIZER)
        _commit(beside, final, position)
        # The rename must be on the disk before `best` and `latest` name the folder.
        sync(checkpoints)
        mark_best(checkpoints, position.best)
        write_whole(checkpoints / "latest", final.name + "\n")

    try:
        _on_all_ranks(prepare if main else None)
        optimizer: dict[str, Any] = _on_all_ranks(lambda: engine.save_optimizer(beside))
        # Gathering weights is a collective call under FSDP2 and ZeRO: all ranks must make it.
        weights = engine.weights()
        models = {"model": weights, "ema": weights | engine.averaged_weights()}
        _on_all_ranks(commit if main else None)
    except BaseException:
        # BaseException, because Ctrl-C must not leave a half-written folder either.
        if main:
            shutil.rmtree(beside, ignore_errors=True)
        raise
    if main:
        best = None if position.best is None else step_name(position.best.step)
        others = [folder for folder in _steps(checkpoints) if folder != final]
        for old in others[keep - 1 :]:
            # Errors are ignored: a folder that cannot be removed must not stop the run.
            if old.name != best:
                shutil.rmtree(old, ignore_errors=True)
    return final


def step_name(step: int) -> str:
    """Return the folder name of the checkpoint of a step."""
    return f"step-{step:08d}"


def mark_best(checkpoints: Path, best: Best | None) -> None:
    """Write the JSON file `best` (checkpoint, metric, value), or remove it for None."""
    if best is None:
        (checkpoints / BEST).unlink(missing_ok=True)
    else:
        record = {"checkpoint": step_name(best.step), "metric": best.metric, "value": best.value}
        write_json(checkpoints / BEST, record)


def _on_all_ranks(work: Callable[[], Any] | None) -> Any:
    """Do this rank's work, if any, and wait for the other ranks; if one failed, all raise."""
    error: BaseException | None = None
    result = None
    try:
        result = work() if work else None
    except SafetensorError as failure:  # safetensors' error for a full disk
        error = IncompleteError(
            f"cannot write a checkpoint: {failure}: make room and run the same command again"
        )
    except BaseException as failure:
        # Raised below: the other ranks wait in the same gather, and must learn of it first.
        error = failure
    # Every rank reaches this gather, whatever happened before, so that none waits forever.
    [failed] = gather_counts([int(error is not None)])
    if error is not None:
        raise error
    if any(failed):
        raise IncompleteError(
            f"rank {failed.index(1)} could not write its part of a checkpoint: see its message"
        )
    return result


def _commit(beside: Path, final: Path, position: Position) -> None:
    """Complete the temporary folder, hash every file in it, and rename it."""
    write_json(beside / "trainer.json", dataclasses.asdict(position))
    # Every file must be on the disk before COMMITTED.json says so.
    content = sorted(beside.rglob("*"))
    for path in [*content, beside]:
        sync(path)
    listed = {}
    for path in content:
        if path.is_file():
            size, digest = path.stat().st_size, sha256(path)
            listed[str(path.relative_to(beside))] = {"bytes": size, "sha256": digest}
    write_json(beside / COMMITTED, listed)
    # A damaged checkpoint of the same step may be there, from before the run went back.
    shutil.rmtree(final, ignore_errors=True)
    beside.rename(final)


def load_checkpoint(folder: Path, engine: Engine, averaged: bool = False) -> Position:
    """Restore weights and optimizer state bit for bit, and return the position of the run.

    With `averaged`, the averaged weights are restored too. Raises UsageError for a checkpoint in
    DeepSpeed's own format if the engine or the number of ranks differs.
    """
    from pretrain.parallel.engines import is_portable

    saved = json.loads((folder / "trainer.json").read_text())
    if saved.get("best"):
        saved["best"] = Best(**saved["best"])
    position = Position(**saved)
    here = engine.name, engine.accelerator.num_processes
    portable = is_portable(position.engine)
    if portable != engine.portable or (not portable and (position.engine, position.world) != here):
        raise UsageError(
            f"{folder} was written by {position.engine} on {position.world} ranks and cannot be "
            f"resumed by {here[0]} on {here[1]}: launch as before, or start another run folder "
            "from its weights with --init-from"
        )
    weights = load_file(folder / "model" / "model.safetensors") if portable else {}
    engine.load(weights, load_file(folder / OPTIMIZER) if portable else {}, folder)
    if position.scaler and engine.accelerator.scaler is not None:
        engine.accelerator.scaler.load_state_dict(position.scaler)
    if averaged and (folder / "ema").is_dir():
        engine.load_average(load_file(folder / "ema" / "model.safetensors"))
    return position


def set_aside(checkpoints: Path, step: int) -> None:
    """Rename checkpoints after `step` to `superseded-...`, which a run that goes back ignores."""
    for folder in _steps(checkpoints):
        if int(folder.name.removeprefix("step-")) > step:
            aside = checkpoints / f"superseded-{folder.name}"
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
    for unfinished in checkpoints.glob(".step-*.tmp"):
        shutil.rmtree(unfinished, ignore_errors=True)


def find_checkpoint(checkpoints: Path, warn: Callable[[str], None]) -> Path | None:
    """Return the newest complete checkpoint; warn about each damaged one that is passed over.

    Returns None if there is no checkpoint. Raises DataError if there are some, but all are damaged.
    """
    problems = []
    for folder in _steps(checkpoints):
        problem = check(folder)
        if problem is None:
            return folder
        problems.append(f"{folder.name}: {problem}")
        warn(f"checkpoint {folder} is passed over: {problem}")
    if problems:
        raise DataError(
            f"{checkpoints} holds no whole checkpoint ({'; '.join(problems)}); "
            "move it away to start from the beginning"
        )
    return None


def check(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint folder; None if it is complete."""
    try:
        listed = json.loads((folder / COMMITTED).read_text())
    except (OSError, ValueError):
        return f"no readable {COMMITTED}"
    for name, expected in listed.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        # The size first: it is the cheaper check, and says more about a torn file.
        if path.stat().st_size != expected["bytes"]:
            return f"{name} has {path.stat().st_size:,} bytes instead of {expected['bytes']:,}"
        if sha256(path) != expected["sha256"]:
            return f"{name} is damaged (its hash is not what was written)"
    return None


def model_folder(path: str | Path) -> Path:
    """Return the model folder of a run folder, a checkpoint, or a model folder.

    For a run folder, that is the model of the best checkpoint if there is one, else of the newest.
    Damaged checkpoints are passed over with a message. Raises UsageError for a path that is missing
    or a file, DataError if there is no complete model.
    """
    path = Path(path)
    if path.is_file():
        raise UsageError(f"{path} is a file: run `glscl convert {path} OUT`, then name OUT/full")
    if not path.is_dir():
        raise UsageError(f"no model at {path}: no such folder")
    if (path / "config.json").is_file():
        # The model folder of a checkpoint: its hashes are in the parent folder.
        if (path.resolve().parent / COMMITTED).is_file():
            _refuse_damaged(path.resolve().parent)
        return path
    if (path / "model" / "config.json").is_file():
        _refuse_damaged(path)
        return path / "model"

    def warn(message: str) -> None:
        print(message, file=sys.stderr)

    checkpoints = path / "checkpoints"
    checkpoint = _best_checkpoint(checkpoints, warn) or find_checkpoint(checkpoints, warn)
    if checkpoint is None:
        hint = f": name {path / 'full'}" if (path / "full" / "config.json").is_file() else ""
        raise DataError(f"{path} holds neither a model nor a checkpoint{hint}")
    return checkpoint / "model"


def load_model(path: str | Path) -> GLSCLModel:
    """Load the model of a run folder, a checkpoint, a model folder or an authors' checkpoint file.

    It is in eval mode, and its `name_or_path` is the model folder or the file. Raises UsageError
    and DataError as `model_folder` does, and DataError for weights that are damaged or incomplete.
    """
    if Path(path).is_file():
        return load_authors(Path(path))
    folder = model_folder(path)
    # Progress bars of transformers would mix with the lines of the command.
    transformers_logging.disable_progress_bar()
    try:
        model, loading = GLSCLModel.from_pretrained(folder, output_loading_info=True)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise DataError(
            f"the model in {folder} cannot be loaded: {' '.join(str(error).split())}"
        ) from error
    if missing := sorted(loading["missing_keys"]):
        raise DataError(
            f"the model in {folder} lacks {len(missing)} weights, the first is {missing[0]}"
        )
    return model


def load_authors(file: Path) -> GLSCLModel:
    """Load a checkpoint file of the authors' release, in eval mode.

    The model's `name_or_path` is the file. Raises UsageError if there is no such file, DataError if
    it is damaged or not such a checkpoint.
    """
    if not file.is_file():
        problem = "a folder, not a file" if file.is_dir() else "no such file"
        raise UsageError(f"no checkpoint at {file}: {problem}")
    try:
        model = GLSCLModel.from_authors(str(file))
    except ValueError as error:
        raise DataError(" ".join(str(error).split())) from error
    model.name_or_path = str(file)
    return model


def _best_checkpoint(checkpoints: Path, warn: Callable[[str], None]) -> Path | None:
    """Return the checkpoint that the file `best` names, if both are there and it is complete."""
    try:
        # Only the last part of the name, so that the file cannot lead outside of the folder.
        folder = checkpoints / Path(json.loads((checkpoints / BEST).read_text())["checkpoint"]).name
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        warn(f"{checkpoints / BEST} cannot be read: using the newest checkpoint")
        return None
    if problem := check(folder):
        warn(f"the best checkpoint {folder} is passed over: {problem}")
        return None
    return folder


def _refuse_damaged(checkpoint: Path) -> None:
    if problem := check(checkpoint):
        raise DataError(f"checkpoint {checkpoint}: {problem}")


def _steps(checkpoints: Path) -> list[Path]:
    if not checkpoints.is_dir():
        return []
    return sorted((p for p in checkpoints.iterdir() if _NAME.fullmatch(p.name)), reverse=True)
