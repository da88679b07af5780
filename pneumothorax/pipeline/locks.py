"""Locks on parts of the output folder, and free space on its disk."""

import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import filelock

from pneumothorax.errors import BadInput, OutputLocked
from pneumothorax.pipeline.atomic import say_once

FOLDER = ".locks"
MARKER = ".marker"  # the suffix of a file that is itself a lock, by its existence
TAKEOVER_S = 1  # filelock removes the marker of a dead process, and takes the lock at its next try


@contextmanager
def lock(output: Path, name: str, *, patience_s: float = 0, alone: bool = False) -> Iterator[Path]:
    """Lock the part `name` of the output folder; yields the file that names the holder.

    The operating system drops the lock when its process ends, so a dead holder blocks
    nobody. On a disk without locks the holder leaves a file behind if it is killed. That
    file is removed if the process ran on this machine, or if the user says that it is gone.

    Args:
        alone: no other process works on the output (--no-lock). Without effect on a
            disk with locks.

    Raises OutputLocked, naming the holder, if another process still has it after
    `patience_s`.
    """
    folder = output / FOLDER
    holder = folder / f"{name}.holder.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = _acquire(folder / f"{name}.lock", patience_s, alone=alone)
    except filelock.Timeout as error:
        message = f"{output} is in use for {name} by {_holder(holder)}: wait for it, or stop it"
        if error.lock_file.endswith(MARKER):
            message += (
                ". The disk has no locks: if that process is gone, and no other one works on "
                "this output, add --no-lock"
            )
        raise OutputLocked(message) from error
    except OSError as error:
        raise BadInput(f"cannot write to {output}: {error.strerror or error}") from error
    try:
        started = datetime.now(UTC).isoformat(timespec="seconds")
        holder.write_text(
            json.dumps(
                {
                    "pid": os.getpid(),
                    "host": platform.node(),
                    "started": started,
                    "script": Path(sys.argv[0]).name,
                }
            ),
            "utf-8",
        )
        yield holder
    finally:
        holder.unlink(missing_ok=True)
        held.release()


def check_room(output: Path, needed_bytes: int) -> None:
    """Raises BadInput if the disk of `output` has less free space than needed."""
    free_bytes = shutil.disk_usage(output).free
    if needed_bytes > free_bytes:
        needed, free = (-(-size // 2**20) for size in (needed_bytes, free_bytes))
        raise BadInput(
            f"{output}: about {needed} MiB are needed, {free} are free: "
            "free some space, or choose another --output"
        )


def is_held(output: Path, name: str, *, alone: bool = False) -> bool:
    """Whether another process has locked this part of the output folder."""
    try:
        with lock(output, name, alone=alone):
            return False
    except OutputLocked:
        return True


def _acquire(path: Path, patience_s: float, *, alone: bool) -> filelock.BaseFileLock:
    """The operating system's lock on a file, or a marker where the disk has no locks.

    Raises filelock.Timeout if another process has it; OSError if there can be no file.
    """
    held = filelock.FileLock(path, timeout=patience_s, fallback_to_soft=False)
    try:
        held.acquire()
        return held
    except OSError as error:
        if isinstance(error, filelock.Timeout) or error.filename is not None:
            raise
        say_once(
            f"note: this disk has no locks ({error.strerror}): files in {path.parent} keep other "
            "processes out"
        )
    marker = filelock.SoftFileLock(
        path.with_name(path.name + MARKER), timeout=max(patience_s, TAKEOVER_S)
    )
    if alone:
        marker.break_lock()
    marker.acquire()
    return marker


def _holder(path: Path) -> str:
    try:
        body = json.loads(path.read_text("utf-8"))
        of = f" ({body['script']})" if "script" in body else ""  # older versions did not say
        return f"process {body['pid']} on {body['host']}{of}, started {body['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
