"""A run folder in words and curves: what was trained, on what machine, and how the losses went.

In: a run folder as training leaves it, also one that is still being written. Out: a sentence, rows
of facts, line charts, and the files that hold the details.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError

from .charts import line_chart
from .labels import capitalized, metric_label, words

_FILES = ("config.yaml", "environment.json", "status.json")
_RECALLS = ("R@1", "R@5", "R@10")
_OTHER_CURVES = {
    "lr": "Learning rate",
    "grad_norm": "Gradient norm",
    "samples_per_second": "Samples per second",
    "temperature": "Contrastive temperature",
    "data_wait_fraction": "Share of time waiting for data",
}


@dataclass(frozen=True)
class Training:
    """What the page shows of a run: ``first`` curves are shown at once, ``more`` behind a click."""

    sentence: str
    facts: dict[str, str]
    first: list[str]
    more: list[str]
    files: dict[str, str]


def read_training(run: Path | str) -> Training:
    """Read a run folder.

    Raises
    ------
    DataError
        If there is no such folder.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a run folder")
    rows = _rows(folder / "metrics.jsonl")
    environment, status = _json(folder / "environment.json"), _json(folder / "status.json")
    first, more = _curves(rows)
    files = {}
    for name in _FILES:
        if (folder / name).is_file():
            files[name] = (folder / name).read_text("utf-8")
    facts = _facts(run, environment, status, rows)
    return Training(_sentence(status, rows), facts, first, more, files)


def _rows(file: Path) -> list[dict[str, Any]]:
    rows = []
    for line in file.read_text("utf-8").splitlines() if file.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break  # the line that a running job is writing
    return rows


def _json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content


def _sentence(status: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return ""
    last = rows[-1]
    epochs = f", {last['epoch']:.1f} epochs" if last.get("epoch") else ""
    samples = f"{last['step']:,} steps ({last['samples']:,} samples{epochs})"
    if status.get("state") == "complete":
        return f"It was pre-trained for {samples}."
    return f"Pre-training is {status.get('state', 'in an unknown state')} after {samples}."


def _facts(
    run: Path | str,
    environment: dict[str, Any],
    status: dict[str, Any],
    rows: Sequence[dict[str, Any]],
) -> dict[str, str]:
    state, step = status.get("state", "state unknown"), status.get("step", "?")
    facts = {"Run": f"{run}, {state} at step {step}"}
    if rows:
        last = rows[-1]
        facts["Trained on"] = f"{last['samples']:,} samples, {last.get('epoch', 0):.1f} epochs"
    if environment:
        hardware, versions = environment.get("hardware", {}), environment.get("versions", {})
        world = environment.get("world", 1)
        processes = "1 process" if world == 1 else f"{world} processes"
        facts["Machine"] = (
            f"{hardware.get('cpus')} CPU cores, {hardware.get('device')}, {processes}"
        )
        named = []
        for name in ("python", "torch", "transformers"):
            if name in versions:
                named.append(f"{name} {versions[name]}")
        facts["Versions"] = ", ".join(named)
        facts["Code"] = f"{environment.get('code')}, seed {environment.get('seed')}"
        if "command" in environment:
            facts["Training command"] = " ".join(environment["command"])
    return facts


def _curves(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """Draw the total loss and validation first, then single losses and the rest."""
    first, more = [], []
    keys: dict[str, None] = {}  # ordered, each once
    for row in rows:
        keys |= dict.fromkeys(row)
    drawn = set()
    for key in keys:
        if key == "loss":
            first.append(_one_line("Total loss", rows, key))
        elif key.startswith("loss/"):
            more.append(_one_line(f"Loss: {words(key.removeprefix('loss/'))}", rows, key))
    for direction in ("text_to_image", "image_to_text"):
        recalls = {}
        for recall in _RECALLS:
            key = f"validation/{direction}/{recall}"
            if _series(rows, key)[0]:
                drawn.add(key)
                recalls[metric_label(recall)] = _series(rows, key)
        if recalls:
            title = f"Validation: {words(direction).replace(' ', '-')}, %"
            first.append(line_chart(title, recalls, from_zero=True))
    for key in keys:
        if key.startswith("validation/") and key not in drawn and _series(rows, key)[0]:
            label = metric_label(key.removeprefix("validation/"))
            first.append(_one_line(f"Validation: {label}", rows, key))
    for key, title in _OTHER_CURVES.items():
        if _series(rows, key)[0]:
            more.append(_one_line(title, rows, key))
    return first, more


def _one_line(title: str, rows: Sequence[dict[str, Any]], key: str) -> str:
    return line_chart(capitalized(title), {title: _series(rows, key)})


def _series(rows: Sequence[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    steps, values = [], []
    for row in rows:
        if isinstance(row.get(key), int | float):
            steps.append(row["step"])
            values.append(row[key])
    return steps, values
