"""An image-level output next to the mask: does the image show a pneumothorax?"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from .network import Criterion, SegmentationNetwork


class ClassificationHead(nn.Module):
    """features (N, C, h, w) -> logits (N,): global average pooling and one linear layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear(features.mean((2, 3))).squeeze(1)


class NetworkWithClassification(SegmentationNetwork):
    """A network with an optional classification head on its encoder's deepest features.

    A subclass calls `add_classification_head` at the end of `__init__` and defines `outputs`,
    which returns the mask's logits and `self.classification(features)`.
    """

    classification_head: ClassificationHead | None
    classification_weight: float

    def add_classification_head(self, channels: int, weight: float) -> None:
        """Builds the head, or none for a weight of 0. ValueError if the weight is invalid."""
        self.classification_weight = checked_weight(weight)
        self.classification_head = ClassificationHead(channels) if weight else None

    def classification(self, features: torch.Tensor) -> torch.Tensor | None:
        """features (N, C, h, w) -> logits (N,), or None without a head."""
        return None if self.classification_head is None else self.classification_head(features)

    def outputs(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        raise NotImplementedError(f"{type(self).__name__} does not define outputs")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.outputs(images)[0]

    def training_loss(
        self, images: torch.Tensor, masks: torch.Tensor, criterion: Criterion
    ) -> dict[str, torch.Tensor]:
        """`loss` is mask + classification_weight x classification.

        The classification loss is a binary cross-entropy; an image is positive if its mask has
        any pixel.
        """
        logits, image_logits = self.outputs(images)
        mask = criterion(logits, masks)
        if image_logits is None:
            return {"loss": mask}
        positive = masks.amax((1, 2, 3))  # (N,)
        classification = F.binary_cross_entropy_with_logits(image_logits.float(), positive)
        loss = mask + self.classification_weight * classification
        return {"loss": loss, "mask": mask, "classification": classification}


def checked_weight(weight: float) -> float:
    """The weight itself. ValueError unless it is finite and at least 0."""
    if not 0 <= weight < math.inf:
        raise ValueError(f"classification_weight must be at least 0 and finite, got {weight}")
    return weight
