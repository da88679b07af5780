"""What every network here promises: grey images in, logits of the same size out, and its own training loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

# ImageNet statistics, the mean over red, green and blue: (0.485, 0.456, 0.406) and (0.229, 0.224, 0.225), as published
# with torchvision's weights. A grey image stands for three equal channels, so one mean and one deviation serve.
GREY_MEAN = 0.449
GREY_STD = 0.226

STRIDE = 32  # the coarsest level of the encoders

Criterion = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class SegmentationNetwork(nn.Module):
    """images (N, 1, H, W) float in [0, 1] -> logits (N, 1, H, W); H and W multiples of 32.

    A subclass writes `forward`, beginning with `self.prepare(images)`, and overrides `training_loss` when it is
    trained on more than its output (instances, side outputs).
    """

    has_idle_parameters = False  # whether a batch may give some of the parameters no gradient
    no_fixed_graph = (
        ""  # why it cannot be exported, where what it computes depends on what is in the image
    )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError(f"{type(self).__name__} does not define forward")

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """images (N, 1, H, W) in [0, 1] -> the same shape, about zero mean and unit deviation; wrong sizes refused."""
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
        """Logits of the mask (N, 1, H, W), and (N,) of there being a pneumothorax where a network says so by itself."""
        return self(images), None

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Those that pretrained weights fill: a warm-up can leave them as they are. Empty where there are none."""
        encoder = getattr(self, "encoder", None)
        return [] if encoder is None else list(encoder.parameters())

    def training_loss(
        self, images: torch.Tensor, masks: torch.Tensor, criterion: Criterion
    ) -> dict[str, torch.Tensor]:
        """Scalars of one training step; `loss` is minimised, any other is for the history.

        Args:
            images: (N, 1, H, W) float in [0, 1].
            masks: (N, 1, H, W) float, 0 or 1.
            criterion: (logits, masks) -> scalar, both (N, 1, H, W).
        """
        return {"loss": criterion(self(images), masks)}
