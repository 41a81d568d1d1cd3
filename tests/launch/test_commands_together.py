"""A tiny model goes from images to a report by commands alone."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import yaml

from launch.cli import main


def _glscl(*arguments: object) -> list[str]:
    """Run a command in this process and return the lines it prints."""
    with redirect_stdout(io.StringIO()) as stdout:
        exit_code = main([str(argument) for argument in arguments])
    assert exit_code == 0
    return stdout.getvalue().splitlines()


def _result(*arguments: object) -> dict:
    """Run a command and return its last line, which is JSON."""
    return json.loads(_glscl(*arguments, "--json")[-1])


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
def test_commands_lead_from_images_to_a_report(tmp_path: Path) -> None:
    data, run, tokenizer = tmp_path / "data", tmp_path / "run", tmp_path / "tokenizer"
    counts = ("--train", 48, "--val", 0, "--test", 12, "--novel", 0, "--size", 48)
    _result("data", "scenes", data, *counts)
    _result("data", "tokenizer", data / "train", "--out", tokenizer, "--vocab-size", 600)
    _glscl("pretrain", _configuration(tmp_path), "--optimizer.lr", 0.001, "--seed=3")
    assert json.loads((run / "status.json").read_text())["state"] == "complete"
    assert yaml.safe_load((run / "config.yaml").read_text())["optimizer"]["lr"] == 0.001

    result = tmp_path / "result"
    options = ("--model", run, "--data", data / "test", "--out", result, "--limit", 10)
    measured = _result("eval", "retrieval", *options, "--rerank-k", 4, "--score", "itm")
    assert measured == json.loads((result / "result.json").read_text())
    assert measured["data"]["images"] == 10

    exported = tmp_path / "exported"
    made = _result("export", run, exported, "--check")
    assert made == {"out": str(exported), "checked": True}
    for tower in ("vision", "text"):
        assert (exported / tower / "model.safetensors").is_file()

    _glscl("report", result, "--out", tmp_path / "report.html", "--run", run)
    page = (tmp_path / "report.html").read_text()
    values = {metric["name"]: metric["value"] for metric in measured["metrics"]}
    assert f"{values['text_to_image/R@1']:.1f}" in page
    # The page loads nothing from elsewhere; what is left are names of XML, not addresses.
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "<script src" not in page
