"""Turn SIGTERM, SIGINT and the launcher's death into a flag that the loop reads between steps."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

STOPPED = 75  # exit code of a run that saved and stopped on a signal


class StopFlag:
    """Remembers that this process was asked to stop.

    Make it before slow imports, so that no signal is missed.
    """

    def __init__(self) -> None:
        self._signal: str | None = None
        self._interrupts = 0
        # accelerate's one-process launcher dies of SIGTERM without passing it on, and its worker
        # would continue to train.
        launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "LOCAL_RANK" in os.environ
        self._launcher = os.getppid() if launched else None
        self._previous: dict[int, Any] = {}
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._remember)

    @property
    def reason(self) -> str | None:
        """Name of the signal or event that asked for the stop; None if nothing did."""
        if self._signal is None and self._launcher is not None and os.getppid() != self._launcher:
            self._signal = "the launcher is gone"
        return self._signal

    def restore(self) -> None:
        """Restore the previous signal handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            raise KeyboardInterrupt  # a second Ctrl-C does not wait for the step
        self._signal = self._signal or signal.Signals(number).name
