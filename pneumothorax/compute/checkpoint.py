"""Checkpoints: plain types and tensors, written whole, loaded with weights_only and checked."""

import io
import zipfile
from pathlib import Path
from typing import Any

import torch

from pneumothorax.errors import BadInput
from pneumothorax.pipeline import atomic

FORMAT = 3


def save(path: Path, state: dict[str, Any], *, keep: Path | None = None) -> None:
    """Write `state` (plain types and tensors) atomically; what was there before is kept as `keep`."""
    whole = io.BytesIO()  # a signal during torch.save to a file ends in an error of its own
    torch.save({"format": FORMAT, **state}, whole)
    atomic.write(path, lambda file: file.write(whole.getbuffer()), keep=keep)


def load(path: Path) -> dict[str, Any]:
    """Nothing is unpickled but tensors and plain types. Raises BadInput for a missing, damaged or foreign file."""
    if not path.is_file():
        raise BadInput(f"{path} does not exist: run 02_train.py first")
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()  # torch does not notice flipped bytes
        if broken is not None:
            raise BadInput(f"{path} is damaged (at {broken})")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"{path} is not a whole checkpoint ({type(error).__name__})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise BadInput(f"{path} is not a checkpoint of this project (format {FORMAT})")
    return state


def load_weights(network: torch.nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    """Raises BadInput as `check_weights` does."""
    check_weights(network, state, path)
    network.load_state_dict(state)


def check_weights(network: torch.nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    """Exact names and shapes and finite values only. Raises BadInput with the difference."""
    own = network.state_dict()
    wrong = sorted(set(own) ^ set(state)) or [
        name for name in own if own[name].shape != state[name].shape
    ]
    if wrong:
        raise BadInput(
            f"{path} belongs to another network: {len(wrong)} weights differ, such as {wrong[:3]}"
        )
    if not is_finite(state):
        raise BadInput(f"{path} holds weights that are not finite")


def is_finite(state: dict[str, torch.Tensor]) -> bool:
    return all(
        bool(torch.isfinite(value).all()) for value in state.values() if value.is_floating_point()
    )
