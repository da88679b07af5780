"""The steps of Optimization are PyTorch's own, to the last bit."""

import copy

import pytest
import torch
from torch import nn

from pneumothorax.training.config import TrainConfig
from pneumothorax.training.losses import bce_dice
from pneumothorax.training.optimization import Optimization, Outcome
from tests.helpers.networks import small

CLIPPED, DECAY = 0.05, 0.3  # the decay rises for three steps


def batches():
    """Images and masks of six steps, (4, 1, 32, 32) each."""
    generator = torch.Generator().manual_seed(0)
    images, noise = torch.rand(2, 6, 4, 1, 32, 32, generator=generator)
    return list(zip(images, (noise > 0.9).float(), strict=True))


def plain_steps(network, *, parts):
    """Train with nothing but PyTorch -> the moving average."""
    average = copy.deepcopy(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01, weight_decay=0.001, fused=True)
    for step, (images, masks) in enumerate(batches()):
        optimizer.zero_grad()
        for part, truth in zip(images.chunk(parts), masks.chunk(parts), strict=True):
            (bce_dice(network(part), truth) / parts).backward()
        assert nn.utils.clip_grad_norm_(network.parameters(), CLIPPED) > CLIPPED
        optimizer.step()
        for old, new in zip(
            average.state_dict().values(), network.state_dict().values(), strict=True
        ):
            share = 1 - min(DECAY, (1 + step) / (10 + step))
            old.copy_(old.lerp(new, share) if old.is_floating_point() else new)
    return average


@pytest.mark.parametrize("parts", [1, 2])
def test_steps_in_32_bits_are_those_of_a_plain_loop_to_the_last_bit(parts):
    """With parts of a batch, batch norm, clipping, weight decay and a moving average."""
    trained, plain = (small("unet").to(memory_format=torch.channels_last) for _ in range(2))
    config = TrainConfig(
        image_size=32,
        batch_size=4,
        accumulation_steps=parts,
        learning_rate=0.01,
        weight_decay=0.001,
        clip_gradient_norm=CLIPPED,
        ema_decay=DECAY,
        precision="fp32",
    )
    optimization = Optimization(trained, config, torch.device("cpu"))
    optimization.start_epoch(0)
    for images, masks in batches():
        cut = zip(images.chunk(parts), masks.chunk(parts), [[4 // parts]] * parts, strict=True)
        assert optimization.step(cut, parts, 4)[1] is Outcome.TAKEN

    average = plain_steps(plain, parts=parts)
    for found, expected in ((trained, plain), (optimization.result, average)):
        weights, others = found.state_dict(), expected.state_dict()
        assert [name for name in others if not torch.equal(weights[name], others[name])] == []
