"""Promises every network keeps, by name, and those of the project's own network."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import models
from models import smp_library, torchvision_ops

# The smallest form of each network: quick to build, no download.
SMALL = {
    "ica_resunet": {"encoder": "resnet18", "encoder_weights": "none", "decoder_channels": (16, 16, 8, 8, 8)},
}


@pytest.fixture(scope="module", params=models.NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def network(name):
    return small(name)


def small(name, **settings):
    torch.manual_seed(0)
    return models.build(name, **{**SMALL[name], **settings})


def images(*, batch=2, height=64, width=64, seed=0):
    """(N, 1, H, W) float32 in [0, 1]."""
    return torch.rand(batch, 1, height, width, generator=torch.Generator().manual_seed(seed))


def n_parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("height, width", [(64, 64), (64, 96), (128, 64)])
def test_logits_have_the_size_of_the_images(network, height, width):
    with torch.inference_mode():
        logits = network.eval()(images(height=height, width=width))
    assert logits.shape == (2, 1, height, width)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@pytest.mark.parametrize("height, width", [(48, 64), (64, 65)])
def test_a_size_that_is_no_multiple_of_32_is_refused(network, height, width):
    with pytest.raises(ValueError, match="multiples of 32"):
        network(images(height=height, width=width))


@pytest.mark.parametrize("wrong", [torch.zeros(1, 3, 64, 64), torch.zeros(1, 64, 64), torch.zeros(1, 1, 64, 64).byte()])
def test_images_that_are_not_one_grey_float_channel_are_refused(network, wrong):
    with pytest.raises(ValueError, match=r"\(N, 1, H, W\) float"):
        network(wrong)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_black_and_white_images_give_finite_logits(network, value):
    with torch.inference_mode():
        assert network.eval()(torch.full((1, 1, 64, 64), value)).isfinite().all()


def test_training_loss_is_finite_and_every_parameter_gets_a_gradient(name):
    network = small(name).train()
    masks = (images(seed=1) > 0.7).float()
    losses = network.training_loss(images(), masks, nn.functional.binary_cross_entropy_with_logits)
    assert all(loss.ndim == 0 and loss.isfinite() for loss in losses.values())
    losses["loss"].backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_eval_repeats_itself_and_an_image_does_not_depend_on_its_batch(network):
    batch = images()
    with torch.inference_mode():
        first, second, alone = network.eval()(batch), network(batch), network(batch[:1])
    assert torch.equal(first, second)
    torch.testing.assert_close(alone, first[:1], rtol=1e-4, atol=1e-5)


def test_channels_last_gives_the_same_logits(name):
    network = small(name).eval()
    with torch.inference_mode():
        expected = network(images())
        network.to(memory_format=torch.channels_last)
        logits = network(images().contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)


def test_state_dict_makes_another_network_the_same(name, network):
    other = small(name)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
    other.load_state_dict(network.state_dict())
    with torch.inference_mode():
        assert torch.equal(network.eval()(images()), other.eval()(images()))


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"resunet_typo.*ica_resunet"):
        models.build("resunet_typo")


def test_an_unknown_setting_lists_the_known_ones(name):
    with pytest.raises(ValueError, match=r"colour.*encoder_weights"):
        models.build(name, colour="red")


def test_importing_models_imports_no_framework():
    frameworks = {"torch", "torchvision", "segmentation_models_pytorch"}
    code = f"import sys, models; print(sorted({frameworks} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_another_failure_of_torchvision_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('compiled for another CUDA')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    with pytest.raises(RuntimeError, match="another CUDA"):
        torchvision_ops.load()


def test_ica_resunet_adds_37368_parameters_to_the_unet():
    # Per block with C channels, h = max(8, C / 32): squeeze C h + h, batch norm 2 h, two gates 2 (h C + C).
    # C = 64, 128, 256, 512: 1688 + 3352 + 6680 + 25648 = 37368.
    assert n_parameters(models.build("ica_resunet", encoder_weights="none", merge="sum")) == 24_467_465
    assert n_parameters(models.build("ica_resunet", encoder_weights="none", attention=False)) == 24_430_097


def test_without_attention_it_is_the_unet_of_smp():
    network = small("ica_resunet", attention=False).eval()
    unet = (
        smp_library.load()
        .Unet("resnet18", encoder_weights=None, in_channels=1, decoder_channels=(16, 16, 8, 8, 8))
        .eval()
    )
    unet.load_state_dict(network.state_dict())
    with torch.inference_mode():
        # 0.449, 0.226: the grey ImageNet mean and deviation.
        torch.testing.assert_close(network(images()), unet((images() - 0.449) / 0.226))


def test_skip_and_next_stage_see_the_attended_features():
    network = small("ica_resunet").eval()
    seen = {}
    network.attention[0].register_forward_hook(lambda module, inputs, output: seen.update(attended=output))
    network.encoder.layer2.register_forward_pre_hook(lambda module, inputs: seen.update(stage=inputs[0]))
    with torch.inference_mode():
        features = network.encode(network.prepare(images()))
    assert seen["stage"] is seen["attended"]
    assert features[2] is seen["attended"]
    assert [f.shape[2] for f in features] == [64, 32, 16, 8, 4, 2]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"encoder": "vgg16"}, "resnet34"),
        ({"decoder_channels": (16, 8)}, "five"),
        ({"merge": "product"}, "concat, sum, shared"),
        ({"pooling": "median"}, "avg, max, avg"),
    ],
)
def test_a_value_that_is_not_possible_lists_the_choices(settings, message):
    with pytest.raises(ValueError, match=message):
        small("ica_resunet", **settings)
