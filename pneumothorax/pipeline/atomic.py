"""Whole files or none: write under a temporary name, fsync, rename.

A reader never sees half a file. A process killed at any moment leaves at most a
`.<name>.<random>.tmp` behind. The next writer of that file removes it; in folders of
thousands of files, the stage that owns the folder does so when it starts.
"""

import errno
import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

# Of fsync: the data did not reach the disk. Any other error says that the disk has no fsync.
LOST = (errno.EIO, errno.ENOSPC, errno.EDQUOT)


def write(
    path: Path, fill: Callable[[BinaryIO], object], *, sync: bool = True, keep: Path | None = None
) -> None:
    """Let `fill` write a temporary file next to `path`, then rename it to `path`.

    Args:
        sync: False skips the fsync, for files whose hash is recorded elsewhere and that
            are made again if it does not match. The image cache has thousands of them;
            a power cut costs only the last ones.
        keep: the name that the previous file gets.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    if sync:
        sweep(path.parent, path.name)
    try:
        with _create(temporary) as file:
            fill(file)
            file.flush()
            if sync:
                _fsync(file)
        if keep is not None and path.exists():
            path.replace(keep)  # if killed here, the previous file is at `keep`
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # writing and fsync do not name their file
        raise


def _fsync(file: BinaryIO) -> None:
    """fsync, where the disk has it: damage by a power cut is noticed by hashes later."""
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno in LOST:
            raise
        say_once(
            f"note: this disk has no fsync ({error.strerror}): after a power cut, the last files "
            "may have to be made again"
        )


@functools.cache
def say_once(line: str) -> None:
    """Print a line to stderr, if this process has not printed it before."""
    print(line, file=sys.stderr, flush=True)


def _create(path: Path) -> BinaryIO:
    """Open a new file. Making its folder only on failure saves a check per file."""
    try:
        return open(path, "wb")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "wb")


def sweep(folder: Path, name: str = "*") -> None:
    """Remove temporary files that killed processes left. Nobody else may be writing."""
    for leftover in folder.glob(f".{name}.*.tmp"):
        leftover.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes, *, sync: bool = True) -> None:
    write(path, lambda file: file.write(data), sync=sync)


def write_text(path: Path, text: str) -> None:
    """UTF-8; LF line ends on every platform."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Equal values give equal bytes: keys are sorted, the layout is fixed."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
