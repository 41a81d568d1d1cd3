"""A tiny model goes from pictures to a report by the commands alone, each in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def _glscl(*arguments: object) -> dict:
    """Run a command with `--json` (but for pretrain, which has none) and return its last line."""
    words = [str(argument) for argument in arguments] + ["--json"] * (arguments[0] != "pretrain")
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return {} if arguments[0] == "pretrain" else json.loads(done.stdout.splitlines()[-1])


def _configuration(folder: Path) -> Path:
    tower = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    fusion = {
        "hidden_size": 64,
        "fusion_layers": 1,
        "fusion_heads": 2,
        "fusion_intermediate_size": 64,
    }
    settings = {
        "run": str(folder / "run"),
        "steps": 4,
        "precision": "fp32",
        "batch": {"image": 8},
        "data": {
            "train": [{"path": str(folder / "data/train")}],
            "tokenizer": str(folder / "tokenizer"),
            "max_text_length": 48,
            "workers": 0,
        },
        "model": {
            "vision": tower | {"patch_size": 16, "image_size": 48},
            "text": tower | {"max_position_embeddings": 56},
            "fusion": fusion | {"projection_dim": 16},
        },
        "checkpoint": {"every": 2},
        "log": {"every": 1},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.mark.slow
def test_commands_lead_from_pictures_to_a_report(tmp_path: Path) -> None:
    data, run, result, exported = (
        tmp_path / name for name in ("data", "run", "result", "exported")
    )
    counts = ("--train", 48, "--val", 0, "--test", 12, "--novel", 0, "--size", 48)
    _glscl("data", "scenes", data, *counts)
    _glscl(
        "data", "tokenizer", data / "train", "--out", tmp_path / "tokenizer", "--vocab-size", 600
    )
    _glscl("pretrain", _configuration(tmp_path), "--optimizer.lr", 0.001, "--seed=3")
    assert json.loads((run / "status.json").read_text())["state"] == "complete"
    assert yaml.safe_load((run / "config.yaml").read_text())["optimizer"]["lr"] == 0.001

    where = ("--model", run, "--data", data / "test", "--out", result)
    measured = _glscl("eval", "retrieval", *where, "--limit", 10, "--rerank-k", 4, "--score", "itm")
    assert measured == json.loads((result / "result.json").read_text())
    assert measured["data"]["images"] == 10

    assert _glscl("export", run, exported, "--check") == {"out": str(exported), "checked": True}
    assert (exported / "vision/model.safetensors").is_file() and (
        exported / "text/model.safetensors"
    ).is_file()

    _glscl("report", result, "--out", tmp_path / "report.html", "--run", run)
    page = (tmp_path / "report.html").read_text()
    assert "text_to_image" in page or "text → image" in page
    assert "http://" not in page.replace("http://www.w3.org", "") and "<script src" not in page
