"""What tests read of a run folder."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from pretrain.run.checkpoint import model_folder


class StopAfter:
    """Asks a run to stop at the end of a step, counted from its start, as a signal would; never without a number."""

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


def assert_same_run(one: str, other: str) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    timed = ("samples_per_second", "data_wait_fraction")
    assert [{k: v for k, v in row.items() if k not in timed} for row in rows(one)] == [
        {k: v for k, v in row.items() if k not in timed} for row in rows(other)
    ]
