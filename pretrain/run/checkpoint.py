"""Checkpoints that are whole or not there: written beside, hashed, renamed; `latest` moves last.

`best`, where a validation metric is the aim, names the checkpoint that reached most of it, which is
never deleted. A folder `step-00001000` holds `model/` (what `from_pretrained` loads, tokenizer and
image processor included), `ema/` (the same of the averaged weights, where there are some), the
optimiser's state, `trainer.json` (step, data position, ranks and engine) and `COMMITTED.json` (size
and hash of every other file).
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

if (
    TYPE_CHECKING
):  # evaluation and export read checkpoints too, and need neither accelerate nor DeepSpeed
    from pretrain.parallel.engines import Engine

COMMITTED = "COMMITTED.json"
BEST = "best"
OPTIMIZER = "optimizer.safetensors"
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Best:
    """The step that reached the highest value of a validation metric."""

    step: int
    metric: str
    value: float
    split: str | None = None
    """What was validated: the data's digest and the limit; None: not recorded."""


@dataclass(frozen=True)
class Position:
    """Where a run stands: steps made, samples consumed, the order's state, and the ranks and engine that saved it."""

    step: int
    samples: int
    data: dict[str, Any]
    world: int
    engine: str
    scaler: dict[str, Any] | None = None
    """State of fp16's loss scaler."""
    best: Best | None = None


def save_checkpoint(
    checkpoints: Path,
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    position: Position,
    keep: int,
) -> Path:
    """Write one checkpoint, then delete all but the newest `keep` and the best; called on all ranks, rank 0 commits.

    An OSError (a full disk) leaves earlier checkpoints and `latest` as they were.
    """
    main = engine.accelerator.is_main_process
    final = checkpoints / step_name(position.step)
    beside = checkpoints / f".{final.name}.tmp"

    def prepare() -> None:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)

    def commit() -> None:
        for name in models if engine.averaged else ("model",):
            engine.model.save_pretrained(beside / name, state_dict=models[name])
            GLSCLProcessor.build(engine.model.config, tokenizer).save_pretrained(beside / name)
        if engine.portable:  # empty where every update so far was skipped
            save_file(optimizer, beside / OPTIMIZER)
        _commit(beside, final, position)
        sync(checkpoints)
        mark_best(checkpoints, position.best)
        write_whole(checkpoints / "latest", final.name + "\n")

    try:
        _on_all_ranks(prepare if main else None)
        optimizer: dict[str, Any] = _on_all_ranks(lambda: engine.save_optimizer(beside))
        weights = engine.weights()
        models = {"model": weights, "ema": weights | engine.averaged_weights()}
        _on_all_ranks(commit if main else None)
    except BaseException:
        if main:
            shutil.rmtree(beside, ignore_errors=True)
        raise
    if main:
        best = None if position.best is None else step_name(position.best.step)
        for old in [folder for folder in _steps(checkpoints) if folder != final][keep - 1 :]:
            if old.name != best:
                shutil.rmtree(old, ignore_errors=True)
    return final


def step_name(step: int) -> str:
    """Name the folder of the checkpoint of a step."""
    return f"step-{step:08d}"


def mark_best(checkpoints: Path, best: Best | None) -> None:
    """Write the file `best`, JSON with the name of the checkpoint, the metric and its value; remove it for None."""
    if best is None:
        (checkpoints / BEST).unlink(missing_ok=True)
    else:
        found = {"checkpoint": step_name(best.step), "metric": best.metric, "value": best.value}
        write_json(checkpoints / BEST, found)


def _on_all_ranks(work: Callable[[], Any] | None) -> Any:
    """Do this rank's part, if it has one, and wait for the others; where one of them failed, all raise."""
    error: BaseException | None = None
    result = None
    try:
        result = work() if work else None
    except SafetensorError as failure:  # a full disk, as safetensors reports it
        error = IncompleteError(
            f"cannot write a checkpoint: {failure}: make room and run the same command again"
        )
    except BaseException as failure:
        error = failure
    [failed] = gather_counts([int(error is not None)])
    if error is not None:
        raise error
    if any(failed):
        raise IncompleteError(
            f"rank {failed.index(1)} could not write its part of a checkpoint: see what it said"
        )
    return result


def _commit(beside: Path, final: Path, position: Position) -> None:
    """Complete the folder, hash everything in it, and give it its name."""
    write_json(beside / "trainer.json", dataclasses.asdict(position))
    found = sorted(beside.rglob("*"))
    for path in [*found, beside]:
        sync(path)
    files = [path for path in found if path.is_file()]
    listed = {
        str(p.relative_to(beside)): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files
    }
    write_json(beside / COMMITTED, listed)
    shutil.rmtree(final, ignore_errors=True)
    beside.rename(final)


