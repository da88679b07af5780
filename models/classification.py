"""An image-level output beside the mask: is there a pneumothorax at all?"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from .network import Criterion, SegmentationNetwork


class ClassificationHead(nn.Module):
    """features (N, C, h, w) -> logits (N,): the mean of every channel, and one linear layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear(features.mean((2, 3))).squeeze(1)


class NetworkWithClassification(SegmentationNetwork):
    """A network that may have a classification head on its encoder's deepest features, trained with the mask.

    A subclass calls `add_classification_head` and writes `outputs`, which ends in `return logits, self.classification(features)`.
    """

    classification_head: ClassificationHead | None
    classification_weight: float

    def add_classification_head(self, channels: int, weight: float) -> None:
        """With a weight of 0 there is no head. Raises ValueError for a negative or infinite weight."""
        self.classification_weight = checked(weight)
        self.classification_head = ClassificationHead(channels) if weight else None

    def classification(self, features: torch.Tensor) -> torch.Tensor | None:
        """features (N, C, h, w) -> logits (N,), None without a head."""
        return None if self.classification_head is None else self.classification_head(features)

    def outputs(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        raise NotImplementedError(f"{type(self).__name__} does not define outputs")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.outputs(images)[0]

    def training_loss(
        self, images: torch.Tensor, masks: torch.Tensor, criterion: Criterion
    ) -> dict[str, torch.Tensor]:
        """`loss` is mask + classification_weight x classification, the cross-entropy of whether the mask has any pixel."""
        logits, classification = self.outputs(images)
        mask = criterion(logits, masks)
        if classification is None:
            return {"loss": mask}
        positive = masks.amax((1, 2, 3))
        of_image = F.binary_cross_entropy_with_logits(classification.float(), positive)
        return {
            "loss": mask + self.classification_weight * of_image,
            "mask": mask,
            "classification": of_image,
        }


def checked(weight: float) -> float:
    """ValueError unless it is at least 0 and finite."""
    if not 0 <= weight < math.inf:
        raise ValueError(f"classification_weight is at least 0 and finite, got {weight}")
    return weight
