"""ICA-ResUNet: a U-Net on a residual encoder with improved coordinate attention.

Zhang: Segmentation of Pneumothorax Disease based on Deep Learning, section 2 and figure 1.
Encoder and decoder come from segmentation_models_pytorch. The paper calls its 3, 4, 6, 3
residual modules "ResNet" and draws them as bottlenecks; we take ResNet-34, whose modules are
basic blocks (encoder="resnet50" has bottlenecks).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import encoder_weights as weights_of
from . import interpolation, smp_library
from .classification import NetworkWithClassification
from .coord_attention import DEFAULT_MERGE, ImprovedCoordAttention
from .network import expect_few_positives

PLACEMENTS = ("stages", "skips", "decoder")
LAYERS = ("layer1", "layer2", "layer3", "layer4")  # of the encoder


class IcaResUNet(NetworkWithClassification):
    """images (N, 1, H, W) float in [0, 1] -> logits (N, 1, H, W); H and W multiples of 32.

    Args:
        encoder: an smp ResNet or ResNeXt, e.g. "resnet18", "resnet34", "resnet50".
        encoder_weights: "imagenet" (downloaded), "none" or the path of a file or folder
            (encoder_weights.py).
        decoder_channels: channels of the decoder levels, coarse to fine: five, or four for an
            encoder without layer4.
        attention: False gives the plain U-Net, the baseline of the ablation; the next five
            settings then have no effect.
        placement: where attention is applied:
            "stages": after each layer; both the skip and the next stage see the result
            (the paper's figure 1);
            "skips": at the same places, but only the decoder sees the result;
            "decoder": after all decoder levels but the finest.
        merge, pooling, residual, reduction: see ImprovedCoordAttention.
        classification_weight: weight of the loss of a classification head on the last layer's
            features (classification.py); 0 builds no head.
    """

    def __init__(
        self,
        *,
        encoder: str = "resnet34",
        encoder_weights: str | Path = "imagenet",
        decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
        attention: bool = True,
        placement: str = "stages",
        merge: str = DEFAULT_MERGE,
        pooling: str = "avg+max",
        residual: bool = True,
        reduction: int = 32,
        classification_weight: float = 0.0,
    ) -> None:
        super().__init__()
        _check(encoder, decoder_channels, placement)
        # The parts keep smp's names: with attention=False the state dict is that of smp.Unet.
        depth = len(decoder_channels)
        unet = smp_library.load().Unet(
            encoder,
            encoder_depth=depth,
            encoder_weights=None,
            in_channels=1,
            decoder_channels=tuple(decoder_channels),
        )
        self.encoder = unet.encoder
        self.decoder = unet.decoder
        self.segmentation_head = expect_few_positives(unet.segmentation_head)
        weights_of.load(self.encoder, encoder_weights, name=encoder)
        for unused in LAYERS[depth - 1 :]:
            delattr(self.encoder, unused)

        def block(channels: int) -> nn.Module:
            return ImprovedCoordAttention(
                channels, reduction=reduction, merge=merge, pooling=pooling, residual=residual
            )

        self.placement = placement
        in_encoder = attention and placement != "decoder"
        self.attention = nn.ModuleList(
            block(channels) if in_encoder else nn.Identity()
            for channels in self.encoder.out_channels[2:]  # of layer1 to the last layer
        )
        if attention and placement == "decoder":
            levels = self.decoder.blocks
            for number, channels in enumerate(decoder_channels[:-1]):
                levels[number] = AttendedLevel(levels[number], block(channels))
        self.add_classification_head(self.encoder.out_channels[-1], classification_weight)

    def outputs(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        features = self.encode(self.prepare(images))
        with interpolation.in_16_bits(images.device):
            pixels = self.decoder(features)
        return self.segmentation_head(pixels), self.classification(features[-1])

    def encode(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Normalised pixels (N, 1, H, W) -> features at strides 1 (the pixels), 2, 4, 8, 16, 32.

        The last one is missing without layer4.
        """
        encoder = self.encoder
        stem = encoder.relu(encoder.bn1(encoder.conv1(pixels)))  # (N, 64, H/2, W/2)
        features = [pixels, stem]
        x = encoder.maxpool(stem)
        for layer, attention in zip(LAYERS[: len(self.attention)], self.attention, strict=True):
            x = getattr(encoder, layer)(x)  # at strides 4, 8, 16, 32
            attended = attention(x)
            features.append(attended)
            x = x if self.placement == "skips" else attended
        return features


class AttendedLevel(nn.Module):
    """A decoder level of smp's U-Net followed by attention; same arguments and shapes."""

    def __init__(self, level: nn.Module, attention: nn.Module) -> None:
        super().__init__()
        self.level = level
        self.attention = attention

    def forward(self, *arguments: Any, **keywords: Any) -> torch.Tensor:
        return self.attention(self.level(*arguments, **keywords))


def _check(encoder: str, decoder_channels: Sequence[int], placement: str) -> None:
    """Raises ValueError for settings that no network can be built from."""
    if encoder not in _encoder_names():
        raise ValueError(f"encoder must be one of {', '.join(_encoder_names())}, got {encoder!r}")
    if len(decoder_channels) not in (4, 5) or min(decoder_channels) < 1:
        raise ValueError(
            f"decoder_channels must be four or five numbers of at least 1, got {decoder_channels}"
        )
    if placement not in PLACEMENTS:
        raise ValueError(f"placement must be one of {', '.join(PLACEMENTS)}, got {placement!r}")


def _encoder_names() -> list[str]:
    """smp's encoders that have the stem and the layer1 to layer4 of a ResNet."""
    known = smp_library.load().encoders.encoders
    resnet = known["resnet34"]["encoder"]
    return [name for name, entry in known.items() if entry["encoder"] is resnet]
