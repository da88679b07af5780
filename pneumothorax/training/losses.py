"""What training minimises: functions of logits and masks of 0 and 1, both (N, 1, H, W) -> scalar.

Sums over pixels are computed in fp32, also of 16-bit logits. The focal and the Lovasz loss
equal those of segmentation_models_pytorch, as a test shows; importing that library would
need packages that training does not.
"""

import torch
from torch.nn import functional

from pneumothorax.compute.distributed import Criterion


def soft_dice_loss(
    logits: torch.Tensor, masks: torch.Tensor, *, smooth: float = 1.0
) -> torch.Tensor:
    """1 - Dice, with sums over the batch (Milletari 2016, V-Net, section 3).

    `smooth` keeps a gradient in batches without a positive pixel, where the loss pushes
    false positives down. (The Dice loss of segmentation_models_pytorch is zero there.)
    """
    probabilities = logits.float().sigmoid()
    overlap = (probabilities * masks).sum()
    return 1 - (2 * overlap + smooth) / (probabilities.sum() + masks.sum() + smooth)


def positive_dice_loss(
    logits: torch.Tensor, masks: torch.Tensor, *, smooth: float = 1.0
) -> torch.Tensor:
    """1 - Dice of each positive image, their mean: as the metric scores them.

    In `soft_dice_loss`, sums over the batch let large lesions drown small ones, and push
    probabilities down in negative images, where a classification head can decide instead.
    Without a positive image it is 0.
    """
    probabilities, masks = logits.float().sigmoid().flatten(1), masks.flatten(1)
    positive = masks.amax(1)
    overlap, total = (probabilities * masks).sum(1), probabilities.sum(1) + masks.sum(1)
    losses = 1 - (2 * overlap + smooth) / (total + smooth)
    return (losses * positive).sum() / positive.sum().clamp(min=1)


def bce(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy."""
    return functional.binary_cross_entropy_with_logits(logits.float(), masks)


def bce_dice(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Cross-entropy plus soft Dice loss, with equal weights."""
    return bce(logits, masks) + soft_dice_loss(logits, masks)


def focal(logits: torch.Tensor, masks: torch.Tensor, *, gamma: float = 2.0) -> torch.Tensor:
    """Mean over pixels of cross-entropy times (1 - probability of the true class) ** gamma.

    Lin et al. 2017, Focal Loss for Dense Object Detection, arXiv:1708.02002, equation 4.
    """
    per_pixel = functional.binary_cross_entropy_with_logits(logits.float(), masks, reduction="none")
    return ((1 - torch.exp(-per_pixel)) ** gamma * per_pixel).mean()


def lovasz(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Lovasz hinge: a convex surrogate of 1 - intersection over union, averaged over images.

    Berman, Triki, Blaschko 2018, The Lovasz-Softmax loss, arXiv:1705.08790, section 3 and
    algorithm 1. An image without positives contributes the hinge of its worst pixel.
    """
    losses = []
    for image, mask in zip(logits.float().flatten(1), masks.float().flatten(1), strict=True):
        errors, order = torch.sort(1 - image * (2 * mask - 1), descending=True)
        truth = mask[order]
        intersection = truth.sum() - truth.cumsum(0)
        union = truth.sum() + (1 - truth).cumsum(0)
        jaccard = 1 - intersection / union
        steps = torch.diff(jaccard, prepend=jaccard.new_zeros(1))
        # Not torch.dot, which autocast would compute in 16 bits.
        losses.append((functional.relu(errors) * steps).sum())
    return torch.stack(losses).mean()


def combo(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """3 x cross-entropy + soft Dice loss + 4 x focal loss: SIIM-ACR's first-place weights.

    As in its code (ComboLoss of sneddy/pneumothorax-segmentation), gamma is 2, no class is
    weighted, and Dice is that of the batch. Departure: its `smooth` is 1e-5.
    """
    return 3 * bce(logits, masks) + soft_dice_loss(logits, masks) + 4 * focal(logits, masks)


def positive_combo(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """`combo` with `positive_dice_loss` in place of the batch's Dice loss."""
    pixels = 3 * bce(logits, masks) + 4 * focal(logits, masks)
    return pixels + positive_dice_loss(logits, masks)


CRITERIA: dict[str, Criterion] = {
    "bce_dice": bce_dice,
    "combo": combo,
    "focal": focal,
    "lovasz": lovasz,
    "positive_combo": positive_combo,
}
