"""Any architecture and encoder of segmentation_models_pytorch, as "smp/<architecture>"."""

from __future__ import annotations

import difflib
import inspect
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import encoder_weights as weights_of
from . import smp_library
from .classification import NetworkWithClassification, checked_weight

# Arguments of smp that are not settings: one grey channel in and one logit out are fixed, and
# `encoder` and `encoder_weights` are our own.
FIXED = set("encoder_name encoder_weights in_channels classes activation aux_params kwargs".split())
# Otherwise DPT's vision transformer only accepts the image size of its pretraining.
ENCODER_SETTINGS = {"DPT": {"dynamic_img_size": True}}
MAX_MATCHES = 5


class SmpNetwork(NetworkWithClassification):
    """images (N, 1, H, W) float in [0, 1] -> logits (N, 1, H, W); H and W multiples of 32.

    Tested: Unet, UnetPlusPlus, MAnet, Linknet, FPN, PSPNet, DeepLabV3, DeepLabV3Plus and UPerNet
    with convolutional encoders; PAN, for images of at least 128 pixels; Segformer with "mit_b0";
    DPT with a "tu-" vision transformer whose patch size divides 32. PSPNet reads three of the
    encoder's five levels; the others get no gradient.

    Args:
        architecture: smp's name, e.g. "FPN".
        encoder: smp's name, e.g. "resnet34", or "tu-" and timm's name. None takes the
            architecture's default.
        encoder_weights: "imagenet" (downloaded), "none" or the path of a .pth or
            .safetensors file.
        classification_weight: weight of the loss of a classification head on the encoder's last
            features; 0 builds no head.
        settings: further arguments of the architecture, see `settings_of`.
    """

    has_idle_parameters = True  # for example PSPNet's deeper encoder levels

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
        self.classification_weight = checked_weight(classification_weight)
        constructor = _constructor(architecture)
        if encoder is None:
            encoder = inspect.signature(constructor).parameters["encoder_name"].default
        check_encoder(encoder)
        classification_head = {"classes": 1} if self.classification_weight else None  # smp's own
        try:
            network: Any = constructor(
                encoder_name=encoder,
                encoder_weights=None,
                in_channels=1,
                classes=1,
                aux_params=classification_head,
                **settings,
                **ENCODER_SETTINGS.get(architecture, {}),
            )
        except Exception as error:  # smp has no common class for settings that do not fit
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
                "encoder_depth and upsampling do not match"
            )
        return logits, None if classification is None else classification.squeeze(1)

    def encoder_parameters(self) -> list[nn.Parameter]:
        return list(self.network.encoder.parameters())


def settings_of(architecture: str) -> list[str]:
    """Names of the settings for this architecture. ValueError if smp does not know it."""
    parameters = inspect.signature(_constructor(architecture)).parameters
    own = [name for name in parameters if name not in FIXED]
    return ["encoder", "encoder_weights", "classification_weight", *own]


def check_encoder(name: str) -> None:
    """ValueError with the closest names unless smp, or timm after "tu-", knows this encoder."""
    known = list(smp_library.load().encoders.encoders)
    if name in known:
        return
    if name.startswith("tu-"):
        import timm

        if timm.is_model(name.removeprefix("tu-")):
            return
        known = [f"tu-{model}" for model in timm.list_models()]
    close = difflib.get_close_matches(name, known, n=MAX_MATCHES, cutoff=0.5)
    hint = "did you mean" if close else "known are, for example,"
    raise ValueError(
        f"unknown encoder {name!r}: {hint} {', '.join(close or known[:MAX_MATCHES])} "
        f"({len(known)} are known; timm's names follow tu-)"
    )


def _constructor(architecture: str) -> type[nn.Module]:
    known = {
        entry.__name__: entry for entry in smp_library.load().MODEL_ARCHITECTURES_MAPPING.values()
    }
    if architecture not in known:
        raise ValueError(f"smp has no architecture {architecture!r}; known: {', '.join(known)}")
    return known[architecture]
