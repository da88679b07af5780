"""Several devices: each has a separate process that takes one fold after the other."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO

from pneumothorax.compute import distributed
from pneumothorax.compute.interruption import StopRequest
from pneumothorax.errors import BadConfig

POLL_S = 0.1


def train(folds: Sequence[int], devices: Sequence[str], *, workers: int, stop: StopRequest) -> int:
    """Run this process's own command for each fold, on the first device that is free.

    Lines of the processes are printed with their fold in front, progress bars left out.
    Returns the first exit code that is not 0, else 0; after it no further fold starts.
    When asked to stop, the processes are, and raises Stopped once they have saved. Raises
    BadConfig under torchrun, which already has a process for each device.
    """
    if distributed.is_launched():
        raise BadConfig("--device: under torchrun give one device, or auto")
    waiting, running = list(folds), dict[str, subprocess.Popen[bytes]]()
    each = max(workers // len(devices), min(workers, 1))
    code, asked = 0, False
    while running or (waiting and not code):
        for device in devices:
            if device not in running and waiting and not code and not stop.is_due():
                running[device] = _start(waiting.pop(0), device, workers=each)
        time.sleep(POLL_S)
        if stop.is_due():
            waiting.clear()
            if not asked:
                for process in running.values():
                    process.send_signal(signal.SIGTERM)
            asked = True
        for device, process in list(running.items()):
            if process.poll() is not None:
                code = code or process.returncode
                del running[device]
    if asked:
        stop.leave()
    return code


def _start(fold: int, device: str, *, workers: int) -> subprocess.Popen[bytes]:
    own = [word for word in sys.argv if word != "--overwrite"]
    flags = ["--fold", str(fold), "--device", device, "--workers", str(workers)]
    print(f"fold {fold} on {device}", flush=True)
    process = subprocess.Popen(  # noqa: S603 - this process's own command
        [sys.executable, *own, *flags],  # of a repeated flag, the last one counts
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    threading.Thread(target=_pass_on, args=(process.stdout, f"fold {fold}"), daemon=True).start()
    return process


def _pass_on(lines: IO[bytes], title: str) -> None:
    """Print what a process prints; a bar and its later versions end in a carriage return."""
    for line in lines:
        text = line.decode(errors="replace").rstrip().rsplit("\r", 1)[-1]
        if text:
            print(text if text.startswith(title) else f"{title}: {text}", flush=True)
