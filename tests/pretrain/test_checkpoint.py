"""Checkpoints are complete or not there, whatever happens while they are written."""

import json
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from data_pipeline.errors import DataError, IncompleteError, UsageError
from data_pipeline.text import Tokenizer
from pretrain.build import build_model
from pretrain.optim import build_optimizer
from pretrain.parallel.engines import Engine
from pretrain.parallel.selfcheck import start
from pretrain.run.checkpoint import (
    Position,
    find_checkpoint,
    load_checkpoint,
    load_model,
    model_folder,
    save_checkpoint,
)
from pretrain.task import PretrainTask, TaskModel


def engine_of(config, tokenizer) -> Engine:
    model = build_model(config.model, Tokenizer.load(tokenizer), config.data.max_text_length)
    engine = start("fp32", (), ".", None)
    engine.prepare(
        TaskModel(PretrainTask(), model), model, build_optimizer(model, config.optimizer), 1, None
    )
    return engine


@pytest.fixture
def trained(config, tokenizer):
    engine = engine_of(config, tokenizer)
    for parameter in engine.model.parameters():
        parameter.grad = torch.randn_like(parameter) if parameter.requires_grad else None
    assert not engine.update(finite=True)
    return engine, AutoTokenizer.from_pretrained(tokenizer)


def position(step: int) -> Position:
    return Position(step, step * 8, {"draw": step}, 1, "ddp")


def save(folder: Path, trained, step: int) -> Path:
    engine, tokenizer = trained
    return save_checkpoint(folder, engine, tokenizer, position(step), keep=2)


def test_weights_and_optimizer_state_are_restored_bit_for_bit(tmp_path, trained, config, tokenizer):
    engine, _ = trained
    folder = save(tmp_path, trained, 3)
    torch.manual_seed(9)
    other = engine_of(config, tokenizer)
    assert load_checkpoint(folder, other) == position(3)
    for (name, ours), theirs in zip(
        engine.model.named_parameters(), other.model.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs), name
        for key, value in engine.optimizer.optimizer.state[ours].items():
            assert torch.equal(value, other.optimizer.optimizer.state[theirs][key]), (name, key)


def test_a_checkpoint_of_another_engine_is_refused_with_advice(tmp_path, trained):
    folder = save(tmp_path, trained, 1)
    trainer = json.loads((folder / "trainer.json").read_text())
    (folder / "trainer.json").write_text(json.dumps(trainer | {"engine": "zero2", "world": 2}))
    with pytest.raises(
        UsageError, match=r"written by zero2 on 2 ranks .* resumed by ddp on 1: .*--init-from"
    ):
        load_checkpoint(folder, trained[0])


@pytest.fixture
def limit_file_size():
    """Make writes fail past a number of bytes per file, as on a full disk, until the test ends."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("file", "error"),
    [
        ("model/config.json", OSError),
        ("model/model.safetensors", IncompleteError),
        ("optimizer.safetensors", IncompleteError),
    ],
)
def test_a_file_that_cannot_be_written_leaves_earlier_checkpoints_unchanged(
    tmp_path, trained, limit_file_size, file, error
):
    size = (save(tmp_path, trained, 1) / file).stat().st_size
    limit_file_size(size - 1)
    with pytest.raises(error):
        save(tmp_path, trained, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000001"]
    assert (tmp_path / "latest").read_text() == "step-00000001\n"
    assert find_checkpoint(tmp_path, print) == tmp_path / "step-00000001"


def test_a_checkpoint_that_cannot_get_its_name_leaves_earlier_ones_unchanged(tmp_path, trained):
    save(tmp_path, trained, 1)
    in_the_way = tmp_path / "step-00000002"
    in_the_way.write_text("a folder cannot replace a file")
    with pytest.raises(NotADirectoryError):
        save(tmp_path, trained, 2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["latest", "step-00000001", "step-00000002"] and in_the_way.is_file()
    assert (tmp_path / "latest").read_text() == "step-00000001\n"
    assert find_checkpoint(tmp_path, print) == tmp_path / "step-00000001"


def test_a_latest_that_cannot_be_replaced_does_not_hide_the_new_checkpoint(tmp_path, trained):
    (tmp_path / "latest").mkdir()
    with pytest.raises(IsADirectoryError):
        save(tmp_path, trained, 1)
    assert find_checkpoint(tmp_path, print) == tmp_path / "step-00000001"


@pytest.mark.parametrize("damage", ["shorter", "other bytes", "missing", "uncommitted"])
def test_a_damaged_checkpoint_is_passed_over_with_a_message(tmp_path, trained, damage):
    save(tmp_path, trained, 1)
    newest = save(tmp_path, trained, 2)
    file = newest / "model" / "model.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "shorter":
        file.write_bytes(content[:-1])
    elif damage == "other bytes":
        content[-1] ^= 1
        file.write_bytes(content)
    elif damage == "missing":
        file.unlink()
    else:
        (newest / "COMMITTED.json").unlink()
    warnings: list[str] = []
    assert find_checkpoint(tmp_path, warnings.append) == tmp_path / "step-00000001"
    [warning] = warnings
    assert "step-00000002" in warning and "is passed over" in warning


def test_model_folder_says_what_is_missing(tmp_path, trained):
    with pytest.raises(UsageError, match="no such folder"):
        model_folder(tmp_path / "nothing")
    with pytest.raises(DataError, match="neither a model nor a checkpoint"):
        model_folder(tmp_path)
    folder = save(tmp_path / "checkpoints", trained, 1)
    assert (
        model_folder(tmp_path)
        == model_folder(folder)
        == model_folder(folder / "model")
        == folder / "model"
    )
    (folder / "trainer.json").write_text("{}")
    for path in (folder, folder / "model"):
        with pytest.raises(DataError, match="trainer.json"):
            model_folder(path)


def test_a_model_is_loaded_from_any_folder_of_a_run_and_names_its_own_folder(tmp_path, trained):
    folder = save(tmp_path / "checkpoints", trained, 1)
    for path in (tmp_path, folder, folder / "model"):
        loaded = load_model(path)
        assert Path(loaded.name_or_path) == folder / "model" and not loaded.training
    for ours, theirs in zip(trained[0].model.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("file", "damage", "named"),
    [
        ("model.safetensors", lambda path: path.unlink(), "cannot be loaded"),
        (
            "model.safetensors",
            lambda path: path.write_bytes(path.read_bytes()[:-99]),
            "cannot be loaded",
        ),
        (
            "model.safetensors",
            lambda path: _without(path, "temperature"),
            "lacks 1 weights, the first is temperature",
        ),
        ("config.json", lambda path: path.write_text("{"), "cannot be loaded"),
        (
            "config.json",
            lambda path: path.write_text(path.read_text().replace(": 32", ": 48")),
            "cannot be loaded",
        ),
    ],
    ids=["missing", "cut", "incomplete", "not JSON", "other sizes"],
)
def test_a_damaged_model_is_an_error_of_one_line(tmp_path, trained, file, damage, named):
    folder = save(tmp_path / "checkpoints", trained, 1).rename(tmp_path / "copied")
    (folder / "COMMITTED.json").unlink()
    damage(folder / "model" / file)
    with pytest.raises(DataError, match=f"{folder / 'model'} {named}") as error:
        load_model(folder / "model")
    assert "\n" not in str(error.value)


def _without(path: Path, name: str) -> None:
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})
