"""Worker processes that read micro-batches ahead of the training loop.

In: a `ReaderConfig` and a first micro-batch. Out: micro-batches in order, with their pixels. Pixels
cross between processes in one shared anonymous memory map, the arena, everything else over a
socket.

Micro-batch n goes to worker n mod workers and is a pure function of n, so a worker that died is
started again where it was. Workers are plain `python -c` processes, which import neither torch nor
the program's main module.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections import deque
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from data_pipeline.decode import Pixels
from data_pipeline.errors import DataError, IncompleteError
from data_pipeline.micro_batch import MicroBatch, NothingReadable, Reader, ReaderConfig

AHEAD = 2  # micro-batches that each worker reads ahead
RESTARTS = 3  # how often in a row a worker is restarted for the same micro-batch
_ENTRY = (
    "import sys; from data_pipeline.workers import serve; serve(int(sys.argv[1]), int(sys.argv[2]))"
)


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    requested: deque[int] = field(default_factory=deque)  # micro-batches not handed out yet
    failures: int = 0  # deaths in a row without an answer


class Workers:
    """Reads micro-batches first, first + 1, ... ahead in worker processes."""

    def __init__(self, config: ReaderConfig, first: int, workers: int) -> None:
        self._config = config
        self._shape = (workers * AHEAD, *config.pixels_shape)
        self._file = _anonymous_file(int(np.prod(self._shape)))
        self._memory = mmap.mmap(self._file, int(np.prod(self._shape)))
        self._arena = np.frombuffer(self._memory, dtype=np.uint8).reshape(self._shape)
        self._workers = [self._start() for _ in range(workers)]
        for worker in self._workers:
            _send(worker, (config, self._shape))
        self._next = first
        for number in range(first, first + workers * AHEAD):
            self._ask(number)

    def next(self, number: int) -> tuple[MicroBatch, Pixels]:
        """Return micro-batch `number` and a copy of its pixels; numbers must come in order.

        Raises the DataError that the worker met, and IncompleteError when a worker keeps dying.
        """
        if not self._workers:
            raise ValueError("the workers are closed")
        if number != self._next:
            raise ValueError(f"micro-batch {number} is out of turn, {self._next} is next")
        place = number % len(self._workers)
        answer = self._receive(place, number)
        if isinstance(answer, Exception):
            self.close()
            raise answer
        # Copied, because the worker reuses the slot for the micro-batch that is requested below.
        pixels = self._arena[_slot(number, len(self._workers))].copy()
        self._workers[place].requested.popleft()
        self._next += 1
        self._ask(number + len(self._workers) * AHEAD)
        return answer, pixels

    def close(self) -> None:
        """End the workers and free the arena. A second call does nothing."""
        if not self._workers:
            return
        for worker in self._workers:
            worker.connection.close()
            worker.process.kill()
        for worker in self._workers:
            worker.process.wait()
        self._workers = []
        del self._arena  # a memory map cannot be closed while an array uses it
        self._memory.close()
        os.close(self._file)

    def _ask(self, number: int) -> None:
        worker = self._workers[number % len(self._workers)]
        worker.requested.append(number)
        _send(worker, (number, _slot(number, len(self._workers))))

    def _receive(self, place: int, number: int) -> MicroBatch | Exception:
        while True:
            worker = self._workers[place]
            try:
                answer: MicroBatch | Exception = worker.connection.recv()
            except (EOFError, OSError):
                self._restart(place, number)
                continue
            worker.failures = 0
            return answer

    def _restart(self, place: int, number: int) -> None:
        dead = self._workers[place]
        dead.connection.close()
        code = dead.process.wait()
        if dead.failures == RESTARTS:
            self.close()
            raise IncompleteError(
                f"data worker {place} died {RESTARTS + 1} times at micro-batch {number} "
                f"(exit code {code}; -9 often means that memory ran out)"
            )
        print(
            f"data worker {place} died (exit code {code}): restarting it at micro-batch {number}",
            file=sys.stderr,
        )
        self._workers[place] = worker = self._start()
        worker.failures = dead.failures + 1
        _send(worker, (self._config, self._shape))
        for unanswered in dead.requested:
            self._ask(unanswered)

    def _start(self) -> _Worker:
        ours, theirs = socket.socketpair()
        root = str(Path(__file__).resolve().parent.parent)
        python_path = os.environ.get("PYTHONPATH")
        path = os.pathsep.join([root, python_path]) if python_path else root
        # One thread each: the workers are the parallelism.
        threads = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        # Workers inherit the signal mask: when a signal goes to the whole process group (Ctrl-C, a
        # scheduler), only the parent handles it.
        masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _ENTRY, str(theirs.fileno()), str(self._file)],
                pass_fds=(theirs.fileno(), self._file),
                env={**os.environ, **threads, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=2,  # standard output belongs to the command's result
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, masked)
            theirs.close()
        return _Worker(process, Connection(ours.detach()))


def _send(worker: _Worker, message: object) -> None:
    # A worker that died is noticed and restarted when its next answer is due.
    with contextlib.suppress(OSError):
        worker.connection.send(message)


def serve(socket_fd: int, arena_fd: int) -> None:
    """Run one worker: answer requests (micro-batch, slot) until the parent closes the socket."""
    import cv2

    cv2.setNumThreads(0)
    connection = Connection(socket_fd)
    try:
        config, shape = connection.recv()
        memory = mmap.mmap(arena_fd, int(np.prod(shape)))
        arena = np.frombuffer(memory, dtype=np.uint8).reshape(shape)
        reader = Reader(config)
        while True:
            number, slot = connection.recv()
            connection.send(_answer(reader, number, arena[slot]))
    except (EOFError, OSError):
        return  # the parent closed the socket or died


def _answer(reader: Reader, number: int, pixels: Pixels) -> MicroBatch | Exception:
    try:
        return reader.read(number, pixels)
    except (NothingReadable, DataError) as error:
        return error
    except Exception:
        return RuntimeError(
            f"data worker failed at micro-batch {number}:\n{traceback.format_exc()}"
        )


def _slot(number: int, workers: int) -> int:
    """Return the slot of the arena for a micro-batch, which is free again once handed out."""
    return number % (workers * AHEAD)


def _anonymous_file(size: int) -> int:
    """Return a descriptor of memory without a name, which vanishes however the run ends."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("glscl-pixels")
    else:
        with tempfile.TemporaryFile() as unlinked:
            file = os.dup(unlinked.fileno())
    os.ftruncate(file, size)
    return file
