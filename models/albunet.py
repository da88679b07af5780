"""AlbuNet: a U-Net on a residual encoder, with the decoder blocks of TernausNet.

Shvets, Rakhlin, Kalinin, Iglovikov: Automatic Instrument Segmentation in Robot-Assisted
Surgery using Deep Learning, ICMLA 2018, arXiv:1803.01207, and Angiodysplasia Detection and
Localization using Deep Convolutional Neural Networks, arXiv:1804.08024.
Decoder: Iglovikov, Shvets: TernausNet, arXiv:1801.05746.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from . import encoder_weights as weights_of
from . import interpolation, smp_library
from .classification import NetworkWithClassification
from .network import expect_few_positives

ENCODERS = ("resnet18", "resnet34")


class AlbuNet(NetworkWithClassification):
    """images (N, 1, H, W) float in [0, 1] -> logits (N, 1, H, W); H and W multiples of 32.

    Follows the class AlbuNet that the authors published (models.py of
    ternaus/robot-surgery-segmentation and ternaus/angiodysplasia-segmentation): a 2x2 pool after
    the first convolution, no skip from conv1, and another pool before the center, which works
    at stride 64. Decoder blocks upsample bilinearly, the default of that class
    (is_deconv=False; the alternative is a 4x4 transposed convolution), and have no batch norm.

    Departures:
    - where H/32 or W/32 is odd, the last pool keeps the border and the center's output is
      cropped to the skip (the authors' sizes are multiples of 64);
    - one grey channel instead of three.

    Args:
        encoder: "resnet34", or "resnet18" for a smaller twin; both end in 512 channels.
        encoder_weights: "imagenet" (downloaded), "none" or the path of a file or folder
            (encoder_weights.py).
        filters: the decoder's narrowest width.
        classification_weight: weight of the loss of a classification head on conv5
            (classification.py); 0 builds no head.
    """

    def __init__(
        self,
        *,
        encoder: str = "resnet34",
        encoder_weights: str | Path = "imagenet",
        filters: int = 32,
        classification_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if encoder not in ENCODERS:
            raise ValueError(f"encoder must be one of {', '.join(ENCODERS)}, got {encoder!r}")
        if filters < 1:
            raise ValueError(f"filters must be at least 1, got {filters}")
        self.encoder = smp_library.load().encoders.get_encoder(encoder, in_channels=1, weights=None)
        weights_of.load(self.encoder, encoder_weights, name=encoder)

        f = filters
        self.center = decoder_block(512, f * 16, f * 8)
        self.dec5 = decoder_block(512 + f * 8, f * 16, f * 8)
        self.dec4 = decoder_block(256 + f * 8, f * 16, f * 8)
        self.dec3 = decoder_block(128 + f * 8, f * 8, f * 2)
        self.dec2 = decoder_block(64 + f * 2, f * 4, f * 4)
        self.dec1 = decoder_block(f * 4, f * 4, f)
        self.dec0 = convolution(f, f)
        self.final = expect_few_positives(nn.Conv2d(f, 1, 1))
        self.add_classification_head(512, classification_weight)

    def outputs(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        encoder = self.encoder
        conv1 = F.max_pool2d(
            encoder.relu(encoder.bn1(encoder.conv1(self.prepare(images)))), 2
        )  # (N, 64, H/4, W/4)
        conv2 = encoder.layer1(conv1)
        conv3 = encoder.layer2(conv2)
        conv4 = encoder.layer3(conv3)
        conv5 = encoder.layer4(conv4)  # (N, 512, H/32, W/32)

        with interpolation.in_16_bits(images.device):
            center = self.center(F.max_pool2d(conv5, 2, ceil_mode=True))
            dec5 = self.dec5(
                torch.cat([center[:, :, : conv5.shape[2], : conv5.shape[3]], conv5], dim=1)
            )
            dec4 = self.dec4(torch.cat([dec5, conv4], dim=1))
            dec3 = self.dec3(torch.cat([dec4, conv3], dim=1))
            dec2 = self.dec2(torch.cat([dec3, conv2], dim=1))
            dec1 = self.dec1(dec2)
        return self.final(self.dec0(dec1)), self.classification(conv5)


def decoder_block(in_channels: int, middle_channels: int, out_channels: int) -> nn.Sequential:
    """(N, in_channels, H, W) -> (N, out_channels, 2H, 2W)."""
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="bilinear"),
        convolution(in_channels, middle_channels),
        convolution(middle_channels, out_channels),
    )


def convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    """(N, in_channels, H, W) -> (N, out_channels, H, W), 3x3 with ReLU."""
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.ReLU(inplace=True))
