"""The networks, by name. One idea per file; importing this package imports no framework."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.network import SegmentationNetwork

SMP = "smp/"  # and an architecture of segmentation_models_pytorch


def build(name: str, **settings: Any) -> SegmentationNetwork:
    """The network `name`, e.g. build("ica_resunet", encoder_weights="none") or build("smp/FPN", encoder="resnet34").

    Settings are the class's own arguments.

    Raises:
        ValueError: the name or a setting is unknown (the message lists the known ones), or a value is of another type
            or not possible.
    """
    network, known = _network(name)
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ValueError(f"{name} has no setting {', '.join(unknown)}; known: {', '.join(known)}")
    _check_types(name, network, settings)
    return network(**settings)


def build_untrained(name: str, **settings: Any) -> SegmentationNetwork:
    """The same network without fetching encoder weights: to load a checkpoint into."""
    _, known = _network(name)
    if "encoder_weights" in known:
        settings["encoder_weights"] = "none"
    return build(name, **settings)


def _network(name: str) -> tuple[Callable[..., SegmentationNetwork], list[str]]:
    """What builds the network, and the names of its settings."""
    if name.startswith(SMP):
        from models import smp_network

        architecture = name.removeprefix(SMP)
        return functools.partial(smp_network.SmpNetwork, architecture), smp_network.settings_of(
            architecture
        )
    if name not in _CLASSES:
        raise ValueError(
            f"unknown network {name!r}; known: {', '.join(NAMES)}, {SMP}<architecture>"
        )
    network = _CLASSES[name]()
    return network, list(inspect.signature(network).parameters)


def _check_types(
    name: str, network: Callable[..., SegmentationNetwork], settings: dict[str, Any]
) -> None:
    """Values against the class's annotations: "false" is no False, and 1.5 no number of channels."""
    import pydantic

    made = network.func if isinstance(network, functools.partial) else network
    types = typing.get_type_hints(made.__init__)
    for setting in types.keys() & settings.keys():
        try:
            pydantic.TypeAdapter(types[setting]).validate_python(settings[setting], strict=True)
        except pydantic.ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise ValueError(f"{name}, {setting}: {reason}, got {settings[setting]!r}") from error


def _ica_resunet() -> type[SegmentationNetwork]:
    from models.ica_resunet import IcaResUNet

    return IcaResUNet


def _ica_resunet_paper() -> type[SegmentationNetwork]:
    from models.ica_resunet_paper import IcaResUNetPaper

    return IcaResUNetPaper


def _unet() -> type[SegmentationNetwork]:
    from models.unet import UNet

    return UNet


def _albunet() -> type[SegmentationNetwork]:
    from models.albunet import AlbuNet

    return AlbuNet


def _chexlocnet() -> type[SegmentationNetwork]:
    from models.chexlocnet import CheXLocNet

    return CheXLocNet


def _unetpp_msof() -> type[SegmentationNetwork]:
    from models.unetpp_msof import UNetPlusPlusMsof

    return UNetPlusPlusMsof


_CLASSES: dict[str, Callable[[], type[SegmentationNetwork]]] = {
    "ica_resunet": _ica_resunet,
    "ica_resunet_paper": _ica_resunet_paper,
    "unet": _unet,
    "albunet": _albunet,
    "chexlocnet": _chexlocnet,
    "unetpp_msof": _unetpp_msof,
}

NAMES = tuple(_CLASSES)
