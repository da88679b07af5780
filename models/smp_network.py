"""Any architecture and encoder of segmentation_models_pytorch, as "smp/<architecture>"."""

from __future__ import annotations

import difflib
import inspect
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import encoder_weights as weights_of
from . import interpolation, smp_library
from .classification import NetworkWithClassification, checked_weight
from .coord_attention import ImprovedCoordAttention
from .network import expect_few_positives

# Arguments of smp that are not settings: one grey channel in and one logit out are fixed, and
# `encoder` and `encoder_weights` are our own.
FIXED = set("encoder_name encoder_weights in_channels classes activation aux_params kwargs".split())
# Otherwise DPT's vision transformer only accepts the image size of its pretraining.
ENCODER_SETTINGS = {"DPT": {"dynamic_img_size": True}}
# Encoders whose weights come from TensorFlow, with its epsilon in batch norm (as in timm, not in
# smp). With PyTorch's 1e-5 many channels that hardly vary are amplified in training.
TENSORFLOW_ENCODERS = "timm-tf_efficientnet_lite"
TENSORFLOW_EPSILON = 1e-3
MAX_MATCHES = 5
# The setting `attention` -> settings of the block.
ATTENTION: dict[str, dict[str, Any] | None] = {
    "none": None,
    "published": {"pooling": "avg", "residual": False},
    "improved": {},
}
FIRST_ATTENDED = 2  # level of the encoder, at stride 4, as in ICA-ResUNet


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
        encoder_weights: "imagenet" (downloaded), "none", "package:efficientnet_lite0" (for
            "timm-tf_efficientnet_lite0") or the path of a file or folder (encoder_weights.py).
        attention: coordinate attention on the encoder's features at stride 4 and coarser, as
            the decoder and the classification head receive them; the encoder's next stage sees
            plain features. "published" is Hou's block, "improved" that of ICA-ResUNet
            (coord_attention.py). DeepLabV3, DeepLabV3Plus and PSPNet do not read all of these
            features; the blocks on the others have no effect. Not for DPT, whose encoder
            returns tokens.
        classification_weight: weight of the loss of a classification head on the encoder's last
            features; 0 builds no head. The head is smp's, which drops 20 % of the pooled
            features in training; that of the other networks drops none.
        settings: further arguments of the architecture, see `settings_of`.
    """

    has_idle_parameters = True  # for example PSPNet's deeper encoder levels

    def __init__(
        self,
        architecture: str,
        *,
        encoder: str | None = None,
        encoder_weights: str | Path = "imagenet",
        attention: str = "none",
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
        if encoder.startswith(TENSORFLOW_ENCODERS):
            _set_epsilon(network.encoder, TENSORFLOW_EPSILON)
        depth = settings.get(
            "encoder_depth", inspect.signature(constructor).parameters["encoder_depth"].default
        )
        weights_of.load(network.encoder, encoder_weights, name=encoder, depth=depth)
        network.attention = _attention_blocks(architecture, network, attention)
        expect_few_positives(network.segmentation_head)
        self.network: Any = network

    def outputs(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        pixels = self.prepare(images)
        with interpolation.in_16_bits(images.device):
            found = self._attended(pixels) if len(self.network.attention) else self.network(pixels)
        logits, classification = found if self.classification_weight else (found, None)
        if logits.shape != images.shape:
            raise ValueError(
                f"the logits are {tuple(logits.shape)}, the images {tuple(images.shape)}: "
                "encoder_depth and upsampling do not match"
            )
        return logits, None if classification is None else classification.squeeze(1)

    def _attended(self, pixels: torch.Tensor) -> Any:
        """What smp's SegmentationModel.forward returns, with attention behind the encoder."""
        network = self.network
        features = list(network.encoder(pixels))  # at strides 1, 2, 4, ...
        for level, block in enumerate(network.attention, start=FIRST_ATTENDED):
            features[level] = block(features[level])
        logits = network.segmentation_head(network.decoder(features))
        if network.classification_head is None:
            return logits
        return logits, network.classification_head(features[-1])

    def encoder_parameters(self) -> list[nn.Parameter]:
        return list(self.network.encoder.parameters())


def settings_of(architecture: str) -> list[str]:
    """Names of the settings for this architecture. ValueError if smp does not know it."""
    parameters = inspect.signature(_constructor(architecture)).parameters
    own = [name for name in parameters if name not in FIXED]
    return ["encoder", "encoder_weights", "attention", "classification_weight", *own]


def _set_epsilon(encoder: nn.Module, epsilon: float) -> None:
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = epsilon


def _attention_blocks(architecture: str, network: Any, attention: str) -> nn.ModuleList:
    """One block per attended level of the encoder, or an empty list without attention.

    Raises ValueError.
    """
    if attention not in ATTENTION:
        raise ValueError(f"attention must be one of {', '.join(ATTENTION)}, got {attention!r}")
    settings = ATTENTION[attention]
    if settings is None:
        return nn.ModuleList()
    if type(network).forward is not smp_library.load().base.SegmentationModel.forward:
        raise ValueError(
            f"smp/{architecture} cannot have attention: its encoder does not return a list of "
            "feature maps; pass attention=none"
        )
    channels = network.encoder.out_channels[FIRST_ATTENDED:]
    return nn.ModuleList(ImprovedCoordAttention(each, **settings) for each in channels)


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
