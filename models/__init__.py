"""The networks by name: `models.build("ica_resunet")`, installed `pneumothorax.models.build(...)`.

One idea per file. Importing this package does not import PyTorch; `build` does.
"""

from __future__ import annotations

import inspect
import typing
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .network import SegmentationNetwork

NAMES = ("ica_resunet", "ica_resunet_paper", "unet", "albunet", "chexlocnet", "unetpp_msof")
SMP = "smp/"  # followed by an architecture of segmentation_models_pytorch


def build(name: str, **settings: Any) -> SegmentationNetwork:
    """Build a network, e.g. build("ica_resunet", encoder_weights="none") or build("smp/FPN").

    Args:
        name: one of NAMES, or "smp/" and an architecture of segmentation_models_pytorch.
        settings: keyword arguments of the network's class.

    Raises:
        ValueError: the name or a setting is unknown (the message lists the known ones), or
            a value has the wrong type or is out of range.
    """
    network = _class(name)
    known = _settings(name)
    if unknown := sorted(settings.keys() - set(known)):
        raise ValueError(f"{name} has no setting {', '.join(unknown)}; known: {', '.join(known)}")
    _check_types(name, network, settings)
    if name.startswith(SMP):
        settings["architecture"] = name.removeprefix(SMP)
    return network(**settings)


def build_untrained(name: str, **settings: Any) -> SegmentationNetwork:
    """Like `build`, with random encoder weights and no download: to load a checkpoint into."""
    if "encoder_weights" in _settings(name):
        settings["encoder_weights"] = "none"
    return build(name, **settings)


def _class(name: str) -> type[SegmentationNetwork]:
    """The class called `name`. Imported here, because importing PyTorch takes seconds."""
    from .albunet import AlbuNet
    from .chexlocnet import CheXLocNet
    from .ica_resunet import IcaResUNet
    from .ica_resunet_paper import IcaResUNetPaper
    from .smp_network import SmpNetwork
    from .unet import UNet
    from .unetpp_msof import UNetPlusPlusMsof

    if name.startswith(SMP):
        return SmpNetwork
    networks: dict[str, type[SegmentationNetwork]] = {
        "ica_resunet": IcaResUNet,
        "ica_resunet_paper": IcaResUNetPaper,
        "unet": UNet,
        "albunet": AlbuNet,
        "chexlocnet": CheXLocNet,
        "unetpp_msof": UNetPlusPlusMsof,
    }
    if name not in NAMES:
        known = ", ".join([*NAMES, f"{SMP}<architecture>"])
        raise ValueError(f"unknown network {name!r}; known: {known}")
    return networks[name]


def _settings(name: str) -> list[str]:
    """The names of a network's settings."""
    if name.startswith(SMP):
        from .smp_network import settings_of

        return settings_of(name.removeprefix(SMP))
    return list(inspect.signature(_class(name)).parameters)


def _check_types(name: str, network: type[SegmentationNetwork], settings: dict[str, Any]) -> None:
    """Checks values against the annotations of the class: "false" is not a bool, 1.5 not an int."""
    import pydantic

    types = typing.get_type_hints(network.__init__)
    for setting in types.keys() & settings.keys():
        try:
            pydantic.TypeAdapter(types[setting]).validate_python(settings[setting], strict=True)
        except pydantic.ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise ValueError(f"{name}, {setting}: {reason}, got {settings[setting]!r}") from error
