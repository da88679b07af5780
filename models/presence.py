"""An image-level output beside the mask: is there a pneumothorax at all?"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from models.network import Criterion, SegmentationNetwork


class PresenceHead(nn.Module):
    """features (N, C, h, w) -> logits (N,): the mean of every channel, and one linear layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear(features.mean((2, 3))).squeeze(1)


class NetworkWithPresence(SegmentationNetwork):
    """A network that may have a presence head on its encoder's deepest features, trained with the mask.

    A subclass calls `add_presence_head` and writes `outputs`, which ends in `return logits, self.presence(features)`.
    """

    presence_head: PresenceHead | None
    presence_weight: float

    def add_presence_head(self, channels: int, weight: float) -> None:
        """With a weight of 0 there is no head. Raises ValueError for a negative or infinite weight."""
        self.presence_weight = checked(weight)
        self.presence_head = PresenceHead(channels) if weight else None

    def presence(self, features: torch.Tensor) -> torch.Tensor | None:
        """features (N, C, h, w) -> logits (N,), None without a head."""
        return None if self.presence_head is None else self.presence_head(features)

    def outputs(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        raise NotImplementedError(f"{type(self).__name__} does not define outputs")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.outputs(images)[0]

    def training_loss(
        self, images: torch.Tensor, masks: torch.Tensor, criterion: Criterion
    ) -> dict[str, torch.Tensor]:
        """`loss` is mask + presence_weight x presence, the cross-entropy of whether the mask has any pixel."""
        logits, presence = self.outputs(images)
        mask = criterion(logits, masks)
        if presence is None:
            return {"loss": mask}
        positive = masks.amax((1, 2, 3))
        of_image = F.binary_cross_entropy_with_logits(presence.float(), positive)
        return {"loss": mask + self.presence_weight * of_image, "mask": mask, "presence": of_image}


def checked(weight: float) -> float:
    """ValueError unless it is at least 0 and finite."""
    if not 0 <= weight < math.inf:
        raise ValueError(f"presence_weight is at least 0 and finite, got {weight}")
    return weight
