"""The process's own state: seeds, the device and its memory. Called by stages, never by the package."""

import platform
import sys
from typing import Any

import torch

from pneumothorax.errors import BadConfig


def seed_everything(seed: int) -> None:
    """Weight initialisation draws from torch's global generator; everything else has a generator of its own."""
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict[str, Any]:
    """Of torch's generators, which dropout and the sampling of instances draw from; nothing else global is used."""
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Go on with the random numbers of `random_state`."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)


def device(name: str = "auto", *, local_rank: int | None = None) -> torch.device:
    """`auto` takes a CUDA device where there is one. Raises BadConfig for an unknown or absent one.

    Args:
        local_rank: of several processes on this machine, to give each a GPU of its own.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and local_rank is not None:
        name = f"cuda:{local_rank}"
    try:
        found = torch.device(name)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise BadConfig(
            f"--device {name} cannot be used here: {str(error).splitlines()[0]}"
        ) from error
    return found


def device_name(device: torch.device) -> str:
    """The GPU's name, or the kind of CPU and the threads computing on it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def peak_memory_mib(device: torch.device) -> float | None:
    """The most memory used so far: a GPU's allocated tensors, or this whole process; None where unknown (Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (
        peak / 2**10 if sys.platform == "linux" else peak / 2**20
    )  # Linux counts in KiB, macOS in bytes
