"""The run folder: configuration, environment, status and metrics of a run.

One job at a time holds the folder's lock. Readers never see a half-written file.
"""

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
        """Create and lock the folder; raise UsageError that names the job that holds it, if any."""
        self.path = Path(config.run)
        self.config = config
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / "lock").open("a+")
        except OSError as error:
            raise UsageError(f"cannot use the run folder {self.path}: {error.strerror}") from None
        try:
            # The kernel drops the lock when the process dies, so that no stale lock remains.
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
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def used(self) -> bool:
        """Whether the run has made a step."""
        metrics = self.path / "metrics.jsonl"
        return any(self.checkpoints.glob("step-*")) or (
            metrics.is_file() and metrics.stat().st_size > 0
        )

    def close(self) -> None:
        """Release the lock."""
        self._lock.close()

    def check_config(self, allow_change: tuple[str, ...]) -> None:
        """Refuse to continue with a configuration that computes something else.

        Raises UsageError that names the changed keys, or a key in `allow_change` that does not
        exist.
        """
        file = self.path / "config.yaml"
        # Before the first step, a configuration may still be corrected.
        if self.used and file.is_file():
            saved = parse_config(type(self.config), yaml.safe_load(file.read_text()), str(file))
            if unknown := set(allow_change) - keys(self.config) - keys(saved):
                raise UsageError(
                    f"--allow-change {sorted(unknown)[0]}: the configuration has no such key"
                )
            changed = [key for key in differences(self.config, saved) if key not in allow_change]
            if changed:
                options = " ".join(f"--allow-change {key}" for key in changed)
                raise UsageError(
                    f"{self.path} was started with another configuration ({', '.join(changed)}): "
                    f"use another folder, or allow the change with {options}"
                )

    def write_config(self) -> None:
        """Write config.yaml."""
        write_whole(self.path / "config.yaml", to_yaml(self.config))

    def write_environment(self, world: int, device: str, data: list[dict[str, str]]) -> None:
        """Record everything besides the configuration that the run depends on."""
        versions = {"python": platform.python_version()}
        for name in _PACKAGES:
            versions[name] = importlib.metadata.version(name)
        write_json(
            self.path / "environment.json",
            {
                "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "code": code_revision(),
                "versions": versions,
                "hardware": {
                    "machine": platform.machine(),
                    "cpus": os.cpu_count(),
                    "device": device,
                },
                "torch_threads": torch.get_num_threads(),
                "world": world,
                "seed": self.config.seed,
                "data": data,
                # Relative paths in the configuration and in the data start at this folder.
                "working_directory": os.getcwd(),
                "command": sys.argv,
            },
        )

    def write_status(self, state: str, step: int, reason: str = "") -> None:
        """Record the state of the run: running, preempted, complete or failed."""
        write_json(self.path / "status.json", {"state": state, "step": step, "reason": reason})

    def trim_metrics(self, step: int) -> None:
        """Drop the rows after a step, which are trained again, and a half-written last line."""
        file = self.path / "metrics.jsonl"
        if not file.is_file():
            return
        lines = []
        for line in file.read_text().splitlines():
            try:
                row = json.loads(line)
            # The last line of a job that was killed while it wrote.
            except ValueError:
                break
            # Rows are in the order of their steps, so that all later ones are dropped too.
            if row["step"] > step:
                break
            lines.append(line + "\n")
        write_whole(file, "".join(lines))

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Append one row to metrics.jsonl."""
        # Opened for each row, so that a reader sees every row at once.
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


def record_failure(folder: Path, error: BaseException) -> None:
    """Record in status.json that this start failed; the first rank to fail decides the reason."""
    try:
        status = json.loads((folder / "status.json").read_text())
    except (OSError, ValueError):
        status = {"state": "", "step": 0}
    # Other ranks fail because the first one did, and know less about the reason.
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
    """Return the commit of this code, with `-dirty` if files differ; `unknown` outside of git."""
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
