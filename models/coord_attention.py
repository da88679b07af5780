"""Improved coordinate attention: gate each channel by its row profile and its column profile.

Base: Hou, Zhou, Feng: Coordinate Attention for Efficient Mobile Network Design, CVPR 2021,
arXiv:2103.02907, section 3.2; equation numbers below are theirs.
Improved: Zhang: Segmentation of Pneumothorax Disease based on Deep Learning, section 2.2, adds
profiles by maximum and a residual path around the gates. It leaves open how mean and maximum
are combined; `merge` offers three ways.

Measured on 1,167 radiographs at 128 x 128, and on 502 at 192 x 192 and at 256 x 256, no
improved form of the block made a network better by more than the interval of the difference.
The published one did so at 192 x 192, by 0.009, and not elsewhere (benchmarks/RESULTS.md).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import nn

Reduce = Callable[[torch.Tensor, int], torch.Tensor]  # (values, axis) -> without that axis

POOLINGS: dict[str, tuple[Reduce, ...]] = {
    "avg": (torch.mean,),
    "max": (torch.amax,),
    "avg+max": (torch.mean, torch.amax),
}
MERGES = ("concat", "sum", "shared")
DEFAULT_MERGE = "concat"


class ImprovedCoordAttention(nn.Module):
    """x (N, C, H, W) -> same shape and memory format: x + x * a_h * a_w, gates in (0, 1).

    a_h (N, C, H, 1) has one value per row, a_w (N, C, 1, W) one per column. With
    pooling="avg" and residual=False this is the published block.

    Args:
        channels: C.
        reduction: the squeeze has max(8, C // reduction) channels.
        merge: how the profiles by mean and by maximum are combined if pooling is "avg+max":
            "concat": the squeeze takes 2C channels;
            "sum": the profiles are added;
            "shared": the same convolutions run on each profile, and the gates' logits are added.
        pooling: which profiles are taken: "avg", "max" or "avg+max".
        residual: False gives x * a_h * a_w.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 32,
        merge: str = DEFAULT_MERGE,
        pooling: str = "avg+max",
        residual: bool = True,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
        if merge not in MERGES:
            raise ValueError(f"merge must be one of {', '.join(MERGES)}, got {merge!r}")
        if channels < 1 or reduction < 1:
            raise ValueError(
                f"channels and reduction must be at least 1, got {channels} and {reduction}"
            )
        self.reducers = POOLINGS[pooling]
        self.merge = merge
        self.residual = residual

        squeezed = max(8, channels // reduction)
        profiles = len(self.reducers) if merge == "concat" else 1
        # Conv1d, because a profile has one axis, and because a 1x1 Conv2d in channels_last makes
        # DistributedDataParallel warn about gradient strides.
        self.squeeze = nn.Sequential(
            nn.Conv1d(profiles * channels, squeezed, 1), nn.BatchNorm1d(squeezed), nn.Hardswish()
        )  # equation 6
        self.gate_rows = nn.Conv1d(squeezed, channels, 1)  # equation 7
        self.gate_cols = nn.Conv1d(squeezed, channels, 1)  # equation 8

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        profiles = [row_and_column_profile(x, reduce) for reduce in self.reducers]
        rows, cols = self.gate_logits(profiles, height=x.shape[2])
        gate = outer_product(rows.sigmoid(), cols.sigmoid(), like=x)  # (N, C, H, W)
        # Equation 9, and with a residual x + x * gate, which addcmul does in one pass over memory.
        return torch.addcmul(x, x, gate) if self.residual else x * gate

    def gate_logits(
        self, profiles: list[torch.Tensor], *, height: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One or two profiles (N, C, H + W) -> logits of both gates, (N, C, H) and (N, C, W)."""
        if self.merge == "concat":
            profile = torch.cat(profiles, dim=1)  # (N, 2C, H + W)
        elif self.merge == "sum":
            profile = _total(profiles)
        else:
            # "shared": both profiles in one batch, so that batch norm normalises, and tracks, the
            # statistics of their mixture.
            profile = torch.cat(profiles, dim=0)  # (2N, C, H + W)
        squeezed = self.squeeze(profile)
        rows = self.gate_rows(squeezed[:, :, :height])
        cols = self.gate_cols(squeezed[:, :, height:])
        if self.merge == "shared" and len(profiles) > 1:
            rows, cols = (
                _total(logits.unflatten(0, (len(profiles), -1)).unbind()) for logits in (rows, cols)
            )
        return rows, cols


def _total(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Not `torch.sum`, which CUDA's autocast computes in fp32, and with it all that follows."""
    return functools.reduce(torch.add, tensors)


def row_and_column_profile(x: torch.Tensor, reduce: Reduce) -> torch.Tensor:
    """x (N, C, H, W) -> (N, C, H + W): a value per row, then a value per column (equations 4, 5).

    Plain reductions in memory order. On a CPU, adaptive pooling is several times slower, and so
    is reducing a channels_last tensor along its (N, C, H, W) axes.
    """
    if is_channels_last(x):
        pixels = x.permute(0, 2, 3, 1)
        return torch.cat([reduce(pixels, 2), reduce(pixels, 1)], dim=1).transpose(1, 2)
    return torch.cat([reduce(x, 3), reduce(x, 2)], dim=2)


def outer_product(rows: torch.Tensor, cols: torch.Tensor, *, like: torch.Tensor) -> torch.Tensor:
    """rows (N, C, H), cols (N, C, W) -> (N, C, H, W), in the memory format of `like` for speed."""
    if is_channels_last(like):
        by_row = rows.transpose(1, 2).contiguous().unsqueeze(2)  # (N, H, 1, C)
        by_col = cols.transpose(1, 2).contiguous().unsqueeze(1)  # (N, 1, W, C)
        return (by_row * by_col).permute(0, 3, 1, 2)
    return rows.unsqueeze(3) * cols.unsqueeze(2)


def is_channels_last(x: torch.Tensor) -> bool:
    """Whether the channels of a pixel are adjacent in memory; False where both orders coincide."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
