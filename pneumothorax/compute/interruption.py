"""Stopping a long stage between two steps, on SIGTERM, Ctrl-C or --max-time."""

import signal
import sys
import time
from types import FrameType
from typing import NoReturn, Self

from pneumothorax.errors import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM)
REPEATED_S = 3.0


class StopRequest:
    """with StopRequest(max_seconds) as stop: ask `is_due` between steps; save, then `leave`.

    A second signal ends the process at once, unless it comes within REPEATED_S: launchers
    such as torchrun pass on the signal that the whole process group has already received.
    """

    def __init__(self, max_seconds: float | None = None) -> None:
        self.deadline = None if max_seconds is None else time.monotonic() + max_seconds
        self.signal: int | None = None
        self.noted = 0.0

    def __enter__(self) -> Self:
        self.before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def is_due(self) -> bool:
        late = self.deadline is not None and time.monotonic() >= self.deadline
        return late or self.signal is not None

    def leave(self) -> NoReturn:
        """Raise Stopped, with exit code 0 when time is up or 128 + the signal's number."""
        raise Stopped(0 if self.signal is None else 128 + self.signal)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            if time.monotonic() - self.noted < REPEATED_S:
                return
            sys.exit(128 + number)
        self.signal, self.noted = number, time.monotonic()
        print(
            f"\n{signal.Signals(number).name}: saving after this step",
            file=sys.stderr,
            flush=True,
        )
