"""The paper's ICA-ResUNet taken literally: bottleneck modules, attention after levels 2 to 5.

Zhang: Segmentation of Pneumothorax Disease based on Deep Learning, section 2 and figure 1.
`ica_resunet` is our freer reading of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from . import encoder_weights as weights_of
from . import torchvision_ops
from .classification import NetworkWithClassification
from .coord_attention import DEFAULT_MERGE, ImprovedCoordAttention
from .network import expect_few_positives
from .unet import double_convolution

MODULES = (3, 4, 6, 3)  # residual modules in levels 2 to 5


class IcaResUNetPaper(NetworkWithClassification):
    """images (N, 1, H, W) float in [0, 1] -> logits (N, 1, H, W); H and W multiples of 32.

    The paper specifies:
    - level 1: two 3x3 convolutions at full resolution;
    - levels 2 to 5: 3, 4, 6, 3 bottleneck modules, each level at half the resolution of the one
      before (strides 2, 4, 8, 16), each followed by attention;
    - a decoder with the same levels and concatenated skips.

    Our choices where it is silent:
    - the bottlenecks are layer1 to layer4 of ResNet-50, so that its ImageNet weights fit;
      level 1 starts from random weights;
    - layer1 keeps the stride of 1 it was pretrained with; a 2x2 max pool before it halves the
      resolution;
    - decoder levels are those of the U-Net: a 2x2 transposed convolution, then two 3x3
      convolutions with batch norm, with 512 to 64 channels.

    Args:
        encoder_weights: weights of ResNet-50 for levels 2 to 5: "imagenet" (downloaded), "none"
            or the path of a file or folder (encoder_weights.py). They only fit width=64.
        width: channels of level 1; levels 2 to 5 have 4, 8, 16 and 32 times as many.
        decoder_channels: channels of the four decoder levels, coarse to fine.
        merge, pooling, residual, reduction: see ImprovedCoordAttention.
        classification_weight: weight of the loss of a classification head on level 5
            (classification.py); 0 builds no head.
    """

    def __init__(
        self,
        *,
        encoder_weights: str | Path = "imagenet",
        width: int = 64,
        decoder_channels: Sequence[int] = (512, 256, 128, 64),
        merge: str = DEFAULT_MERGE,
        pooling: str = "avg+max",
        residual: bool = True,
        reduction: int = 32,
        classification_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        if len(decoder_channels) != 4 or min(decoder_channels) < 1:
            raise ValueError(
                f"decoder_channels must be four numbers of at least 1, got {decoder_channels}"
            )

        self.level1 = double_convolution(1, width)
        self.levels = nn.ModuleDict()  # torchvision's names, layer1 to layer4
        channels = [width]
        for number, modules in enumerate(MODULES):
            stage = bottlenecks(
                channels[-1], width * 2**number, modules=modules, stride=1 if number == 0 else 2
            )
            self.levels[f"layer{number + 1}"] = stage
            channels.append(4 * width * 2**number)
        weights_of.load(self.levels, encoder_weights, name="resnet50", unused=("conv1.", "bn1."))
        self.attention = nn.ModuleList(
            ImprovedCoordAttention(
                count, reduction=reduction, merge=merge, pooling=pooling, residual=residual
            )
            for count in channels[1:]
        )

        coarse = [channels[-1], *decoder_channels[:-1]]
        skips = channels[-2::-1]
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(below, here, 2, stride=2)
            for below, here in zip(coarse, decoder_channels, strict=True)
        )
        self.fuse = nn.ModuleList(
            double_convolution(skip + here, here)
            for skip, here in zip(skips, decoder_channels, strict=True)
        )
        self.mask_head = expect_few_positives(nn.Conv2d(decoder_channels[-1], 1, 1))
        self.add_classification_head(channels[-1], classification_weight)

    def outputs(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        *skips, x = self.encode(self.prepare(images))
        classification = self.classification(x)
        for up, fuse, skip in zip(self.up, self.fuse, reversed(skips), strict=True):
            x = fuse(torch.cat([skip, up(x)], dim=1))
        return self.mask_head(x), classification

    def encoder_parameters(self) -> list[nn.Parameter]:
        return list(self.levels.parameters())

    def encode(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Normalised pixels (N, 1, H, W) -> features of the five levels, at strides 1 to 16.

        Both the skip and the next level see the attended features.
        """
        features = [self.level1(pixels)]
        x = F.max_pool2d(features[0], 2)
        for level, attention in zip(self.levels.values(), self.attention, strict=True):
            x = attention(level(x))
            features.append(x)
        return features


def bottlenecks(in_channels: int, width: int, *, modules: int, stride: int) -> nn.Sequential:
    """A stage of ResNet-50: (N, in_channels, H, W) -> (N, 4 * width, H / stride, W / stride)."""
    torchvision_ops.load()
    from torchvision.models.resnet import Bottleneck

    shortcut = nn.Sequential(
        nn.Conv2d(in_channels, 4 * width, 1, stride=stride, bias=False), nn.BatchNorm2d(4 * width)
    )
    first = Bottleneck(in_channels, width, stride=stride, downsample=shortcut)
    return nn.Sequential(first, *(Bottleneck(4 * width, width) for _ in range(modules - 1)))
