"""What training minimises: functions of logits and masks, both (N, 1, H, W).

Sums over pixels are made in fp32, whatever the logits come in.
"""

from collections.abc import Callable

import torch
from torch.nn import functional

Criterion = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def soft_dice_loss(logits: torch.Tensor, masks: torch.Tensor, *, smooth: float = 1.0) -> torch.Tensor:
    """1 - Dice of probabilities and masks, summed over the batch (Milletari 2016, V-Net, section 3).

    `smooth` pixels on both sides keep a gradient in batches without any positive pixel, where the loss pushes
    false positives down. (The Dice loss of segmentation_models_pytorch is zero there.)
    """
    probabilities = logits.float().sigmoid()
    overlap = (probabilities * masks).sum()
    return 1 - (2 * overlap + smooth) / (probabilities.sum() + masks.sum() + smooth)


def bce_dice(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy plus soft Dice loss, in equal parts."""
    return functional.binary_cross_entropy_with_logits(logits.float(), masks) + soft_dice_loss(logits, masks)


CRITERIA: dict[str, Criterion] = {"bce_dice": bce_dice}
