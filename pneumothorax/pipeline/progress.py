"""Progress of long work: a bar on a terminal, else a line every 30 seconds.

The log of a batch system, notebook or container would keep every version of a bar.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, Self

from tqdm import tqdm

EVERY_S = 30
LINE = "{desc}: {n_fmt} of {total_fmt} ({percentage:.0f}%), {elapsed} so far, {remaining} left"


class Lines:
    """What `show_progress` gives without a terminal: work of less than EVERY_S prints nothing."""

    def __init__(
        self, items: Iterable[Any], *, total: int, title: str, done: int, visible: bool
    ) -> None:
        self.items, self.total, self.title, self.visible = items, total, title, visible
        self.n: float = done  # as tqdm has it
        self._earlier = done
        self._began = self._printed = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        for item in self.items:
            yield item
            self.update()

    def update(self, n: float = 1) -> None:
        """Count `n` more items as done. Prints a line if the last one is EVERY_S old."""
        self.n += n
        now = time.monotonic()
        if self.visible and now - self._printed >= EVERY_S:
            self._printed = now
            line = tqdm.format_meter(
                self.n,
                self.total,
                now - self._began,
                prefix=self.title,
                initial=self._earlier,
                bar_format=LINE,
            )
            print(line, file=sys.stderr, flush=True)


def show_progress(
    items: Iterable[Any] = (),
    *,
    total: int,
    title: str,
    unit: str = "image",
    done: int = 0,
    leave: bool = True,
    visible: bool = True,
) -> "tqdm[Any] | Lines":
    """A loop over `items`, or a context manager with `update(n)` and the count `n`.

    Args:
        done: items of earlier calls, which count as done but not in the speed.
        leave: whether the bar stays on the terminal at its end.
        visible: False prints nothing, for all processes but the main one.
    """
    if visible and sys.stderr.isatty():
        return tqdm(items, total=total, desc=title, unit=unit, initial=done, leave=leave)
    return Lines(items, total=total, title=title, done=done, visible=visible)
