"""Several devices: each has a separate process that takes one fold after the other."""

import itertools
import multiprocessing
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import IO, NamedTuple

import torch

from pneumothorax.compute import devices, distributed, interruption, precisions
from pneumothorax.compute.interruption import StopRequest
from pneumothorax.errors import BadConfig

POLL_S = 0.1
# Exit codes, of a process that had no handler yet and of one that left in order.
STOPPED = tuple(code for number in interruption.SIGNALS for code in (-number, 128 + number))
LAST_LINES_S = 5  # of an ended process; what a loader worker of it left open must not block


def first_lines(names: Sequence[str], own: torch.device, precision: str) -> str:
    """What each of the named devices computes with, or this process's own if it is the only one.

    Several are tried in a process that ends: this one must hold no card, on which it would
    keep memory, and which in exclusive mode serves one process alone.

    Raises BadConfig as devices.choose does; under torchrun, which already has a process for each
    device; and on Windows, where a process cannot ask another one to save and leave.
    """
    if len(names) == 1:
        return precisions.first_line(own, precision, training=True)
    if sys.platform == "win32":
        raise BadConfig(
            "--device: on Windows give one device: one command for each card, with its --fold"
        )
    if distributed.is_launched():
        raise BadConfig("--device: under torchrun give one device, or auto")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return "\n".join(pool.map(_first_line, names, itertools.repeat(precision)))


def _first_line(name: str, precision: str) -> str:
    return precisions.first_line(devices.choose(name), precision, training=True)


def train(folds: Sequence[int], names: Sequence[str], *, workers: int, stop: StopRequest) -> int:
    """Run this process's own command for each fold, on the first device that is free.

    A device that is named twice takes two folds at a time.
    Lines of the processes are printed with their fold in front, progress bars left out.
    Returns the first exit code that is not 0, else 0; after it no further fold starts.
    When asked to stop, the processes are, and raises Stopped once they have saved, unless
    one of them failed.
    """
    waiting, running = list(folds), dict[int, _Running]()  # by the place in `names`
    each = max(workers // len(names), min(workers, 1))
    code, asked = 0, False
    while running or (waiting and not code):
        for place, device in enumerate(names):
            if place not in running and waiting and not code and not stop.is_due():
                running[place] = _start(waiting.pop(0), device, workers=each)
        time.sleep(POLL_S)
        if stop.is_due():
            waiting.clear()
            if not asked:
                for one in running.values():
                    one.process.send_signal(signal.SIGTERM)
            asked = True
        for place, one in list(running.items()):
            if one.process.poll() is not None:
                one.printing.join(LAST_LINES_S)
                del running[place]
                if one.process.returncode and not (asked and one.process.returncode in STOPPED):
                    failed = _failed(one)
                    code = code or failed
    if asked and not code:
        stop.leave()
    return code


class _Running(NamedTuple):
    """The process of a fold, and the thread that prints its lines."""

    fold: int
    process: subprocess.Popen[bytes]
    printing: threading.Thread


def _start(fold: int, device: str, *, workers: int) -> _Running:
    own = [word for word in sys.argv if word not in ("--overwrite", "--no-lock")]
    flags = ["--fold", str(fold), "--device", device, "--workers", str(workers)]
    print(f"fold {fold} on {device}", flush=True)
    process = subprocess.Popen(  # noqa: S603 - this process's own command
        [sys.executable, *own, *flags],  # of a repeated flag, the last one counts
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    lines = (process.stdout, f"fold {fold}")
    printing = threading.Thread(target=_pass_on, args=lines, daemon=True)
    printing.start()
    return _Running(fold, process, printing)


def _failed(one: _Running) -> int:
    """Say which fold failed -> its exit code, of a signal as a shell would say it."""
    code = int(one.process.returncode)
    if code > 0:
        print(f"fold {one.fold} failed with exit code {code}", file=sys.stderr, flush=True)
        return code
    name = signal.Signals(-code).name
    print(f"fold {one.fold} was ended by {name}", file=sys.stderr, flush=True)
    return 128 - code


def _pass_on(lines: IO[bytes], title: str) -> None:
    """Print what a process prints; a bar and its later versions end in a carriage return."""
    for line in lines:
        text = line.decode(errors="replace").rstrip().rsplit("\r", 1)[-1]
        if text:
            print(text if text.startswith(title) else f"{title}: {text}", flush=True)
