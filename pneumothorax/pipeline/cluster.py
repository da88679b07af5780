"""Work on many images by the workers of a Dask cluster, which see the same folders.

joblib's own Dask backend gives no result before the last one and waits forever when no worker is left, so
the cluster is asked directly. Dask is imported for a cluster only.
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

from pneumothorax.errors import BadInput

if TYPE_CHECKING:
    from distributed import Client, Future

INSTALL = "python -m pip install -r requirements-extra.txt"
CONNECT_S = 10
PATIENCE_S = (
    30  # without any worker: one that dies is started again by its own `dask worker` within seconds
)
TASKS_PER_THREAD = 4  # sent ahead, so that no worker waits; no more, so that memory stays bounded


Result = TypeVar("Result")
Calls = Sequence[tuple[Any, ...]]
Tasks = Sequence[tuple[int, Calls]]  # calls with the position of the first of them


def scheduler(text: str) -> str:
    """argparse type: the address of a Dask scheduler, where Dask is installed."""
    if not re.fullmatch(r"tcp://[^\s/]+:\d+", text):
        raise argparse.ArgumentTypeError(f"must be like tcp://host:8786, got {text!r}")
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise argparse.ArgumentTypeError(f"needs Dask ({error}): {INSTALL}") from error
    return text


def run(
    work: Callable[..., Result], tasks: Tasks, address: str, shared: Path | None
) -> Iterator[tuple[int, list[Result]]]:
    """The results of the tasks; of a task whose worker died another worker's."""
    seen_here = (shared, shared.read_text("utf-8")) if shared else None
    with _connection(address) as client:
        _check_imports(client, work)
        left = iter(tasks)
        running: set[Future] = set()
        while True:
            threads = _threads(client)
            for task in itertools.islice(
                left, max(0, max(1, TASKS_PER_THREAD * threads) - len(running))
            ):
                call = functools.partial(
                    _task_of_worker, seen_here, work, *task
                )  # not looked into by Dask
                running.add(
                    client.submit(call, pure=False)
                )  # two calls are never taken for the same
            if not running:
                return
            finished = _finished(running)
            if not finished and not threads and not _threads(client):
                raise BadInput(
                    f"the scheduler at {address} has had no worker for {PATIENCE_S} s: start some with "
                    f"python -m dask worker {address} --nworkers 2 --nthreads 1"
                )
            running -= finished
            for future in finished:
                yield future.result()


@contextmanager
def _connection(address: str) -> Iterator["Client"]:
    """A client of the scheduler; what goes wrong with the cluster meanwhile is a BadInput."""
    from distributed import Client, KilledWorker

    logging.getLogger("distributed.client").setLevel(
        logging.CRITICAL
    )  # a lost scheduler is told below
    try:
        asyncio.run(_greet(address))
        client = Client(address, timeout=CONNECT_S)
    except OSError as error:
        hint = (
            "is it started (python -m dask scheduler), and is this its port, not the dashboard's?"
        )
        raise BadInput(f"no Dask scheduler answers at {address}: {hint}") from error
    try:
        with client:
            yield client
    except CancelledError as error:
        raise BadInput(
            f"the scheduler at {address} was lost: start it and give the same command again"
        ) from error
    except KilledWorker as error:
        died = f"{error.allowed_failures + 1} workers died one after the other, the last at {error.last_worker.address}"
        raise BadInput(f"{died}: see what they printed; each may need 1 GiB of memory") from error
    except ImportError as error:
        place = "start its scheduler and its workers with python -m dask in this project's folder and environment"
        raise BadInput(
            f"the cluster at {address} cannot run this project ({error}): {place}"
        ) from error


async def _greet(address: str) -> None:
    """OSError unless a Dask scheduler answers. (Client waits for ever for the answer of a web server.)"""
    from distributed.comm import connect

    (await asyncio.wait_for(connect(address), CONNECT_S)).abort()


def _check_imports(client: "Client", work: Callable[..., object]) -> None:
    """ImportError when the scheduler or a worker lacks a module. (A worker ends when it cannot load a task.)"""
    from distributed.protocol.pickle import dumps

    needed = dumps((_task_of_worker, work))
    client.run_on_scheduler(pickle.loads, needed)
    for answer in client.run(pickle.loads, needed, on_error="return").values():
        if isinstance(answer, ImportError):
            raise answer


def _threads(client: "Client") -> int:
    """Of all workers now. CancelledError, as for a future, when the scheduler is lost."""
    try:
        return sum(client.nthreads().values())
    except OSError as error:
        raise CancelledError from error


def _finished(running: set["Future"]) -> set["Future"]:
    """At least one, or none after PATIENCE_S."""
    from distributed import wait

    try:
        return set(wait(running, timeout=PATIENCE_S, return_when="FIRST_COMPLETED").done)
    except TimeoutError:
        return set()


_one_task = (
    threading.Lock()
)  # a process has one set of warning filters: threads of a worker take turns


def _task_of_worker(
    shared: tuple[Path, str] | None, work: Callable[..., Result], start: int, calls: Calls
) -> tuple[int, list[Result]]:
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
            f"the worker on {platform.node()} does not see {file} as it is here: all workers need the same "
            "input and output folders, under the same paths"
        )
