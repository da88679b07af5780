"""Memory of a process, as Linux counts it, and the errors that say that it is not enough."""

import re
from pathlib import Path

import torch

# As PyTorch 2.13, cuDNN 9 and cuBLAS word them.
OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    torch.AcceleratorError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("FIND was unable to find an engine to execute this computation"),
    RuntimeError("Invalid buffer size: 9.75 GiB"),  # MPS
    RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, max allowed: 9.07 GB)."),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8589934592"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8589934592"),
    MemoryError("Unable to allocate 1.00 GiB for an array"),
]
STATUS = Path("/proc/self/status")


def peak_mib():
    """The most memory that this process has taken so far, in MiB.

    Not ru_maxrss: a new process inherits it from the tests, where it may be large.
    """
    return int(re.search(r"VmHWM:\s+(\d+)", STATUS.read_text())[1]) / 1024
