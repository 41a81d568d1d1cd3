"""Worker processes that read micro-batches ahead: pixels cross in one shared anonymous arena, the rest over a socket.

Micro-batch n goes to worker n mod workers, and is a pure function of n, so that a worker that died
is started again where it was. Workers are plain `python -c` processes: they import neither torch
nor the program's main module.
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
RESTARTS = 3  # starts of a worker, one after the other, that yielded nothing
_ENTRY = (
    "import sys; from data_pipeline.workers import serve; serve(int(sys.argv[1]), int(sys.argv[2]))"
)


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    asked: deque[int] = field(default_factory=deque)
    failures: int = 0


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
        """Micro-batch `number`, which must follow the one before, and a copy of its pixels.

        Raises DataError as the worker met it, or when a worker keeps dying.
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
        pixels = self._arena[_slot(number, len(self._workers))].copy()
        self._workers[place].asked.popleft()
        self._next += 1
        self._ask(number + len(self._workers) * AHEAD)
        return answer, pixels

    def close(self) -> None:
        """End the workers and free the arena; a second call does nothing."""
        if not self._workers:
            return
        for worker in self._workers:
            worker.connection.close()
            worker.process.kill()
        for worker in self._workers:
            worker.process.wait()
        self._workers = []
        del self._arena
        self._memory.close()
        os.close(self._file)

    def _ask(self, number: int) -> None:
        worker = self._workers[number % len(self._workers)]
        worker.asked.append(number)
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
                f"data worker {place} died {RESTARTS + 1} times at micro-batch {number} (exit code {code}; -9 is often "
                "a lack of memory)"
            )
        print(
            f"data worker {place} died (exit code {code}): started again at micro-batch {number}",
            file=sys.stderr,
        )
        self._workers[place] = worker = self._start()
        worker.failures = dead.failures + 1
        _send(worker, (self._config, self._shape))
        for again in dead.asked:
            self._ask(again)

    def _start(self) -> _Worker:
        ours, theirs = socket.socketpair()
        root = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        threads = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        # Workers inherit the mask: a signal to the whole group (Ctrl-C, a scheduler) is the
        # parent's to handle.
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
    # A worker that died is found out, and made good, when its next answer is due.
    with contextlib.suppress(OSError):
        worker.connection.send(message)


def serve(socket_fd: int, arena_fd: int) -> None:
    """Run one worker: answer requests (micro-batch, slot) until the parent closes the socket or dies."""
    import cv2

    cv2.setNumThreads(0)
    connection = Connection(socket_fd)
    try:
        config, shape = connection.recv()
        arena = np.frombuffer(mmap.mmap(arena_fd, int(np.prod(shape))), dtype=np.uint8).reshape(
            shape
        )
        reader = Reader(config)
        while True:
            number, slot = connection.recv()
            connection.send(_answer(reader, number, arena[slot]))
    except (EOFError, OSError):
        return  # the parent is gone


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
    """Slot of the arena that micro-batch `number` is written to: free again when it was handed out."""
    return number % (workers * AHEAD)


def _anonymous_file(size: int) -> int:
    """Descriptor of memory without a name, so that nothing is left behind however the run ends."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("glscl-pixels")
    else:
        with tempfile.TemporaryFile() as unlinked:
            file = os.dup(unlinked.fileno())
    os.ftruncate(file, size)
    return file
