"""Memory of a process, as Linux counts it."""

import re
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_mib():
    """The most memory that this process has taken so far, in MiB.

    Not ru_maxrss: a new process inherits it from the tests, where it may be large.
    """
    return int(re.search(r"VmHWM:\s+(\d+)", STATUS.read_text())[1]) / 1024
