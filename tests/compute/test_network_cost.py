"""Networks that cannot take an image size are refused with one that they take."""

import pytest
import torch
from torch import nn

import models
from pneumothorax.compute import network_cost
from pneumothorax.errors import BadConfig
from tests.helpers.memory import OUT_OF_MEMORY
from tests.helpers.networks import RANDOM_RESNET18


@pytest.fixture(scope="module")
def pan():
    return models.build("smp/PAN", **RANDOM_RESNET18)


def test_pan_is_refused_at_96_pixels_with_the_size_that_it_takes(pan):
    # Its pyramid halves the features at stride 16 three times: 8 x 8 of them are the least.
    with pytest.raises(
        BadConfig,
        match=r"image_size 96: the network cannot take images of 96 x 96 \(.*too small\); "
        r"the nearest size that works is 128: --set image_size=128",
    ):
        network_cost.require_size(pan, 96)


def test_a_size_that_works_is_accepted_and_leaves_the_network_and_the_random_numbers_alone(pan):
    before = {name: value.clone() for name, value in pan.state_dict().items()}
    numbers = torch.get_rng_state()
    network_cost.require_size(pan, 128)
    assert pan.training
    assert torch.equal(torch.get_rng_state(), numbers)
    assert all(torch.equal(before[name], value) for name, value in pan.state_dict().items())


class Takes(nn.Module):
    """Takes images of these sizes only, as vision transformers do."""

    def __init__(self, *sizes):
        super().__init__()
        self.sizes = sizes

    def forward(self, images):
        assert images.shape[3] in self.sizes, f"not one of {self.sizes}"
        return images


@pytest.mark.parametrize(
    ("sizes", "advice"),
    [
        ((32, 192), "the nearest size that works is 192"),
        ((96, 160), "the nearest size that works is 160"),  # of two, the larger
        ((64, 256), "the nearest size that works is 64"),
        ((256,), "the nearest size that works is 256"),
        ((100, 320), "no other size up to twice as large works either"),  # no multiple of 32
    ],
)
def test_the_nearest_multiple_of_32_up_to_twice_the_size_is_advised(sizes, advice):
    with pytest.raises(BadConfig, match=rf"not one of .*{advice}"):
        network_cost.require_size(Takes(*sizes), 128)


def test_too_little_memory_is_not_blamed_on_the_image_size():
    class Hungry(nn.Module):
        def forward(self, images):
            raise OUT_OF_MEMORY[-1]

    with pytest.raises(MemoryError):
        network_cost.require_size(Hungry(), 128)
