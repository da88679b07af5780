"""Whole files or none: write under a temporary name, fsync, rename.

A reader never sees half a file. A run killed at any moment leaves at most a `.<name>.<random>.tmp` behind, which the
next writer of that file sweeps up (in folders of thousands of files: the stage that owns the folder, when it starts).
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4


def write(
    path: Path, fill: Callable[[BinaryIO], object], *, sync: bool = True, keep: Path | None = None
) -> None:
    """Open a temporary file beside `path`, let `fill` write it, and rename it to `path`.

    sync=False leaves out the fsync, for files whose hash is recorded elsewhere and that are made again when it
    does not match (the image cache: thousands of files, and a power cut costs only those).
    keep: where the file that was there before goes.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    if sync:
        sweep(path.parent, path.name)
    try:
        with _create(temporary) as file:
            fill(file)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        if keep is not None and path.exists():
            path.replace(keep)  # killed here, the file is found under the name it is kept as
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _create(path: Path) -> BinaryIO:
    """A new file, open for writing. Its folder is made where it is missing: to ask first costs at every file."""
    try:
        return open(path, "wb")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "wb")


def sweep(folder: Path, name: str = "*") -> None:
    """Remove what killed runs left half written of files that only this process may write now."""
    for leftover in folder.glob(f".{name}.*.tmp"):
        leftover.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes, *, sync: bool = True) -> None:
    write(path, lambda file: file.write(data), sync=sync)


def write_text(path: Path, text: str) -> None:
    """UTF-8 with LF line ends on every platform."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Sorted keys and a fixed layout: equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
