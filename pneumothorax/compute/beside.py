"""Work in threads beside the main one, which would only wait for the device or the disk."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, Self, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
U = TypeVar("U")

THREADS = 4


def in_order(
    function: Callable[[U], T], items: Iterable[U], *, threads: int = THREADS
) -> Iterator[T]:
    """function(item) of every item, in order, computed beside the making of later items.

    The caller's thread makes the items. At most two per thread wait.
    """
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[T]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            while waiting and (waiting[0].done() or len(waiting) > 2 * threads):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class Queue:
    """with Queue() as queue: does one thing after the other in a thread.

    What one of them raises is raised by the next call, or on leaving, which waits.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._last: Future[Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    def put(self, function: Callable[P, Any], *arguments: P.args, **keywords: P.kwargs) -> None:
        """Do this next. Waits until everything before is done."""
        self.wait()
        self._last = self._pool.submit(function, *arguments, **keywords)

    def wait(self) -> None:
        """Until everything is done."""
        last, self._last = self._last, None
        if last is not None:
            last.result()
