"""Processes for tests, forked from one server that has imported torch and this project once.

In: a function at the top of a module, and its arguments. Out: the exit code and the output of each
process. A launcher (`accelerate launch`, `torchrun`) costs 15 seconds of processor time per
rank for imports alone, so only tests about launchers start one. Every rank ends the same way: it
waits for the others, then leaves the process group.
"""

import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory

_CONTEXT = multiprocessing.get_context("forkserver")
# What a rank needs. The server must stay without threads, or its forks could inherit a held lock:
# importing starts none, while running a model in it would.
_CONTEXT.set_forkserver_preload(["torch", "accelerate", "pretrain.loop", "eval.finetuning.job"])
_LAUNCHER_VARIABLES = ("ACCELERATE_", "RANK", "WORLD_", "LOCAL_", "MASTER_", "TORCHELASTIC_")


@dataclass(frozen=True)
class Finished:
    """How a process ended, and what it printed."""

    exit_code: int
    stdout: str
    stderr: str


class Started:
    """A running process: a function with its output going to files."""

    def __init__(
        self,
        function: Callable[..., int | None],
        *arguments: object,
        environment: Mapping[str, str] | None = None,
    ):
        self._folder = TemporaryDirectory(prefix="process-")
        self.process: ForkServerProcess = _CONTEXT.Process(
            target=_run, args=(function, arguments, dict(environment or {}), self._folder.name)
        )
        self.process.start()

    def wait(self, timeout: float = 240) -> Finished:
        """Wait for the end. A process that takes longer is killed, and its exit code says so."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        with self._folder as folder:
            stdout, stderr = (_read(Path(folder, name)) for name in ("stdout", "stderr"))
        return Finished(self.process.exitcode, stdout, stderr)


def run_ranks(
    world: int, function: Callable[..., int | None], *arguments: object, timeout: float = 240
) -> list[Finished]:
    """Call a function in `world` processes that see each other over gloo; all have to succeed.

    The function finds its rank in the environment, as under torchrun.
    """
    from torch.distributed import TCPStore

    # The store lives here, as it lives in torchrun's agent: no rank has to outlive the others
    # because it serves them, and the system chooses a port that is free.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "ACCELERATE_USE_CPU": "true",
    }
    ranks = []
    for rank in range(world):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        ranks.append(Started(_as_rank, function, arguments, environment=shared | place))
    _wait_for_all(ranks, timeout)
    finished = [rank.wait(timeout=0) for rank in ranks]
    failures = []
    for number, end in enumerate(finished):
        if end.exit_code != 0:
            failures.append(f"rank {number} ended with {end.exit_code}: {end.stderr[-3000:]}")
    # All of them: when one rank fails, the others lose their connection to it and fail too.
    assert not failures, "\n".join(failures)
    return finished


def _wait_for_all(ranks: list[Started], timeout: float) -> None:
    """Return when all ranks have ended, or soon after one has failed: the others wait for it."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        codes = [rank.process.exitcode for rank in ranks]
        if None not in codes:
            return
        if any(code not in (None, 0) for code in codes):
            deadline = min(deadline, time.monotonic() + 5)
        time.sleep(0.02)


def _as_rank(function: Callable[..., int | None], arguments: tuple[object, ...]) -> int | None:
    """Run a rank's function, then leave the process group together with the other ranks."""
    from torch import distributed

    code = function(*arguments)
    if distributed.is_initialized():
        # A rank that leaves early closes connections that another one may still be reading.
        distributed.barrier()
        distributed.destroy_process_group()
    return code


def _run(
    function: Callable[..., int | None],
    arguments: tuple[object, ...],
    environment: dict[str, str],
    folder: str,
) -> None:
    """Run in the new process, with the environment and the output it was given."""
    for name in list(os.environ):
        if name.startswith(_LAUNCHER_VARIABLES):
            del os.environ[name]
    os.environ.update(environment)
    # File descriptors, not sys.stdout: C++ code and child processes write there too.
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(Path(folder, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
    try:
        code = function(*arguments) or 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


def _read(file: Path) -> str:
    """Text of a file, empty if the process was killed before it could open it."""
    return file.read_text() if file.exists() else ""
