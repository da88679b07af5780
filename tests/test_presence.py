"""The presence head: an image-level output that is trained with the mask, and changes nothing where it is off."""

import pytest
import torch

import models
from pneumothorax import losses

SMALL = {
    "ica_resunet": {"encoder": "resnet18", "decoder_channels": [16, 8, 8, 8, 8]},
    "ica_resunet_paper": {"width": 4, "decoder_channels": [16, 8, 8, 8]},
    "albunet": {"encoder": "resnet18", "filters": 4},
    "smp/FPN": {"encoder": "resnet18", "decoder_pyramid_channels": 16, "decoder_segmentation_channels": 32},
}


def build(name, **settings):
    torch.manual_seed(0)
    return models.build_untrained(name, **SMALL[name], **settings)


@pytest.mark.parametrize("name", SMALL)
def test_with_a_head_every_parameter_is_trained_and_both_outputs_come(name):
    network = build(name, presence_weight=0.5)
    images, masks = torch.rand(4, 1, 64, 64), torch.zeros(4, 1, 64, 64)
    masks[0, :, 10:20, 10:20] = 1
    found = network.training_loss(images, masks, losses.bce_dice)
    torch.testing.assert_close(found["loss"], found["mask"] + 0.5 * found["presence"])
    found["loss"].backward()
    without = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert without == []
    network.eval()
    with torch.no_grad():
        logits, presence = network.outputs(images)
        assert (logits.shape, presence.shape) == ((4, 1, 64, 64), (4,))
        torch.testing.assert_close(network(images), logits)


@pytest.mark.parametrize("name", SMALL)
def test_without_a_head_the_network_is_what_it_was(name):
    plain, weighted = build(name), build(name, presence_weight=0.5)
    added = set(weighted.state_dict()) - set(plain.state_dict())
    assert {key.rsplit(".", 1)[1] for key in added} == {"weight", "bias"}
    assert set(plain.state_dict()) < set(weighted.state_dict())
    plain.eval()
    _, presence = plain.outputs(torch.rand(1, 1, 64, 64))
    assert presence is None
    assert set(plain.training_loss(torch.rand(2, 1, 64, 64), torch.zeros(2, 1, 64, 64), losses.bce_dice)) == {"loss"}


def test_the_target_is_whether_the_mask_has_any_pixel():
    network = build("ica_resunet", presence_weight=1.0)
    torch.nn.init.zeros_(network.presence_head.linear.weight)
    torch.nn.init.constant_(network.presence_head.linear.bias, 2.0)
    images, masks = torch.rand(2, 1, 64, 64), torch.zeros(2, 1, 64, 64)
    masks[1, 0, 5, 5] = 1
    found = network.training_loss(images, masks, losses.bce_dice)["presence"].item()
    log = torch.nn.functional.logsigmoid
    assert found == pytest.approx(-(log(torch.tensor(2.0)) + log(torch.tensor(-2.0))).item() / 2)


def test_a_head_learns_which_images_are_positive():
    network = build("ica_resunet", presence_weight=1.0)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    images, masks = torch.rand(8, 1, 64, 64) * 0.3, torch.zeros(8, 1, 64, 64)
    images[:4, :, 20:40, 20:40] += 0.6
    masks[:4, :, 20:40, 20:40] = 1
    for _ in range(15):
        optimizer.zero_grad()
        network.training_loss(images, masks, losses.bce_dice)["loss"].backward()
        optimizer.step()
    _, presence = network.outputs(images)
    assert presence[:4].min() > presence[4:].max()


@pytest.mark.parametrize("name", SMALL)
def test_a_negative_weight_is_refused(name):
    with pytest.raises(ValueError, match="presence_weight is at least 0"):
        build(name, presence_weight=-1.0)


def test_networks_without_a_pretrained_encoder_have_no_head():
    for name in ("unet", "unetpp_msof", "chexlocnet"):
        with pytest.raises(ValueError, match="no setting presence_weight"):
            models.build_untrained(name, presence_weight=0.5)


def test_the_parameters_of_the_encoder_are_those_that_pretrained_weights_fill():
    def names(name, **settings):
        network = models.build_untrained(name, **settings)
        chosen = {id(parameter) for parameter in network.encoder_parameters()}
        return {key.split(".")[0] for key, parameter in network.named_parameters() if id(parameter) in chosen}

    for name in ("ica_resunet", "albunet"):
        assert names(name, **SMALL[name]) == {"encoder"}
    assert names("ica_resunet_paper", **SMALL["ica_resunet_paper"]) == {"levels"}
    assert names("smp/FPN", **SMALL["smp/FPN"]) == {"network"}
    assert names("unet", base_channels=4) == set()
    network = build("smp/FPN")
    assert not {id(one) for one in network.network.decoder.parameters()} & {
        id(one) for one in network.encoder_parameters()
    }
