"""DataLoader workers: how they start, and what happens when one dies or hangs."""

import errno
import gc
import multiprocessing
import os
import re
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import queues
from typing import Self

import cv2

from pneumothorax.pipeline import stage

PATIENCE_S = 300  # a worker that needs longer for one batch hangs
MOST_WORKERS = 8
GRACE_S = 60  # a training worker survives SIGTERM for this long
# What PyTorch says where workers cannot hand over a batch, or die writing one.
NO_SHARED_MEMORY = re.compile(
    rf"torch_\d+.*(No space left|Success)|out of shared memory|exit code {errno.ENOSPC}\b"
)


def workers_per_process(workers: int) -> int:
    """How many loader workers each process starts, of --workers for this machine.

    torchrun's processes on a machine share them. More than MOST_WORKERS cost memory and
    start-up time, and feed no network faster.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(MOST_WORKERS, max(workers // processes, min(workers, 1)))


class DeadWorker(RuntimeError):
    """A DataLoader worker died, or took longer than PATIENCE_S for a batch (`hung`)."""

    def __init__(self, message: str, *, hung: bool) -> None:
        super().__init__(message)
        self.hung = hung


@contextmanager
def worker_deaths() -> Iterator[None]:
    """Turn PyTorch's RuntimeError for a dead or hung worker into a DeadWorker.

    PyTorch raises it from a signal handler, so it can surface at any line of the main process.
    Raises OSError, as other users of shared memory do, where workers have no room in it.
    """
    try:
        yield
    except RuntimeError as error:
        if NO_SHARED_MEMORY.search(f"{error} {error.__cause__}"):
            full = os.strerror(errno.ENOSPC)
            raise OSError(errno.ENOSPC, full, str(stage.SHARED_MEMORY)) from error
        if "DataLoader" not in str(error):
            raise
        raise DeadWorker(str(error), hung="timed out" in str(error)) from error


class Workers:
    """with Workers() as workers: every child process started inside is dead afterwards.

    A worker that hangs or outlives SIGTERM would otherwise keep the process from ending.
    """

    def __enter__(self) -> Self:
        self._others = multiprocessing.active_children()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        # Loaders without workers end here. Left to a later collection, they would end at exit,
        # or in a worker of the next fold, with a traceback.
        gc.collect()

    def kill(self) -> None:
        """Kill the child processes started inside, and wait until they are gone."""
        # PyTorch's handler of SIGCHLD would report these deaths. Windows has no SIGCHLD.
        child_died = getattr(signal, "SIGCHLD", None)
        handler = None if child_died is None else signal.signal(child_died, signal.SIG_DFL)
        for child in multiprocessing.active_children():
            if child not in self._others:
                child.kill()
                child.join()
        if child_died is not None:
            signal.signal(child_died, handler)


def start_worker(_: int) -> None:
    """worker_init_fn: one thread per worker, and Ctrl-C is left to the main process.

    OpenCV would start one thread per core in each worker.
    """
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Else a batch that cannot be sent is dropped, and the main process waits for it.
    queues.Queue._on_queue_feeder_error = staticmethod(_end_worker)  # type: ignore[attr-defined]


def _end_worker(error: Exception, _: object) -> None:
    if NO_SHARED_MEMORY.search(str(error)):
        os._exit(errno.ENOSPC)
    traceback.print_exception(error)
    os._exit(1)


def start_training_worker(number: int) -> None:
    """worker_init_fn: as `start_worker`, and SIGTERM ends the worker GRACE_S later.

    A cluster sends SIGTERM to all processes at once. The main process then finishes its
    step, for which it needs images from the workers.
    """
    start_worker(number)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_S))  # SIGALRM ends the process
