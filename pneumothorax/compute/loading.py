"""The life and death of DataLoader workers."""

import multiprocessing
import signal
from collections.abc import Collection
from multiprocessing.process import BaseProcess

import cv2

GRACE_S = 60


def start_worker(_: int) -> None:
    """One thread per DataLoader worker: OpenCV would start one per core in each. Ctrl-C is for the main process."""
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def start_training_worker(number: int) -> None:
    """A worker that lives on for a while after SIGTERM, which a cluster sends to all processes at once.

    The main process ends its step first, and needs the images of it.
    """
    start_worker(number)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_S))  # the alarm is the end


def end_workers(*, others: Collection[BaseProcess]) -> None:
    """Kill the child processes but `others`: one that hangs or outlasts SIGTERM would be waited for at the end."""
    told = getattr(
        signal, "SIGCHLD", None
    )  # not on Windows; PyTorch would take it for another worker's death
    handler = None if told is None else signal.signal(told, signal.SIG_DFL)
    for child in multiprocessing.active_children():
        if child not in others:
            child.kill()
            child.join()
    if told is not None:
        signal.signal(told, handler)
