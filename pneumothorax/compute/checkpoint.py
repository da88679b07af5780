"""Checkpoints: plain types and tensors, written atomically, loaded with weights_only, checked."""

import io
import zipfile
from pathlib import Path
from typing import Any

import torch

from pneumothorax.errors import BadInput
from pneumothorax.pipeline import atomic

FORMAT = 3


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (plain types and tensors) atomically."""
    write(path, packed(state))


def packed(state: dict[str, Any]) -> memoryview:
    """`state` (plain types and tensors) as the content of a checkpoint file."""
    whole = io.BytesIO()  # interrupted by a signal, torch.save to a file raises an unrelated error
    torch.save({"format": FORMAT, **state}, whole)
    return whole.getbuffer()


def write(path: Path, whole: memoryview, *, keep: Path | None = None) -> None:
    """Write what `packed` returned atomically; the previous file is kept as `keep`."""
    atomic.write(path, lambda file: file.write(whole), keep=keep)


def load(path: Path) -> dict[str, Any]:
    """Load tensors and plain types; nothing else is ever unpickled.

    Raises BadInput for a missing or damaged file and for one of another format.
    """
    if not path.is_file():
        raise BadInput(f"{path} does not exist: run 02_train.py first")
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()  # torch.load does not notice flipped bytes
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
    """Check the weights, then load them. Raises BadInput as `check_weights` does."""
    check_weights(network, state, path)
    network.load_state_dict(state)


def check_weights(network: torch.nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    """Raise BadInput unless names and shapes match exactly and all values are finite."""
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
