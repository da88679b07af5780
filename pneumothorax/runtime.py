"""The process's own state: seeds and the device. Called by stages, never by the package."""

import torch

from pneumothorax.errors import BadConfig


def seed_everything(seed: int) -> None:
    """Weight initialisation draws from torch's global generator; everything else has a generator of its own."""
    torch.manual_seed(seed)


def device(name: str = "auto") -> torch.device:
    """`auto` takes a CUDA device where there is one. Raises BadConfig for an unknown or absent one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(name)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise BadConfig(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from error
    return found
