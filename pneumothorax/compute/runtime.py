"""What this process computes with: its memory and its random numbers."""

import ctypes
import re
import sys
from typing import Any

import torch

# Parameters of glibc's mallopt, from its malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# CUDA, MPS and the CPU's allocators in words; cuDNN and cuBLAS by status, such as
# CUBLAS_STATUS_ALLOC_FAILED and CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED.
OUT_OF_MEMORY = re.compile(r"out of memory|allocate memory|not enough memory|_ALLOC(ATION)?_FAILED")


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
