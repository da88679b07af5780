"""Stopping a long stage between two steps: SIGTERM, Ctrl-C, or the end of the time it was given."""

import signal
import sys
import time
from types import FrameType, TracebackType
from typing import NoReturn, Self

from pneumothorax.errors import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM)
REPEATED_S = 3.0


class StopRequest:
    """with StopRequest(max_seconds) as stop: asks `stop.is_due()` between steps and calls `stop.leave()` after saving.

    Another signal, REPEATED_S or more later, ends the process at once; sooner it is the same one: a launcher hands on
    what the whole group has already got.
    """

    def __init__(self, max_seconds: float | None = None) -> None:
        self.deadline = None if max_seconds is None else time.monotonic() + max_seconds
        self.signal: int | None = None
        self.noted = 0.0

    def __enter__(self) -> Self:
        self.before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def is_due(self) -> bool:
        late = self.deadline is not None and time.monotonic() >= self.deadline
        return late or self.signal is not None

    def leave(self) -> NoReturn:
        """Raises Stopped: with 0 when the time is up, 128 + the signal's number when there was one."""
        raise Stopped(0 if self.signal is None else 128 + self.signal)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            if time.monotonic() - self.noted < REPEATED_S:
                return
            sys.exit(128 + number)
        self.signal, self.noted = number, time.monotonic()
        print(
            f"\n{signal.Signals(number).name}: this step ends, then the state is saved",
            file=sys.stderr,
            flush=True,
        )
