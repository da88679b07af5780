"""An append-only list of finished items: a long stage that was killed resumes from it.

Each line is a JSON object with a `key` that says what the item was made from, and a
checksum. A line that was cut short by a kill, or damaged since, is dropped, and its
item is made again.
"""

import json
import zlib
from pathlib import Path
from typing import Any

from pneumothorax.pipeline import atomic


class Journal:
    """Entries by name, including earlier processes', and a file to append to.

    with Journal(path) as journal:
        known = journal.entries.get("a.dcm")
        journal.append("a.dcm", {"key": ..., ...})
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> "Journal":
        self.entries = read(self.path)
        lines = (_line(name, entry) for name, entry in self.entries.items())
        atomic.write_text(self.path, "".join(lines))  # drops a torn last line
        self._file = open(self.path, "a", encoding="utf-8", newline="\n")
        return self

    def append(self, name: str, entry: dict[str, Any]) -> None:
        self.entries[name] = entry
        self._file.write(_line(name, entry))
        self._file.flush()

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read(path: Path) -> dict[str, dict[str, Any]]:
    """name -> its last entry; {} if the file does not exist."""
    entries: dict[str, dict[str, Any]] = {}
    if not path.exists():
        return entries
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            whole = entry.pop("checksum") == _checksum(entry)
            name = entry.pop("name")
        except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
            continue
        if whole:
            entries[name] = entry
    return entries


def _line(name: str, entry: dict[str, Any]) -> str:
    body = {"name": name, **entry}
    return json.dumps({**body, "checksum": _checksum(body)}) + "\n"


def _checksum(body: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(body).encode())
