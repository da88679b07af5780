"""Any architecture of segmentation_models_pytorch with any of its encoders, as "smp/<architecture>"."""

from __future__ import annotations

import difflib
import inspect
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import encoder_weights as weights_of
from . import smp_library
from .classification import NetworkWithClassification, checked

# What the contract fixes: one grey channel in, one logit out. `encoder` and `encoder_weights` are ours.
FIXED = {
    "encoder_name",
    "encoder_weights",
    "in_channels",
    "classes",
    "activation",
    "aux_params",
    "kwargs",
}
# DPT's vision transformer would take the image size of its pretraining alone.
ENCODER_SETTINGS = {"DPT": {"dynamic_img_size": True}}
MAX_MATCHES = 5


class SmpNetwork(NetworkWithClassification):
    """images (N, 1, H, W) float in [0, 1] -> logits (N, 1, H, W); H and W multiples of 32.

    Tested: Unet, UnetPlusPlus, MAnet, Linknet, FPN, PSPNet, DeepLabV3, DeepLabV3Plus and UPerNet with convolutional
    encoders, Segformer with "mit_b0"; PAN, whose sides must be at least 128 pixels; DPT with a "tu-" vision
    transformer whose patches divide 32. PSPNet reads three of the encoder's five levels: the others get no gradient.

    Args:
        architecture: smp's name, e.g. "FPN".
        encoder: smp's name, e.g. "resnet34", or "tu-" and a name of timm. None is the architecture's default.
        encoder_weights: "imagenet" (downloaded), "none" or the path of a .pth or .safetensors file.
        classification_weight: of the loss of a classification head on the encoder's last features; 0 is no head.
        settings: further arguments of the architecture, see `settings_of`.
    """

    has_idle_parameters = True  # PSPNet's deeper encoder levels, for one

    def __init__(
        self,
        architecture: str,
        *,
        encoder: str | None = None,
        encoder_weights: str | Path = "imagenet",
        classification_weight: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.classification_weight = checked(classification_weight)
        constructor = _constructor(architecture)
        if encoder is None:
            encoder = inspect.signature(constructor).parameters["encoder_name"].default
        check_encoder(encoder)
        try:
            network: Any = constructor(
                encoder_name=encoder,
                encoder_weights=None,
                in_channels=1,
                classes=1,
                aux_params={"classes": 1}
                if self.classification_weight
                else None,  # smp's own classification head
                **settings,
                **ENCODER_SETTINGS.get(architecture, {}),
            )
        except Exception as error:  # smp refuses what does not go together with nearly any class
            raise ValueError(
                f"smp/{architecture} cannot be built with encoder {encoder!r}: {error}"
            ) from error
        depth = settings.get(
            "encoder_depth", inspect.signature(constructor).parameters["encoder_depth"].default
        )
        weights_of.load(network.encoder, encoder_weights, name=encoder, depth=depth)
        self.network = network

    def outputs(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        found = self.network(self.prepare(images))
        logits, classification = found if self.classification_weight else (found, None)
        if logits.shape != images.shape:
            raise ValueError(
                f"the logits are {tuple(logits.shape)}, the images {tuple(images.shape)}: "
                "encoder_depth and upsampling do not go together"
            )
        return logits, None if classification is None else classification.squeeze(1)

    def encoder_parameters(self) -> list[nn.Parameter]:
        return list(self.network.encoder.parameters())


def settings_of(architecture: str) -> list[str]:
    """Names of the settings that SmpNetwork takes for this architecture. ValueError: unknown architecture."""
    own = [
        name
        for name in inspect.signature(_constructor(architecture)).parameters
        if name not in FIXED
    ]
    return ["encoder", "encoder_weights", "classification_weight", *own]


def check_encoder(name: str) -> None:
    """ValueError, with the closest names, unless smp knows this encoder, or timm the rest of a "tu-..." name."""
    known = list(smp_library.load().encoders.encoders)
    if name in known:
        return
    if name.startswith("tu-"):
        import timm

        if timm.is_model(name.removeprefix("tu-")):
            return
        known = [f"tu-{model}" for model in timm.list_models()]
    close = difflib.get_close_matches(name, known, n=MAX_MATCHES, cutoff=0.5)
    hint = (
        f"close to it: {', '.join(close)}"
        if close
        else f"for example {', '.join(known[:MAX_MATCHES])}"
    )
    raise ValueError(
        f"unknown encoder {name!r}; {hint} ({len(known)} are known; with tu- before it, any of timm's)"
    )


def _constructor(architecture: str) -> type[nn.Module]:
    known = {
        entry.__name__: entry for entry in smp_library.load().MODEL_ARCHITECTURES_MAPPING.values()
    }
    if architecture not in known:
        raise ValueError(f"unknown architecture {architecture!r} of smp; known: {', '.join(known)}")
    return known[architecture]
