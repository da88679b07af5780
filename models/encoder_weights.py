"""Starting weights of an encoder: from smp's hub, from a local file, or none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from . import smp_library

MAX_LISTED = 10
# Classifiers in the files of torchvision, timm and the encoders' authors. An encoder has none.
CLASSIFIERS = ("fc.", "_fc.", "classifier.", "last_linear.", "head.")
WAY_OUT = "pass encoder_weights=none or the path of a .pth or .safetensors file"


class WeightsError(ValueError):
    """Encoder weights are missing or do not fit. The message says what differs and what to do."""


def load(
    encoder: nn.Module,
    weights: str | Path,
    *,
    name: str,
    depth: int = 5,
    unused: Sequence[str] = (),
) -> None:
    """Load weights into an encoder that takes one grey channel.

    Args:
        encoder: an smp encoder built with in_channels=1 and without weights, or modules with the
            same names.
        weights: "imagenet" (downloaded by smp, or from its cache), "none" (keep the random
            weights), or the path of a .pth or .safetensors file with torchvision's names
            (conv1.weight, ..., fc.*) or smp's (the same, with or without the prefix "encoder.").
            Three input channels are summed into one; classifiers are ignored.
        name: smp's name of the encoder, e.g. "resnet34", or "tu-" and timm's name.
        depth: number of levels of the encoder.
        unused: prefixes of names that this encoder does not have, e.g. "conv1.".

    Raises:
        WeightsError: the download failed, the file is missing, or the weights do not fit.
    """
    if str(weights) == "none":
        return
    state = _download(name, depth) if str(weights) == "imagenet" else _read(Path(weights))
    state = _as_encoder_state(state, encoder, unused)
    _check(state, encoder, weights)
    encoder.load_state_dict(state)


def _download(name: str, depth: int) -> dict[str, torch.Tensor]:
    """smp's ImageNet weights, with the first convolution already reduced to one channel."""
    encoders = smp_library.load().encoders
    from_timm = name.startswith("tu-")
    if not from_timm and "imagenet" not in encoders.encoders[name]["pretrained_settings"]:
        raise WeightsError(f"smp has no ImageNet weights for {name}: {WAY_OUT}")
    try:
        weights = True if from_timm else "imagenet"  # timm has one set per name
        return encoders.get_encoder(name, in_channels=1, depth=depth, weights=weights).state_dict()
    except Exception as error:  # errors of the hub, of HTTP and of files share no base class
        raise WeightsError(
            f"the ImageNet weights of {name} could not be downloaded "
            f"({type(error).__name__}: {error}); without a network, {WAY_OUT}"
        ) from error


def _read(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name from a local file. No code in the file is executed."""
    if not path.is_file():
        raise WeightsError(
            f"encoder weights {path}: no such file; pass imagenet, none or the path of a file"
        )
    if path.suffix not in READERS:
        raise WeightsError(f"encoder weights {path}: the name must end in {' or '.join(READERS)}")
    try:
        state = READERS[path.suffix](path)
    except Exception as error:  # a damaged file raises almost anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"encoder weights {path} cannot be read as plain tensors: {reason}"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(value, torch.Tensor) for value in state.values()
    ):
        found = (
            f"a dict with {_listed(map(str, state))}"
            if isinstance(state, dict)
            else type(state).__name__
        )
        raise WeightsError(
            f"encoder weights {path}: expected a dict of tensors by name, found {found}"
        )
    return dict(state)


def _read_pth(path: Path) -> object:
    return torch.load(path, map_location="cpu", weights_only=True)


READERS: dict[str, Callable[[Path], object]] = {".pth": _read_pth, ".safetensors": load_file}


def _as_encoder_state(
    state: dict[str, torch.Tensor], encoder: nn.Module, unused: Sequence[str]
) -> dict[str, torch.Tensor]:
    """The tensors under the encoder's names, for one input channel and without the classifier."""
    wanted = encoder.state_dict()
    left_out = (*CLASSIFIERS, *unused)
    state = {name.removeprefix("encoder."): value for name, value in state.items()}
    state = {
        name: value
        for name, value in state.items()
        if name in wanted or not name.startswith(left_out)
    }
    for name, value in wanted.items():
        if name.endswith("num_batches_tracked"):  # a counter that older files lack
            state.setdefault(name, value)
        elif name in state and _is_first_convolution(state[name], value):
            state[name] = state[name].sum(1, keepdim=True)
    return state


def _is_first_convolution(given: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether a colour kernel stands for a grey one. Some encoders have several, in parallel."""
    return (
        given.ndim == 4
        and given.shape[1] == 3
        and wanted.shape == (given.shape[0], 1, *given.shape[2:])
    )


def _check(state: dict[str, torch.Tensor], encoder: nn.Module, weights: str | Path) -> None:
    wanted = encoder.state_dict()
    differences = []
    if missing := sorted(wanted.keys() - state.keys()):
        differences.append(f"missing: {_listed(missing)}")
    if unexpected := sorted(state.keys() - wanted.keys()):
        differences.append(f"unexpected: {_listed(unexpected)}")
    shapes = [
        f"{name} is {tuple(state[name].shape)}, needs {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & state.keys())
        if state[name].shape != wanted[name].shape
    ]
    if shapes:
        differences.append(f"wrong shape: {_listed(shapes)}")
    if differences:
        raise WeightsError("\n  ".join([f"encoder weights {weights} do not fit:", *differences]))


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more
