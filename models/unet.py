"""U-Net: a contracting path, an expanding path, and a skip between them at every resolution.

Ronneberger, Fischer, Brox: U-Net: Convolutional Networks for Biomedical Image Segmentation,
MICCAI 2015, arXiv:1505.04597, section 2 and figure 1.
"""

from __future__ import annotations

import itertools

import torch
from torch import nn
from torch.nn import functional as F

from .network import SegmentationNetwork, expect_few_positives


class UNet(SegmentationNetwork):
    """images (N, 1, H, W) float in [0, 1] -> logits (N, 1, H, W); H and W multiples of 32.

    Departures from the paper:
    - padded convolutions, so that the logits have the size of the images (in the paper 572 pixels
      give 388, and the skips are cropped);
    - batch norm after every 3x3 convolution, as in nearly every later U-Net, instead of careful
      initialisation. These convolutions have no bias, because batch norm would cancel it;
    - no dropout at the end of the contracting path;
    - one logit instead of two.

    Args:
        base_channels: channels of the first level; each of the four below has twice as many
            (64 to 1024 in the paper).
    """

    def __init__(self, *, base_channels: int = 64) -> None:
        super().__init__()
        if base_channels < 1:
            raise ValueError(f"base_channels must be at least 1, got {base_channels}")
        channels = [base_channels * 2**level for level in range(5)]
        pairs = list(itertools.pairwise(channels))
        self.first = double_convolution(1, channels[0])
        self.down = nn.ModuleList(double_convolution(fine, coarse) for fine, coarse in pairs)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(coarse, fine, 2, stride=2) for fine, coarse in reversed(pairs)
        )
        self.merge = nn.ModuleList(
            double_convolution(2 * fine, fine) for fine, _ in reversed(pairs)
        )
        self.mask_head = expect_few_positives(nn.Conv2d(channels[0], 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.first(self.prepare(images))
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(F.max_pool2d(x, 2))  # at strides 2, 4, 8, 16
        for up, merge, skip in zip(self.up, self.merge, reversed(skips), strict=True):
            x = merge(torch.cat([skip, up(x)], dim=1))
        return self.mask_head(x)


def double_convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    """(N, in_channels, H, W) -> (N, out_channels, H, W); 3x3, batch norm, ReLU, twice."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
