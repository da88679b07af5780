"""Work on many images on a Dask cluster whose workers see the same folders.

joblib's own Dask backend returns nothing before the last result, and waits forever if
no worker is left, so this module talks to the cluster directly. Dask is imported only
for a cluster.
"""

import argparse
import asyncio
import functools
import itertools
import logging
import pickle
import platform
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pneumothorax.errors import INSTALL_EXTRA, BadInput

if TYPE_CHECKING:
    from distributed import Client, Future

CONNECT_S = 10
# Without any worker. `dask worker` takes only seconds to restart one that died.
PATIENCE_S = 30
TASKS_PER_THREAD = 4  # sent ahead: enough to keep workers busy, few enough to bound memory

Result = TypeVar("Result")
Calls = Sequence[tuple[Any, ...]]  # arguments of each call
Tasks = Sequence[tuple[int, Calls]]  # (position of the first call, calls)


def scheduler(text: str) -> str:
    """argparse type: the address of a Dask scheduler, if Dask is installed."""
    if not re.fullmatch(r"tcp://[^\s/]+:\d+", text):
        raise argparse.ArgumentTypeError(f"must look like tcp://host:8786, got {text!r}")
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise argparse.ArgumentTypeError(f"needs Dask ({error}): {INSTALL_EXTRA}") from error
    return text


def as_finished(
    work: Callable[..., Result], tasks: Tasks, address: str, shared: Path | None
) -> Iterator[tuple[int, list[Result]]]:
    """(start, results) of each task as it finishes; if a worker dies, another does it.

    Args:
        shared: a file that every worker must see with the same text as here.
    """
    seen_here = (shared, shared.read_text("utf-8")) if shared else None
    with _connection(address) as client:
        _check_imports(client, work)
        waiting = iter(tasks)
        running: set[Future] = set()
        while True:
            threads = _threads(client)
            room = max(1, TASKS_PER_THREAD * threads) - len(running)
            for task in itertools.islice(waiting, max(0, room)):
                call = functools.partial(task_of_worker, seen_here, work, *task)  # opaque to Dask
                running.add(client.submit(call, pure=False))  # equal calls are not merged
            if not running:
                return
            finished = _finished(running)
            if not finished and not threads and not _threads(client):
                raise BadInput(
                    f"the scheduler at {address} has had no worker for {PATIENCE_S} s: run "
                    f"python -m dask worker {address} --nworkers 2 --nthreads 1"
                )
            running -= finished
            for future in finished:
                yield future.result()


@contextmanager
def _connection(address: str) -> Iterator["Client"]:
    """A client of the scheduler. Inside, faults of the cluster become BadInput."""
    from distributed import Client, KilledWorker

    # The message for a lost scheduler is below.
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    try:
        asyncio.run(_greet(address))
        client = Client(address, timeout=CONNECT_S)
    except OSError as error:
        raise BadInput(
            f"no Dask scheduler answers at {address}: start one with "
            "python -m dask scheduler, and give its port, not the dashboard's"
        ) from error
    try:
        with client:
            yield client
    except CancelledError as error:
        raise BadInput(
            f"the scheduler at {address} was lost: "
            "start it, then run the same command again to resume"
        ) from error
    except KilledWorker as error:
        raise BadInput(
            f"{error.allowed_failures + 1} workers died one after the other, the last at "
            f"{error.last_worker.address}: see what they printed; each may need 1 GiB of memory"
        ) from error
    except ImportError as error:
        raise BadInput(
            f"the cluster at {address} cannot run this project ({error}): start its scheduler and "
            "its workers with python -m dask in this project's folder and environment"
        ) from error


async def _greet(address: str) -> None:
    """OSError unless a Dask scheduler answers. Client would wait for a web server."""
    from distributed.comm import connect

    (await asyncio.wait_for(connect(address), CONNECT_S)).abort()


def _check_imports(client: "Client", work: Callable[..., object]) -> None:
    """ImportError if the scheduler or a worker lacks a module.

    Checked first because a worker that cannot load a task dies.
    """
    from distributed.protocol.pickle import dumps

    needed = dumps((task_of_worker, work))
    client.run_on_scheduler(pickle.loads, needed)
    for answer in client.run(pickle.loads, needed, on_error="return").values():
        if isinstance(answer, ImportError):
            raise answer


def _threads(client: "Client") -> int:
    """Threads of all workers. CancelledError if the scheduler is lost, as in futures."""
    try:
        return sum(client.nthreads().values())
    except OSError as error:
        raise CancelledError from error


def _finished(running: set["Future"]) -> set["Future"]:
    """At least one finished task; none if PATIENCE_S pass without one."""
    from distributed import wait

    try:
        return set(wait(running, timeout=PATIENCE_S, return_when="FIRST_COMPLETED").done)
    except TimeoutError:
        return set()


# Warning filters belong to the process, so the threads of a worker take turns.
_one_task = threading.Lock()


def task_of_worker(
    shared: tuple[Path, str] | None, work: Callable[..., Result], start: int, calls: Calls
) -> tuple[int, list[Result]]:
    """What a worker does with a task. `shared`: a file and the text it must hold."""
    if shared:
        _check_shared(*shared)
    with _one_task:
        return start, [work(*arguments) for arguments in calls]


@functools.lru_cache(maxsize=1)
def _check_shared(file: Path, text: str) -> None:
    try:
        same = file.read_text("utf-8") == text
    except OSError:
        same = False
    if not same:
        raise BadInput(
            f"the worker on {platform.node()} does not see the same {file} as this machine: "
            "all workers need the same input and output folders, under the same paths"
        )
