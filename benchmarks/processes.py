"""The memory of a process and all its descendants. Linux only (reads /proc)."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path


def peak(process: subprocess.Popen[bytes], measure: Callable[[int], int]) -> int:
    """Wait for the process to end; the highest `measure(process id)` until then."""
    highest = 0
    while process.poll() is None:
        highest = max(highest, measure(process.pid))
        time.sleep(0.1)
    return highest


def proportional_set_size(root: int) -> int:
    """Bytes of the family now; a page shared by n processes counts 1/n in each."""
    return sum(_bytes(pid, "smaps_rollup", "Pss:") for pid in family(root))


def highest_resident_size(root: int) -> int:
    """The most bytes that any one process of the family has had so far."""
    return max(_bytes(pid, "status", "VmHWM:") for pid in family(root))


def family(root: int) -> set[int]:
    """The ids of a process and of all its descendants."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                after_name = (entry / "stat").read_text().rsplit(")", 1)[1]
                parents[int(entry.name)] = int(after_name.split()[1])
            except OSError:
                continue
    found = {root}
    while grown := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= grown
    return found


def _bytes(pid: int, file: str, field: str) -> int:
    """A size of /proc in bytes; 0 where the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(field)), 0)
