"""SIGTERM, SIGINT and the launcher's death become a flag that the loop reads between steps."""

from __future__ import annotations

import os
import signal
from types import FrameType

STOPPED = 75  # exit code of a run that saved and stopped on a signal


class StopFlag:
    """Remembers that this process was asked to stop; `reason` says by what, None while it was not."""

    def __init__(self) -> None:
        self._signal: str | None = None
        # accelerate's one-process launcher dies of SIGTERM without passing it on, and its worker would train on.
        launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "LOCAL_RANK" in os.environ
        self._launcher = os.getppid() if launched else None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember)

    @property
    def reason(self) -> str | None:
        """What asked for the stop."""
        if self._signal is None and self._launcher is not None and os.getppid() != self._launcher:
            self._signal = "the launcher is gone"
        return self._signal

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C does not wait for the step
        self._signal = signal.Signals(number).name
