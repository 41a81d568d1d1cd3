"""The run folder: locked by one job, its configuration, status and metrics always readable and never torn."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from data_pipeline.errors import UsageError
from data_pipeline.files import write_json, write_whole
from pretrain.config import TrainingConfig
from pretrain.config_file import differences, keys, parse_config, to_yaml

_PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "safetensors",
    "tokenizers",
    "numpy",
    "simplejpeg",
    "webdataset",
)


class RunFolder:
    """Files of a run, opened by rank 0 only."""

    def __init__(self, config: TrainingConfig):
        """Create and lock the folder. Raises UsageError when another job holds it, naming that job."""
        self.path = Path(config.run)
        self.config = config
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / "lock").open("a+")
        except OSError as error:
            raise UsageError(f"cannot use the run folder {self.path}: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "another job"
            raise UsageError(f"the run folder {self.path} is in use by {holder}") from None
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._lock.flush()

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def used(self) -> bool:
        """Whether a step was ever taken here."""
        metrics = self.path / "metrics.jsonl"
        return any(self.checkpoints.glob("step-*")) or (
            metrics.is_file() and metrics.stat().st_size > 0
        )

    def close(self) -> None:
        """Let another job have the folder."""
        self._lock.close()

    def check_config(self, allow_change: tuple[str, ...]) -> None:
        """Refuse a change that would make what stands here another run.

        Raises UsageError that names the changed keys, or a key in `allow_change` that does not
        exist.
        """
        file = self.path / "config.yaml"
        if self.used and file.is_file():
            saved = parse_config(type(self.config), yaml.safe_load(file.read_text()), str(file))
            if unknown := set(allow_change) - keys(self.config) - keys(saved):
                raise UsageError(
                    f"--allow-change {sorted(unknown)[0]}: the configuration has no such key"
                )
            changed = [key for key in differences(self.config, saved) if key not in allow_change]
            if changed:
                raise UsageError(
                    f"{self.path} was started with another configuration ({', '.join(changed)}): use another folder, "
                    f"or allow it with {' '.join(f'--allow-change {key}' for key in changed)}"
                )

    def write_config(self) -> None:
        """Write config.yaml."""
        write_whole(self.path / "config.yaml", to_yaml(self.config))

    def write_environment(self, world: int, device: str, data: list[dict[str, str]]) -> None:
        """Record what the run depends on besides its configuration."""
        write_json(
            self.path / "environment.json",
            {
                "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "code": code_revision(),
                "versions": {"python": platform.python_version()}
                | {name: importlib.metadata.version(name) for name in _PACKAGES},
                "hardware": {
                    "machine": platform.machine(),
                    "cpus": os.cpu_count(),
                    "device": device,
                },
                "torch_threads": torch.get_num_threads(),
                "world": world,
                "seed": self.config.seed,
                "data": data,
                # Relative paths of the configuration and of the data start here.
                "working_directory": os.getcwd(),
                "command": sys.argv,
            },
        )

    def write_status(self, state: str, step: int, reason: str = "") -> None:
        """Say how the run stands: running, preempted, complete or failed."""
        write_json(self.path / "status.json", {"state": state, "step": step, "reason": reason})

    def trim_metrics(self, step: int) -> None:
        """Drop rows past a step that is trained again, and a half-written last line."""
        file = self.path / "metrics.jsonl"
        if not file.is_file():
            return
        kept = []
        for line in file.read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                break
            if row["step"] > step:
                break
            kept.append(line + "\n")
        write_whole(file, "".join(kept))

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add one row to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


def record_failure(folder: Path, error: BaseException) -> None:
    """Let status.json say that this start failed; the first rank that says so is believed."""
    try:
        status = json.loads((folder / "status.json").read_text())
    except (OSError, ValueError):
        status = {"state": "", "step": 0}
    if status["state"] != "failed":
        with contextlib.suppress(OSError):  # a full disk must not hide the error itself
            write_json(
                folder / "status.json",
                {
                    "state": "failed",
                    "step": status["step"],
                    "reason": f"{type(error).__name__}: {error}",
                },
            )


def code_revision() -> str:
    """Commit of this code with `-dirty` where files differ from it; `unknown` outside a git checkout."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return described.stdout.strip() or "unknown"
