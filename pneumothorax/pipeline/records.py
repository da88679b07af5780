"""What a finished stage read and wrote, by hash: no stale or damaged file is used.

Each stage writes a JSON record next to its tables: its settings and the sha256 of the
files it read and wrote. `is_current` tells the stage itself whether it has anything to
do; later stages call `require`.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pneumothorax.errors import BadInput
from pneumothorax.pipeline import atomic


@dataclass(frozen=True)
class Record:
    """A stage's record: its path below the output folder, and the command behind it."""

    path: str
    made_by: str


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hashes(output: Path, paths: Iterable[str]) -> dict[str, str]:
    """{path below output: sha256} of the paths that exist."""
    return {path: sha256(output / path) for path in sorted(paths) if (output / path).is_file()}


def write(
    output: Path,
    record: Record,
    *,
    settings: dict[str, Any],
    inputs: dict[str, str],
    outputs: Iterable[str],
    **facts: Any,
) -> None:
    """Write the record of a finished stage.

    Args:
        inputs: {name: sha256} of what the stage read.
        outputs: paths below `output` of the files it wrote.
        facts: anything else worth keeping.
    """
    sealed = {path: sha256(output / path) for path in outputs}
    body = {
        "made_by": record.made_by,
        "settings": settings,
        "inputs": inputs,
        "outputs": sealed,
        **facts,
    }
    atomic.write_json(output / record.path, {**body, "seal": seal(body)})


def seal(body: dict[str, Any]) -> str:
    """The hash of a record's own content: shows that a record was edited or damaged."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def read(output: Path, record: Record) -> dict[str, Any]:
    path = output / record.path
    if not path.is_file():
        raise BadInput(f"{path} does not exist: run {record.made_by} first")
    try:
        body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if body.pop("seal") != seal(body):
            raise ValueError("the seal does not match")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput(f"{path} is damaged: run {record.made_by} again") from error
    return body


def is_current(
    output: Path, record: Record, *, settings: dict[str, Any], inputs: dict[str, str]
) -> bool:
    """Whether the record has these settings and inputs, and its files are unchanged."""
    try:
        body = read(output, record)
    except BadInput:
        return False
    same = body["settings"] == settings and body["inputs"] == inputs
    return same and hashes(output, body["outputs"]) == body["outputs"]


def require(output: Path, record: Record, inputs: dict[str, str] | None = None) -> dict[str, Any]:
    """The record, if its files are unchanged and were made from the current inputs.

    Args:
        inputs: the current {name: sha256}. The record may have further inputs.

    Otherwise raises BadInput that names the file and the command to run.
    """
    body = read(output, record)
    for path, expected in body["outputs"].items():
        if not (output / path).is_file():
            raise BadInput(f"{output / path} is missing: run {record.made_by} again")
        if sha256(output / path) != expected:
            raise BadInput(
                f"{output / path} is not what {record.made_by} wrote: run {record.made_by} again"
            )
    for name, current in (inputs or {}).items():
        if body["inputs"].get(name) != current:
            raise BadInput(f"{name} changed since {record.made_by} ran: run {record.made_by} again")
    return body
