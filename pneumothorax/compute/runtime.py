"""What this process computes with: its memory and its random numbers."""

import ctypes
import math
import re
import sys
from collections.abc import Callable
from typing import Any

import torch

# Parameters of glibc's mallopt, from its malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# CUDA, MPS and the CPU's allocators in words; cuDNN and cuBLAS by status, such as
# CUBLAS_STATUS_ALLOC_FAILED and CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED; cuDNN also
# where no algorithm's workspace fits (pytorch#108645), MPS where one tensor is too large for it.
OUT_OF_MEMORY = re.compile(
    r"out of memory|allocate memory|not enough memory|_ALLOC(ATION)?_FAILED"
    r"|unable to find an engine|Invalid buffer size"
)
MEMORY_MARGIN = 0.9  # of the free memory: the caching allocator loses some between its blocks


def keep_freed_memory() -> None:
    """Have glibc keep up to 1 GiB of freed memory for the next allocation (Linux).

    A training step on a CPU allocates the same large tensors again and again. By default
    each goes back to the system, which clears its pages before it hands them out again:
    a good part of a step's time (benchmarks/freed_memory.py).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, 1 << 30)


def seed_everything(seed: int) -> None:
    """Seed torch's global generator, from which weights are initialised.

    Everything else has its own generator.
    """
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of torch's generators, from which dropout and detection networks draw.

    No other global generator is used.
    """
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore what `random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)


def peak_memory_mib(device: torch.device) -> float | None:
    """Peak memory so far: of the GPU's tensors, or of this process; None on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak / 2**10 if sys.platform == "linux" else peak / 2**20


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of PyTorch, cuDNN, cuBLAS or Python says that memory was not enough."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(OUT_OF_MEMORY.search(str(error)))


def free_bytes(device: torch.device) -> int:
    """What this process can still allocate on a CUDA device, with its allocator's own reserve."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def fewest_parts(
    batch_size: int,
    peak_bytes: Callable[[int], int],
    available_bytes: float,
    *,
    processes: int = 1,
) -> int:
    """Into how few equal parts a batch must be cut so that one fits; of two images at least.

    Memory grows in proportion to the number of images, from a start: two trials give both.
    Where even two or four images do not fit, the answer is the largest number of parts.

    Args:
        batch_size: at least 2.
        peak_bytes: number of images -> what a training step with them allocates at its peak.
            It may raise that memory is not enough.
        processes: that share every part.
    """
    possible = [parts for parts in range(1, batch_size // 2 + 1) if batch_size % parts == 0]
    if len(possible) == 1:
        return 1
    try:
        two, four = peak_bytes(2), peak_bytes(4)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return possible[-1]
    per_image = (four - two) / 2
    start = two - 2 * per_image
    fitting = (
        parts
        for parts in possible
        if start + per_image * max(2, math.ceil(batch_size / parts / processes))
        <= MEMORY_MARGIN * available_bytes
    )
    return next(fitting, possible[-1])
