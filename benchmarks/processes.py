"""What a process and all that descend from it take of memory. Linux only (reads /proc)."""

from pathlib import Path


def family(root: int) -> set[int]:
    """Ids of a process and of all that descend from it."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int(
                    (entry / "stat").read_text().rsplit(")", 1)[1].split()[1]
                )
            except OSError:
                continue
    found = {root}
    while grown := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= grown
    return found


def proportional_set_size(root: int) -> int:
    """Bytes of all of them now; shared pages are counted once, in parts."""
    return sum(_bytes(pid, "smaps_rollup", "Pss:") for pid in family(root))


def highest_resident_sizes(root: int) -> dict[int, int]:
    """The most bytes that each of them has had so far, by process id."""
    return {pid: _bytes(pid, "status", "VmHWM:") for pid in family(root)}


def _bytes(pid: int, file: str, field: str) -> int:
    """0 where the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(field)), 0)
