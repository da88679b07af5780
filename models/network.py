"""What every network promises: grey images in, logits of the same size out, a training loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

# ImageNet statistics, averaged over red, green and blue: (0.485, 0.456, 0.406) and
# (0.229, 0.224, 0.225), as published with torchvision's weights. A grey image stands for three
# equal channels, so one mean and one deviation are enough.
GREY_MEAN = 0.449
GREY_STD = 0.226

POSITIVE_SHARE = 0.01  # of the pixels: what an untrained network predicts
STRIDE = 32  # of the encoders' coarsest level

Head = TypeVar("Head", bound=nn.Module)
Criterion = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def expect_few_positives(head: Head) -> Head:
    """`head`, whose last convolution gets a bias that gives pixels POSITIVE_SHARE.

    Lin et al. 2017, Focal Loss for Dense Object Detection, section 4.1. From even odds the
    first hundred steps make the background negative, by weights: in a decoder with few
    channels all of them may end up negative, and no pixel ever rises above the bias.
    """
    last = [module for module in head.modules() if isinstance(module, nn.Conv2d)][-1]
    assert last.bias is not None
    nn.init.constant_(last.bias, math.log(POSITIVE_SHARE / (1 - POSITIVE_SHARE)))
    return head


class SegmentationNetwork(nn.Module):
    """images (N, 1, H, W) float in [0, 1] -> logits (N, 1, H, W); H and W multiples of 32.

    A subclass defines `forward`, which begins with `self.prepare(images)`. It overrides
    `training_loss` if it is trained on more than its output (instances, side outputs).
    """

    has_idle_parameters = False  # whether some parameters may get no gradient from a batch
    no_fixed_graph = ""  # why it cannot be exported, if its computation depends on the image

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError(f"{type(self).__name__} does not define forward")

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N, 1, H, W) in [0, 1], normalised. ValueError if shape or type is wrong."""
        if images.ndim != 4 or images.shape[1] != 1 or not images.is_floating_point():
            raise ValueError(
                f"images are (N, 1, H, W) float in [0, 1], got {tuple(images.shape)} {images.dtype}"
            )
        height, width = images.shape[2:]
        if height % STRIDE or width % STRIDE:
            raise ValueError(
                f"height and width must be multiples of {STRIDE}, got {height} x {width}: "
                f"resize or pad to {-(-height // STRIDE) * STRIDE} x {-(-width // STRIDE) * STRIDE}"
            )
        return (images - GREY_MEAN) / GREY_STD

    def outputs(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits of the mask (N, 1, H, W); of the image (N,), or None without such a head."""
        return self(images), None

    def encoder_parameters(self) -> list[nn.Parameter]:
        """The parameters that pretrained weights fill, which a warm-up may freeze. May be empty."""
        encoder = getattr(self, "encoder", None)
        return [] if encoder is None else list(encoder.parameters())

    def training_loss(
        self, images: torch.Tensor, masks: torch.Tensor, criterion: Criterion
    ) -> dict[str, torch.Tensor]:
        """The scalars of one training step: `loss` is minimised, the others go to the history.

        Args:
            images: (N, 1, H, W) float in [0, 1].
            masks: (N, 1, H, W) float, 0 or 1.
            criterion: (logits, masks) -> scalar, both (N, 1, H, W).
        """
        return {"loss": criterion(self(images), masks)}
