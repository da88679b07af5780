"""UNet++ with multiple side-output fusion: four side outputs and a fused one, each with a loss.

Peng, Zhang, Guan: End-to-End Change Detection for High Resolution Satellite Images Using
Improved UNet++, Remote Sensing 11(11):1382, 2019. Used for pneumothorax by Li, Zuo, Zhang, Sun:
Pneumothorax Image Segmentation and Prediction with UNet++ and MSOF Strategy, ICCECE 2021.
UNet++: Zhou et al., DLMIA 2018, arXiv:1807.10165, figure 1a.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .network import Criterion, SegmentationNetwork, expect_few_positives

DEPTH = 5
LOSS_WEIGHTS = (0.5, 0.5, 0.75, 0.5, 1.0)  # side outputs of X(0,1) to X(0,4), fused output


class UNetPlusPlusMsof(SegmentationNetwork):
    """images (N, 1, H, W) float in [0, 1] -> fused logits (N, 1, H, W); H and W multiples of 32.

    Node X(i,j), at stride 2^i, sees all earlier nodes of its row and X(i+1,j-1) upsampled. Fusion
    and weights follow the code published by Peng et al.
    (daifeng2016/End-to-end-CD-for-VHR-satellite-image): the fused output is a 1x1 convolution
    over the features of X(0,1) to X(0,4), not over their logits; every unit but the first is
    residual; SELU comes before batch norm. We assume that Li et al. use the same units.

    Departures: one grey image instead of two stacked colour images; PyTorch's initialisation;
    the training configuration decides on weight decay and criterion.

    Args:
        base_channels: channels of the first row; each row below has twice as many (32 to 512 in
            the published code).
    """

    def __init__(self, *, base_channels: int = 32) -> None:
        super().__init__()
        if base_channels < 1:
            raise ValueError(f"base_channels must be at least 1, got {base_channels}")
        channels = [base_channels * 2**row for row in range(DEPTH)]
        self.nodes, self.up = nn.ModuleDict(), nn.ModuleDict()
        for row, here in enumerate(channels):
            above = channels[row - 1] if row else 1
            self.nodes[_name(row, 0)] = Unit(above, here, residual=row > 0)
            for column in range(1, DEPTH - row):
                self.up[_name(row, column)] = nn.ConvTranspose2d(
                    channels[row + 1], here, 2, stride=2
                )
                self.nodes[_name(row, column)] = Unit((1 + column) * here, here)
        self.side_heads = nn.ModuleList(
            expect_few_positives(nn.Conv2d(base_channels, 1, 1)) for _ in range(1, DEPTH)
        )
        self.fused_head = expect_few_positives(nn.Conv2d((DEPTH - 1) * base_channels, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fused_head(torch.cat(self.first_row(images), dim=1))

    def first_row(self, images: torch.Tensor) -> list[torch.Tensor]:
        """images (N, 1, H, W) in [0, 1] -> X(0,1) to X(0,4), each (N, base_channels, H, W)."""
        rows: list[list[torch.Tensor]] = []
        x = self.prepare(images)
        for row in range(DEPTH):
            x = self.nodes[_name(row, 0)](x)
            rows.append([x])
            x = F.max_pool2d(x, 2)
        for column in range(1, DEPTH):
            for row in range(DEPTH - column):
                upsampled = self.up[_name(row, column)](rows[row + 1][column - 1])
                rows[row].append(
                    self.nodes[_name(row, column)](torch.cat([upsampled, *rows[row]], dim=1))
                )
        return rows[0][1:]

    def training_loss(
        self, images: torch.Tensor, masks: torch.Tensor, criterion: Criterion
    ) -> dict[str, torch.Tensor]:
        """`loss` is the sum of side1, side2, side3, side4 and fused, weighted by LOSS_WEIGHTS."""
        features = self.first_row(images)
        losses = {
            f"side{number}": criterion(head(x), masks)
            for number, (head, x) in enumerate(zip(self.side_heads, features, strict=True), start=1)
        }
        losses["fused"] = criterion(self.fused_head(torch.cat(features, dim=1)), masks)
        weighted = [
            weight * loss for weight, loss in zip(LOSS_WEIGHTS, losses.values(), strict=True)
        ]
        return {"loss": torch.stack(weighted).sum(), **losses}


class Unit(nn.Module):
    """Two 3x3 convolutions: (N, in_channels, H, W) -> (N, out_channels, H, W).

    A residual path skips the second.
    """

    def __init__(self, in_channels: int, out_channels: int, *, residual: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.residual = residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = F.selu(self.conv1(x))
        second = self.norm2(F.selu(self.conv2(self.norm1(first))))
        return first + second if self.residual else second


def _name(row: int, column: int) -> str:
    return f"x{row}_{column}"
