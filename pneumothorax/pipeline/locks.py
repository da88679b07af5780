"""Locks on parts of the output folder, and free space on its disk."""

import json
import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import filelock

from pneumothorax.errors import BadInput, OutputLocked
from pneumothorax.pipeline.atomic import say_once

FOLDER = ".locks"
POLL_S = 0.1


@contextmanager
def lock(output: Path, name: str, *, patience_s: float = 0, alone: bool = False) -> Iterator[Path]:
    """Lock the part `name` of the output folder; yields the file that names the holder.

    The operating system drops the lock when its process ends, so a dead holder blocks
    nobody. On a disk without locks the file itself is the lock: only one process can
    create it. A dead holder leaves it behind; it is replaced if that process ran on this
    machine, or if the user says that it is gone.

    Args:
        alone: no other process works on the output (--no-lock). Without effect on a
            disk with locks.

    Raises OutputLocked, naming the holder, if another process still has it after
    `patience_s`.
    """
    folder = output / FOLDER
    holder = folder / f"{name}.holder.json"
    in_use = f"{output} is in use for {name} by"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = _acquire(folder / f"{name}.lock", patience_s)
        if held is not None:
            holder.write_text(_this_process(), "utf-8")
        elif not _create(holder, patience_s, alone=alone):
            raise OutputLocked(
                f"{in_use} {_holder(holder)}: wait for it, or stop it. The disk has no locks: "
                "if that process is gone, add --no-lock"
            )
    except filelock.Timeout as error:
        raise OutputLocked(f"{in_use} {_holder(holder)}: wait for it, or stop it") from error
    except OSError as error:
        raise BadInput(f"cannot write to {output}: {error.strerror or error}") from error
    try:
        yield holder
    finally:
        holder.unlink(missing_ok=True)
        if held is not None:
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


def _acquire(path: Path, patience_s: float) -> filelock.BaseFileLock | None:
    """The operating system's lock on a file, or None where the disk has no locks.

    Raises filelock.Timeout if another process has it; OSError if there can be no file.
    """
    held = filelock.FileLock(path, timeout=patience_s, fallback_to_soft=False)
    try:
        held.acquire()
    except OSError as error:
        if isinstance(error, filelock.Timeout) or error.filename is not None:
            raise
        say_once(
            f"note: this disk has no locks ({error.strerror}): files in {path.parent} keep other "
            "processes out"
        )
        return None
    return held


def _create(holder: Path, patience_s: float, *, alone: bool) -> bool:
    """Create the file that names this process; False if that of another one stays."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            with open(holder, "x", encoding="utf-8") as file:
                file.write(_this_process())
            return True
        except FileExistsError:
            if alone or _is_dead(holder):
                holder.unlink(missing_ok=True)
            elif time.monotonic() >= deadline:
                return False
            else:
                time.sleep(POLL_S)


def _this_process() -> str:
    started = datetime.now(UTC).isoformat(timespec="seconds")
    return json.dumps({"pid": os.getpid(), "host": platform.node(), "started": started})


def _is_dead(holder: Path) -> bool:
    """Whether the process that the file names ran on this machine and has ended."""
    try:
        body = json.loads(holder.read_text("utf-8"))
        if body["host"] == platform.node() and os.name != "nt":  # there, signal 0 is Ctrl-C
            os.kill(body["pid"], 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return False


def _holder(path: Path) -> str:
    try:
        body = json.loads(path.read_text("utf-8"))
        return f"process {body['pid']} on {body['host']}, started {body['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
