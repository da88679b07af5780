"""Losses, compared with hand-computed values and with segmentation_models_pytorch."""

import math

import pytest
import torch

from models import smp_library
from pneumothorax.training import losses


def test_soft_dice_by_hand():
    logits = torch.tensor([[[[0.0, 0.0], [100.0, -100.0]]]])  # probabilities 0.5, 0.5, 1, 0
    masks = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])
    # overlap 1.5, sums 2 and 2: Dice with smooth 1 is (3 + 1) / (4 + 1)
    assert losses.soft_dice_loss(logits, masks).item() == pytest.approx(1 - 4 / 5)


def test_every_positive_image_has_the_same_share_in_its_dice_loss_and_a_negative_one_none():
    found = torch.tensor([[[0.0, 0.0], [100.0, -100.0]]])  # probabilities 0.5, 0.5, 1, 0
    small = torch.tensor([[[0.0, 0.0], [1.0, 0.0]]])  # overlap 1, sums 2 and 1: (2 + 1) / 4
    large = torch.ones(1, 2, 2)  # overlap 2, sums 2 and 4: (4 + 1) / 7
    none = torch.zeros(1, 2, 2)
    loss = losses.positive_dice_loss(
        torch.stack([found, found, found]), torch.stack([small, large, none])
    )
    assert loss.item() == pytest.approx(((1 - 3 / 4) + (1 - 5 / 7)) / 2)
    assert losses.positive_dice_loss(found[None], none[None]).item() == 0


def test_the_positive_combo_of_one_positive_image_is_the_combo():
    logits, masks = sample()
    one, mask = logits[:1], masks[:1]
    expected = losses.combo(one, mask).item()
    assert losses.positive_combo(one, mask).item() == pytest.approx(expected)


def test_a_batch_without_positives_still_pushes_false_alarms_down():
    logits = torch.zeros(2, 1, 4, 4, requires_grad=True)
    losses.soft_dice_loss(logits, torch.zeros(2, 1, 4, 4)).backward()
    assert (logits.grad > 0).all()


def test_bce_dice_is_the_sum_of_its_two_terms():
    logits, masks = torch.randn(2, 1, 8, 8), (torch.rand(2, 1, 8, 8) > 0.5).float()
    p = logits.sigmoid()
    bce = -(masks * p.log() + (1 - masks) * (1 - p).log()).mean()
    dice = 1 - (2 * (p * masks).sum() + 1) / (p.sum() + masks.sum() + 1)
    assert losses.bce_dice(logits, masks).item() == pytest.approx((bce + dice).item(), rel=1e-5)


def test_losses_of_16_bit_logits_are_summed_in_32_bits():
    # 65,536 pixels at probability 0.5 sum to 32,768; in bf16 the sum would stop growing at 256.
    logits, masks = torch.zeros(1, 1, 256, 256, dtype=torch.bfloat16), torch.ones(1, 1, 256, 256)
    dice = (2 * 32768 + 1) / (32768 + 65536 + 1)
    assert losses.soft_dice_loss(logits, masks).item() == pytest.approx(1 - dice, rel=1e-4)


@pytest.mark.parametrize("name", losses.CRITERIA)
def test_in_mixed_precision_a_loss_is_computed_in_32_bits(name):
    logits, masks = sample()
    logits = logits.bfloat16()
    expected = losses.CRITERIA[name](logits.float(), masks)
    with torch.autocast("cpu", torch.bfloat16):
        loss = losses.CRITERIA[name](logits, masks)
    assert loss.dtype == torch.float32
    assert loss.item() == expected.item()


def library():
    smp_library.load()
    from segmentation_models_pytorch import losses as smp_losses

    return smp_losses


def sample(seed=0, share=0.3):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(3, 1, 16, 16, generator=generator)
    return logits, (torch.rand(3, 1, 16, 16, generator=generator) < share).float()


def test_focal_by_hand():
    # One pixel, p = 0.8 for its true class: 0.2 ** 2 * -log(0.8).
    logits, masks = torch.full((1, 1, 1, 1), math.log(4)), torch.ones(1, 1, 1, 1)
    assert losses.focal(logits, masks).item() == pytest.approx(0.04 * -math.log(0.8), rel=1e-5)


def test_lovasz_by_hand():
    # Truth (1, 0), logits (0.5, 2).
    # Errors 1 - 0.5 and 1 + 2; sorted 3, 0.5. Jaccard loss: 1 - 1/2 = 1/2, then 1 - 0/2 = 1.
    # Loss: 3 * 1/2 + 0.5 * 1/2.
    logits, masks = torch.tensor([[[[0.5, 2.0]]]]), torch.tensor([[[[1.0, 0.0]]]])
    assert losses.lovasz(logits, masks).item() == pytest.approx(1.75)


def test_lovasz_of_an_image_without_positives_is_the_hinge_of_its_worst_pixel():
    # Errors 1 + logit: the worst of 1.5, 3 and -1 is 3; the second image, surely empty, gives 0.
    # The mean of the two is 1.5.
    logits = torch.tensor([[[[0.5, 2.0, -2.0]]], [[[-2.0, -3.0, -4.0]]]], requires_grad=True)
    loss = losses.lovasz(logits, torch.zeros(2, 1, 1, 3))
    loss.backward()
    assert loss.item() == 1.5
    assert logits.grad.flatten().tolist() == [0, 0.5, 0, 0, 0, 0]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_focal_and_lovasz_are_those_of_the_library(share):
    logits, masks = sample(share=share)
    assert losses.focal(logits, masks).item() == pytest.approx(
        library().FocalLoss("binary")(logits, masks).item()
    )
    theirs = library().LovaszLoss("binary", per_image=True)(logits, masks).item()
    assert losses.lovasz(logits, masks).item() == pytest.approx(theirs, rel=1e-5)


def test_combo_weights_its_terms_as_the_first_place_did():
    logits, masks = sample()
    p = logits.sigmoid()
    bce = -(masks * p.log() + (1 - masks) * (1 - p).log()).mean()
    dice = 1 - (2 * (p * masks).sum() + 1) / (p.sum() + masks.sum() + 1)
    true = torch.where(masks == 1, p, 1 - p)
    focal = -((1 - true) ** 2 * true.log()).mean()
    assert losses.combo(logits, masks).item() == pytest.approx(
        (3 * bce + dice + 4 * focal).item(), rel=1e-4
    )


@pytest.mark.parametrize("name", losses.CRITERIA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_every_loss_is_finite_and_falls_along_its_gradient(name, dtype, share):
    logits, masks = sample(share=share)
    logits = (10 * logits).to(dtype).requires_grad_()
    loss = losses.CRITERIA[name](logits, masks)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(logits.grad).all()
    lower = losses.CRITERIA[name](
        logits.detach().float() - 5 * logits.grad.float() / logits.grad.float().norm(), masks
    )
    assert lower < loss