def load_checkpoint(folder: Path, engine: Engine, averaged: bool = False) -> Position:
    """Put weights and optimiser state back, bit for bit, and say where the run stood; with `averaged` the average too.

    Raises UsageError for a checkpoint of DeepSpeed's own files that another engine or number of
    ranks would have to read.
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
            f"{folder} was written by {position.engine} on {position.world} ranks and cannot be resumed by {here[0]} "
            f"on {here[1]}: launch as then, or take its weights alone with --init-from into another run folder"
        )
    weights = load_file(folder / "model" / "model.safetensors") if portable else {}
    engine.load(weights, load_file(folder / OPTIMIZER) if portable else {}, folder)
    if position.scaler and engine.accelerator.scaler is not None:
        engine.accelerator.scaler.load_state_dict(position.scaler)
    if averaged and (folder / "ema").is_dir():
        engine.load_average(load_file(folder / "ema" / "model.safetensors"))
    return position


def set_aside(checkpoints: Path, step: int) -> None:
    """Rename checkpoints past `step` to `superseded-...`: a run that goes back must not find them again."""
    for folder in _steps(checkpoints):
        if int(folder.name.removeprefix("step-")) > step:
            aside = checkpoints / f"superseded-{folder.name}"
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
    for unfinished in checkpoints.glob(".step-*.tmp"):
        shutil.rmtree(unfinished, ignore_errors=True)


def find_checkpoint(checkpoints: Path, warn: Callable[[str], None]) -> Path | None:
    """Newest checkpoint whose every byte is as committed; a torn or damaged one is passed over with a message.

    None when there is no checkpoint; DataError when there are some and none is whole.
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
            f"{checkpoints} holds no whole checkpoint ({'; '.join(problems)}); move it away to start from the beginning"
        )
    return None


def check(folder: Path) -> str | None:
    """Say what is wrong with a checkpoint folder; None when it is whole."""
    try:
        listed = json.loads((folder / COMMITTED).read_text())
    except (OSError, ValueError):
        return f"no readable {COMMITTED}"
    for name, expected in listed.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{name} has {path.stat().st_size:,} bytes instead of {expected['bytes']:,}"
        if sha256(path) != expected["sha256"]:
            return f"{name} is damaged (its hash is not what was written)"
    return None


def model_folder(path: str | Path) -> Path:
    """Folder that `from_pretrained` loads, of a run folder, a checkpoint, or such a folder itself.

    Of a run folder it is the best checkpoint where the run has one, else the newest; one that is
    damaged is passed over with a message. Raises UsageError when the path is not there or a file,
    DataError when it holds no whole model.
    """
    path = Path(path)
    if path.is_file():
        raise UsageError(
            f"{path} is a file: `glscl convert {path} OUT` makes a folder of it, then name OUT/full"
        )
    if not path.is_dir():
        raise UsageError(f"no model at {path}: no such folder")
    if (path / "config.json").is_file():
        if (path.resolve().parent / COMMITTED).is_file():
            _refuse_damaged(path.resolve().parent)
        return path
    if (path / "model" / "config.json").is_file():
        _refuse_damaged(path)
        return path / "model"

    def warn(message: str) -> None:
        print(message, file=sys.stderr)

    found = _best_checkpoint(path / "checkpoints", warn) or find_checkpoint(
        path / "checkpoints", warn
    )
    if found is None:
        inside = f": name {path / 'full'}" if (path / "full" / "config.json").is_file() else ""
        raise DataError(f"{path} holds neither a model nor a checkpoint{inside}")
    return found / "model"


def load_model(path: str | Path) -> GLSCLModel:
    """Model of a run folder, a checkpoint, a model folder or an authors' checkpoint file, in eval mode.

    Its `name_or_path` is the model folder, or that file. Raises UsageError and DataError as
    `model_folder` does, and DataError for weights that cannot be read or lack some.
    """
    if Path(path).is_file():
        return load_authors(Path(path))
    folder = model_folder(path)
    transformers_logging.disable_progress_bar()
    try:
        model, found = GLSCLModel.from_pretrained(folder, output_loading_info=True)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise DataError(
            f"the model in {folder} cannot be loaded: {' '.join(str(error).split())}"
        ) from error
    if missing := sorted(found["missing_keys"]):
        raise DataError(
            f"the model in {folder} lacks {len(missing)} weights, the first is {missing[0]}"
        )
    return model


def load_authors(file: Path) -> GLSCLModel:
    """Model of a checkpoint file of the authors' release, in eval mode; its `name_or_path` is the file.

    Raises UsageError when there is no such file, DataError when it is damaged or no such
    checkpoint.
    """
    if not file.is_file():
        raise UsageError(
            f"no checkpoint at {file}: {'a folder, not a file' if file.is_dir() else 'no such file'}"
        )
    try:
        model = GLSCLModel.from_authors(str(file))
    except ValueError as error:
        raise DataError(" ".join(str(error).split())) from error
    model.name_or_path = str(file)
    return model


def _best_checkpoint(checkpoints: Path, warn: Callable[[str], None]) -> Path | None:
    """Checkpoint that `best` names, where there is such a file and the checkpoint is whole."""
    try:
        folder = checkpoints / Path(json.loads((checkpoints / BEST).read_text())["checkpoint"]).name
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        warn(f"{checkpoints / BEST} cannot be read: the newest checkpoint is taken")
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
