"""A tiny run, what tests read from its folder, and what they start ranks with."""

import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file

from pretrain.run.checkpoint import model_folder

WIDTH = 32


def tiny_settings(scenes: Path, tokenizer: Path, run: Path) -> dict:
    """Return nested configuration values for a tiny model on the embedded scenes."""
    tower = {
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    return {
        "run": str(run),
        "steps": 6,
        "precision": "fp32",
        "batch": {"image": 16},
        "data": {
            "train": [{"path": str(scenes / "train")}],
            "tokenizer": str(tokenizer),
            "max_text_length": 32,
            "workers": 0,
            "group": 4,
        },
        "model": {
            "vision": tower | {"patch_size": 16, "image_size": 48},
            "text": tower | {"max_position_embeddings": 40},
            "fusion": {
                "hidden_size": WIDTH,
                "fusion_layers": 1,
                "fusion_heads": 2,
                "fusion_intermediate_size": 64,
                "projection_dim": 16,
            },
        },
        "optimizer": {"lr": 1e-3, "warmup": 0.2},
        "checkpoint": {"every": 2, "keep": 2},
        "log": {"every": 1},
    }


class StopAfter:
    """Asks a run to stop after a number of steps, as a signal would; None: never."""

    def __init__(self, steps: int | None = None):
        self.left = steps

    @property
    def reason(self) -> str | None:
        if self.left is None:
            return None
        self.left -= 1
        return "SIGTERM" if self.left <= 0 else None


def weights(run: str | Path) -> dict[str, torch.Tensor]:
    return load_file(model_folder(run) / "model.safetensors")


def rows(run: str | Path) -> list[dict]:
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


def status(run: str | Path) -> dict:
    return json.loads((Path(run) / "status.json").read_text())


def assert_same_run(one_run: str, other_run: str) -> None:
    """Assert that two runs have the same final weights and, apart from times, the same metrics."""
    ours, theirs = weights(one_run), weights(other_run)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert untimed_rows(one_run) == untimed_rows(other_run)


def untimed_rows(run: str) -> list[dict]:
    """Rows of metrics.jsonl without the values that depend on the clock."""
    timed = ("samples_per_second", "data_wait_fraction", "flops_per_second")
    timed += ("slowest_rank", "data_wait_max", "data_wait_min")
    untimed = []
    for row in rows(run):
        untimed.append({name: value for name, value in row.items() if name not in timed})
    return untimed


def environment_without_ranks() -> dict[str, str]:
    """This process's environment without what a launcher of ranks may have set in it."""
    environment = {}
    for name, value in os.environ.items():
        if not name.startswith(("ACCELERATE_", "RANK", "WORLD", "LOCAL_")):
            environment[name] = value
    return environment
