"""The classification head: an image-level output, trained with the mask, without effect if off."""

import pytest
import torch

import models
from pneumothorax.compute import network_cost
from pneumothorax.training import losses
from tests.helpers.networks import small

NAMES = ("ica_resunet", "ica_resunet_paper", "albunet", "smp/FPN")


@pytest.mark.parametrize("name", NAMES)
def test_with_a_head_every_parameter_is_trained_and_there_are_two_outputs(name):
    network = small(name, classification_weight=0.5)
    images, masks = torch.rand(4, 1, 64, 64), torch.zeros(4, 1, 64, 64)
    masks[0, :, 10:20, 10:20] = 1
    found = network.training_loss(images, masks, losses.bce_dice)
    torch.testing.assert_close(found["loss"], found["mask"] + 0.5 * found["classification"])
    found["loss"].backward()
    without = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert without == []
    network.eval()
    with torch.no_grad():
        logits, classification = network.outputs(images)
        assert (logits.shape, classification.shape) == ((4, 1, 64, 64), (4,))
        torch.testing.assert_close(network(images), logits)


@pytest.mark.parametrize("name", NAMES)
def test_without_a_head_the_network_is_unchanged(name):
    plain, weighted = small(name), small(name, classification_weight=0.5)
    added = set(weighted.state_dict()) - set(plain.state_dict())
    assert {key.rsplit(".", 1)[1] for key in added} == {"weight", "bias"}
    assert set(plain.state_dict()) < set(weighted.state_dict())
    plain.eval()
    _, classification = plain.outputs(torch.rand(1, 1, 64, 64))
    assert classification is None
    assert set(
        plain.training_loss(torch.rand(2, 1, 64, 64), torch.zeros(2, 1, 64, 64), losses.bce_dice)
    ) == {"loss"}


def test_an_image_is_positive_if_its_mask_has_any_pixel():
    network = small("ica_resunet", classification_weight=1.0)
    torch.nn.init.zeros_(network.classification_head.linear.weight)
    torch.nn.init.constant_(network.classification_head.linear.bias, 2.0)
    images, masks = torch.rand(2, 1, 64, 64), torch.zeros(2, 1, 64, 64)
    masks[1, 0, 5, 5] = 1
    found = network.training_loss(images, masks, losses.bce_dice)["classification"].item()
    log = torch.nn.functional.logsigmoid
    assert found == pytest.approx(-(log(torch.tensor(2.0)) + log(torch.tensor(-2.0))).item() / 2)


def test_the_head_learns_which_images_are_positive():
    network = small("ica_resunet", classification_weight=1.0)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    images, masks = torch.rand(8, 1, 64, 64) * 0.3, torch.zeros(8, 1, 64, 64)
    images[:4, :, 20:40, 20:40] += 0.6
    masks[:4, :, 20:40, 20:40] = 1
    for _ in range(15):
        optimizer.zero_grad()
        network.training_loss(images, masks, losses.bce_dice)["loss"].backward()
        optimizer.step()
    _, classification = network.outputs(images)
    assert classification[:4].min() > classification[4:].max()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weight", [-1.0, float("inf"), float("nan")])
def test_a_negative_or_infinite_weight_is_refused(name, weight):
    with pytest.raises(ValueError, match="classification_weight must be at least 0 and finite"):
        small(name, classification_weight=weight)


def test_the_head_of_ica_resunet_sees_attended_layer4_features_and_does_not_touch_the_mask():
    trace = network_cost.trace(small("ica_resunet", classification_weight=0.5), 64)
    names = [part["name"] for part in trace["parts"]]
    head = trace["parts"][names.index("classification_head")]
    assert (head["shapes"], [names[at] for at in head["from"]]) == ([[1]], ["attention.3"])
    assert [names[at] for at in trace["output_from"]] == ["segmentation_head"]
    assert trace["output"] == [1, 64, 64]


def test_the_other_networks_do_not_have_the_setting():
    for name in ("unet", "unetpp_msof", "chexlocnet"):
        with pytest.raises(ValueError, match="no setting classification_weight"):
            models.build_untrained(name, classification_weight=0.5)
