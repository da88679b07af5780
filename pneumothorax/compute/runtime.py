"""What this process computes with: device, memory, random numbers, 16 or 32 bits."""

import ctypes
import platform
import sys
from typing import Any

import torch

from pneumothorax.errors import BadConfig

# Parameters of glibc's mallopt, from its malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


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


def device(name: str = "auto", *, local_rank: int | None = None) -> torch.device:
    """The device `name`; `auto` is a CUDA device if there is one, else the CPU.

    Raises BadConfig for a device that is unknown or absent.

    Args:
        local_rank: this process's number on this machine, to give each process its own GPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and local_rank is not None:
        name = f"cuda:{local_rank}"
    try:
        found = torch.device(name)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise BadConfig(f"--device {name} cannot be used here: {reason}") from error
    return found


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's architecture and the number of threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


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


def autocast(device: torch.device, *, enabled: bool) -> torch.autocast:
    """A reusable context in which convolutions and matrix products run in 16 bits."""
    return torch.autocast(device.type, dtype=half(device), enabled=enabled)


def loss_scaler(device: torch.device, *, enabled: bool) -> torch.amp.GradScaler:
    """Scales losses in fp16, whose gradients would vanish. Does nothing in bf16 and fp32."""
    return torch.amp.GradScaler(device.type, enabled=enabled and half(device) is torch.float16)


def half(device: torch.device) -> torch.dtype:
    """bf16 on CPUs and on CUDA devices that have it (Ampere and newer), else fp16."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def computes_in_bf16(device: torch.device) -> bool:
    """Whether the device has units for bf16; others emulate it slowly.

    GPUs have them from Ampere on, CPUs with AVX512-BF16 or AMX.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def predicts_in_bf16(precision: str, device: torch.device) -> bool:
    """Whether `--precision` (auto, fp32 or bf16) means bf16 on this device."""
    return precision == "bf16" or (precision == "auto" and computes_in_bf16(device))
