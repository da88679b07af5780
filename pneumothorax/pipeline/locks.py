"""Locks on parts of the output folder, and free space on its disk."""

import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import filelock

from pneumothorax.errors import BadInput, OutputLocked

FOLDER = ".locks"


@contextmanager
def lock(output: Path, name: str, *, patience_s: float = 0) -> Iterator[Path]:
    """Lock the part `name` of the output folder; yields the file that names the holder.

    Raises OutputLocked, naming the holder, if another process still has it after
    `patience_s`. The operating system drops the lock when its process ends, so a dead
    holder blocks nobody.
    """
    folder = output / FOLDER
    holder = folder / f"{name}.holder.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = filelock.FileLock(folder / f"{name}.lock", timeout=patience_s)
        held.acquire()
    except filelock.Timeout as error:
        raise OutputLocked(
            f"{output} is in use for {name} by {_holder(holder)}: wait for it, or stop it"
        ) from error
    except OSError as error:
        raise BadInput(f"cannot write to {output}: {error.strerror or error}") from error
    try:
        started = datetime.now(UTC).isoformat(timespec="seconds")
        holder.write_text(
            json.dumps({"pid": os.getpid(), "host": platform.node(), "started": started}), "utf-8"
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


def is_held(output: Path, name: str) -> bool:
    """Whether another process has locked this part of the output folder."""
    try:
        with lock(output, name):
            return False
    except OutputLocked:
        return True


def _holder(path: Path) -> str:
    try:
        body = json.loads(path.read_text("utf-8"))
        return f"process {body['pid']} on {body['host']}, started {body['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
