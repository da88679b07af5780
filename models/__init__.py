"""The networks, by name. One idea per file; importing this package imports no framework."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.network import SegmentationNetwork


def build(name: str, **settings: Any) -> SegmentationNetwork:
    """The network `name`, e.g. build("ica_resunet", encoder_weights="none"). Settings are the class's own arguments.

    Raises:
        ValueError: the name or a setting is unknown (the message lists the known ones), or a value is not possible.
    """
    network = _network(name)
    known = list(inspect.signature(network).parameters)
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ValueError(f"{name} has no setting {', '.join(unknown)}; known: {', '.join(known)}")
    return network(**settings)


def build_untrained(name: str, **settings: Any) -> SegmentationNetwork:
    """The same network without fetching encoder weights: to load a checkpoint into."""
    if "encoder_weights" in inspect.signature(_network(name)).parameters:
        settings["encoder_weights"] = "none"
    return build(name, **settings)


def _network(name: str) -> type[SegmentationNetwork]:
    if name not in _CLASSES:
        raise ValueError(f"unknown network {name!r}; known: {', '.join(NAMES)}")
    return _CLASSES[name]()


def _ica_resunet() -> type[SegmentationNetwork]:
    from models.ica_resunet import IcaResUNet

    return IcaResUNet


_CLASSES: dict[str, Callable[[], type[SegmentationNetwork]]] = {"ica_resunet": _ica_resunet}

NAMES = tuple(_CLASSES)
