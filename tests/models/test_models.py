"""Promises that every network keeps, and the particular ones of each."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import models
from models import encoder_weights, smp_library, torchvision_ops
from models.encoder_weights import WeightsError
from pneumothorax.compute import checkpoint
from pneumothorax.training.config import load
from tests.helpers.networks import RANDOM_RESNET18, SMALL, small
from tests.helpers.stages import ROOT

CONFIGS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml"))


@pytest.fixture(scope="module", params=[*models.NAMES, "smp/FPN", "smp/Unet"])
def name(request):
    return request.param


@pytest.fixture(scope="module")
def network(name):
    return small(name)


def images(*, batch=2, height=64, width=64, seed=0):
    """(N, 1, H, W) float32 in [0, 1]."""
    return torch.rand(batch, 1, height, width, generator=torch.Generator().manual_seed(seed))


def n_parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


# H/32 and W/32 even, odd and unequal.
@pytest.mark.parametrize(
    "batch, height, width", [(2, 64, 64), (2, 64, 96), (3, 160, 64), (1, 96, 224), (1, 256, 256)]
)
def test_logits_have_the_size_of_the_images(network, batch, height, width):
    with torch.inference_mode():
        logits = network.eval()(images(batch=batch, height=height, width=width))
    assert logits.shape == (batch, 1, height, width)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@pytest.mark.parametrize("height, width", [(48, 64), (64, 65)])
def test_a_size_that_is_not_a_multiple_of_32_is_refused(network, height, width):
    with pytest.raises(ValueError, match="multiples of 32"):
        network(images(height=height, width=width))


@pytest.mark.parametrize(
    "wrong", [torch.zeros(1, 3, 64, 64), torch.zeros(1, 64, 64), torch.zeros(1, 1, 64, 64).byte()]
)
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
    assert [
        n for n, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()
    ] == []


def test_eval_repeats_itself_and_an_image_does_not_depend_on_its_batch(network):
    batch = images()
    with torch.inference_mode():
        first, second, alone = network.eval()(batch), network(batch), network(batch[:1])
    assert torch.equal(first, second)
    rounding = 1e-3 * first.std().item()  # sums run in another order for another batch size
    torch.testing.assert_close(alone, first[:1], rtol=0, atol=rounding)


def test_channels_last_gives_the_same_logits(name):
    network = small(name).eval()
    with torch.inference_mode():
        expected = network(images())
        network.to(memory_format=torch.channels_last)
        logits = network(images().contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)


def test_a_checkpoint_alone_restores_the_network(name, tmp_path, monkeypatch):
    trained = small(name).train()
    trained.training_loss(
        images(), images(seed=1).round(), nn.functional.binary_cross_entropy_with_logits
    )
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.01)
    checkpoint.save(tmp_path / "best.pt", {"network": trained.state_dict()})

    def no_download(*args):
        raise AssertionError("a checkpoint needs no encoder weights")

    monkeypatch.setattr(encoder_weights, "_download", no_download)
    settings = {key: value for key, value in SMALL[name].items() if key != "encoder_weights"}
    again = models.build_untrained(name, **settings)
    checkpoint.load_weights(
        again, checkpoint.load(tmp_path / "best.pt")["network"], tmp_path / "best.pt"
    )
    with torch.inference_mode():
        assert torch.equal(trained.eval()(images()), again.eval()(images()))


@pytest.mark.parametrize("config", CONFIGS)
def test_every_config_names_an_existing_network_and_settings(config):
    settings = load(ROOT / config, [])  # with the files that it is based on
    with torch.device("meta"):  # shapes without memory
        network = models.build_untrained(settings.model, **settings.model_settings)
    assert n_parameters(network) > 0


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"resunet_typo.*ica_resunet.*albunet.*smp/<architecture>"):
        models.build("resunet_typo")


def test_an_unknown_setting_lists_the_known_ones(name):
    with pytest.raises(ValueError, match=f"colour.*{'.*'.join(SMALL[name])}"):
        models.build(name, colour="red")


@pytest.mark.parametrize(
    "name, settings",
    [
        ("ica_resunet", {"attention": "false"}),
        ("ica_resunet", {"decoder_channels": 5}),
        ("ica_resunet", {"reduction": 1.5}),
        ("unet", {"base_channels": True}),
        ("unet", {"base_channels": "64"}),
        ("albunet", {"filters": 1.5}),
        ("chexlocnet", {"proposals": 1.5}),
        ("chexlocnet", {"smallest_anchor": "x"}),
        ("smp/FPN", {"encoder": 3}),
        ("smp/FPN", {"attention": True}),
        ("ica_resunet", {"classification_weight": "0.5"}),
        ("smp/FPN", {"classification_weight": True}),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_naming_the_setting(name, settings):
    with pytest.raises(ValueError, match=rf"{name}, {next(iter(settings))}: .*got"):
        models.build(name, **settings)


ENCODERS = {
    **dict.fromkeys(("ica_resunet", "albunet", "chexlocnet"), "encoder."),
    "ica_resunet_paper": "levels.",
    **dict.fromkeys(("smp/FPN", "smp/Unet"), "network.encoder."),
    **dict.fromkeys(("unet", "unetpp_msof"), "none"),
}


def test_the_encoder_parameters_are_those_that_pretrained_weights_fill(name, network):
    chosen = {id(parameter) for parameter in network.encoder_parameters()}
    parameters = dict(network.named_parameters())
    assert [key for key in parameters if key.startswith(ENCODERS[name])] == [
        key for key, parameter in parameters.items() if id(parameter) in chosen
    ]
    assert bool(chosen) == ("encoder_weights" in SMALL[name])


def test_importing_models_does_not_import_a_framework():
    frameworks = {"torch", "torchvision", "segmentation_models_pytorch"}
    code = f"import sys, models; print(sorted({frameworks} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_other_failures_of_torchvision_are_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('compiled for another CUDA')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    with pytest.raises(RuntimeError, match="another CUDA"):
        torchvision_ops.load()


def test_ica_resunet_adds_37368_parameters_to_the_unet():
    # A block with C channels has h = max(8, C / 32): squeeze C h + h, batch norm 2 h, two gates
    # 2 (h C + C). C = 64, 128, 256, 512: 1688 + 3352 + 6680 + 25648 = 37368.
    with torch.device("meta"):
        with_attention = models.build("ica_resunet", encoder_weights="none", merge="sum")
        plain = models.build("ica_resunet", encoder_weights="none", attention=False)
    assert n_parameters(with_attention) == 24_467_465
    assert n_parameters(plain) == 24_430_097


def test_without_attention_ica_resunet_is_the_unet_of_smp():
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


@pytest.mark.parametrize(("placement", "next_stage"), [("stages", "attended"), ("skips", "plain")])
def test_the_skip_is_attended_and_the_next_stage_is_unless_attention_is_on_the_skips_alone(
    placement, next_stage
):
    network = small("ica_resunet", placement=placement).eval()
    seen = {}
    network.encoder.layer1.register_forward_hook(
        lambda module, inputs, output: seen.update(plain=output)
    )
    network.attention[0].register_forward_hook(
        lambda module, inputs, output: seen.update(attended=output)
    )
    network.encoder.layer2.register_forward_pre_hook(
        lambda module, inputs: seen.update(stage=inputs[0])
    )
    with torch.inference_mode():
        features = network.encode(network.prepare(images()))
    assert seen["stage"] is seen[next_stage]
    assert features[2] is seen["attended"]
    assert [f.shape[2] for f in features] == [64, 32, 16, 8, 4, 2]


def test_attention_in_the_decoder_follows_its_four_coarse_levels_and_spares_the_encoder():
    network = small("ica_resunet", placement="decoder").eval()
    plain = small("ica_resunet", attention=False).eval()
    plain.encoder.load_state_dict(network.encoder.state_dict())
    with torch.inference_mode():
        ours, theirs = (each.encode(each.prepare(images())) for each in (network, plain))
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    blocks = {
        name
        for name, module in network.named_modules()
        if type(module).__name__ == "ImprovedCoordAttention"
    }
    assert blocks == {f"decoder.blocks.{level}.attention" for level in range(4)}


@pytest.mark.parametrize("placement", ["stages", "skips", "decoder"])
def test_four_decoder_levels_leave_out_the_encoders_last_layer(placement):
    network = small("ica_resunet", placement=placement, decoder_channels=(16, 8, 8, 8)).eval()
    with torch.inference_mode():
        features = network.encode(network.prepare(images()))
        assert network(images()).shape == images().shape
    assert [one.shape[2] for one in features] == [64, 32, 16, 8, 4]
    assert not any("layer4" in name for name in network.state_dict())
    blocks = [type(module).__name__ for module in network.modules()]
    assert blocks.count("ImprovedCoordAttention") == 3


@pytest.mark.parametrize(
    "name, settings, message",
    [
        ("ica_resunet", {"encoder": "vgg16"}, "resnet34"),
        ("ica_resunet", {"decoder_channels": (16, 8)}, "four or five"),
        ("ica_resunet", {"merge": "product"}, "concat, sum, shared"),
        ("ica_resunet", {"pooling": "median"}, "avg, max, avg"),
        ("ica_resunet", {"placement": "everywhere"}, "stages, skips, decoder"),
        ("ica_resunet_paper", {"decoder_channels": (16, 8)}, "four"),
        ("ica_resunet_paper", {"width": 0}, "width"),
        ("unet", {"base_channels": 0}, "base_channels"),
        ("albunet", {"encoder": "resnet50"}, "resnet18, resnet34"),
        ("albunet", {"filters": 0}, "filters"),
        ("unetpp_msof", {"base_channels": 0}, "base_channels"),
        ("smp/FPN", {"encoder": "se_resnxt50_32x4d"}, r"se_resnext50_32x4d.*\(\d+ are known"),
        ("smp/FPN", {"encoder": "tu-convnext_tinny"}, "tu-convnext_tiny"),
        ("smp/FPN", {"attention": "both"}, "none, published, improved"),
        ("smp/FPN", {"encoder_depth": 9}, "smp/FPN cannot be built with encoder 'resnet18'"),
    ],
)
def test_a_value_out_of_range_lists_the_choices(name, settings, message):
    with pytest.raises(ValueError, match=message):
        small(name, **settings)


def test_unet_has_31_million_parameters():
    # The usual batch-norm U-Net at 64 channels: 3x3 convolutions without bias, one grey channel
    # in, one logit out.
    with torch.device("meta"):
        network = models.build("unet")
    assert n_parameters(network) == pytest.approx(31_036_481, rel=1e-3)


def test_every_level_of_the_unet_has_a_skip():
    network = small("unet").eval()
    seen = []
    for merge in network.merge:
        merge.register_forward_pre_hook(
            lambda module, inputs: seen.append(tuple(inputs[0].shape[1:]))
        )
    with torch.inference_mode():
        network(images(height=64, width=96))
    assert seen == [(64, 8, 12), (32, 16, 24), (16, 32, 48), (8, 64, 96)]


def test_albunet_has_the_channels_of_the_published_class():
    # TernausNet's plan with 32 filters, on features of 64, 64, 128, 256, 512 channels at
    # strides 4, 4, 8, 16, 32.
    network = models.build("albunet", **RANDOM_RESNET18).eval()
    seen = {}
    for part in ("center", "dec5", "dec4", "dec3", "dec2", "dec1", "dec0"):
        network.get_submodule(part).register_forward_hook(
            lambda module, inputs, output, part=part: seen.update(
                {part: (tuple(inputs[0].shape[1:]), tuple(output.shape[1:]))}
            )
        )
    with torch.inference_mode():
        network(images(height=64, width=96))  # 2 x 3 at stride 32; the center has 1 x 2 cells
    assert seen == {
        "center": ((512, 1, 2), (256, 2, 4)),
        "dec5": ((256 + 512, 2, 3), (256, 4, 6)),
        "dec4": ((256 + 256, 4, 6), (256, 8, 12)),
        "dec3": ((256 + 128, 8, 12), (64, 16, 24)),
        "dec2": ((64 + 64, 16, 24), (128, 32, 48)),
        "dec1": ((128, 32, 48), (32, 64, 96)),
        "dec0": ((32, 64, 96), (32, 64, 96)),
    }


def test_the_levels_of_the_papers_network_have_strides_1_to_16_and_attended_features():
    network = small("ica_resunet_paper").eval()
    seen = {}
    network.attention[0].register_forward_hook(
        lambda module, inputs, output: seen.update(attended=output)
    )
    network.levels["layer2"].register_forward_pre_hook(
        lambda module, inputs: seen.update(level=inputs[0])
    )
    with torch.inference_mode():
        features = network.encode(network.prepare(images(height=64, width=96)))
    assert [tuple(x.shape[1:]) for x in features] == [
        (8, 64, 96),
        (32, 32, 48),
        (64, 16, 24),
        (128, 8, 12),
        (256, 4, 6),
    ]
    assert [len(level) for level in network.levels.values()] == [3, 4, 6, 3]
    assert seen["level"] is seen["attended"]
    assert features[1] is seen["attended"]


@pytest.fixture(scope="module")
def resnet50():
    torch.manual_seed(1)
    return torchvision_ops.load().models.resnet50().eval()


def test_a_resnet50_of_torchvision_fills_levels_2_to_5_of_the_papers_network(resnet50, tmp_path):
    state = resnet50.state_dict()
    torch.save(state, tmp_path / "resnet50.pth")
    weights = str(tmp_path / "resnet50.pth")
    network = models.build(
        "ica_resunet_paper", encoder_weights=weights, decoder_channels=(8, 8, 8, 8)
    ).eval()
    loaded = network.levels.state_dict()
    assert sorted(loaded) == sorted(name for name in state if name.startswith("layer"))
    assert all(torch.equal(value, state[name]) for name, value in loaded.items())
    x = torch.rand(1, 64, 16, 16)
    with torch.inference_mode():
        for name, level in network.levels.items():  # the same stages, strides included
            expected = resnet50.get_submodule(name)(x)
            torch.testing.assert_close(level(x), expected)
            x = expected


def test_weights_that_do_not_fit_the_papers_network_are_refused_with_the_differences(tmp_path):
    torch.save(torchvision_ops.load().models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(WeightsError, match="do not fit") as caught:
        small("ica_resunet_paper", encoder_weights=str(tmp_path / "resnet18.pth"))
    assert "missing: layer1.0.conv3.weight" in str(caught.value)
    assert "layer1.0.conv1.weight is (64, 64, 3, 3), needs (8, 8, 1, 1)" in str(caught.value)


def test_the_loss_of_unetpp_msof_is_the_weighted_sum_over_its_five_outputs():
    network = small("unetpp_msof").train()
    masks = (images(seed=1) > 0.7).float()
    criterion = nn.functional.binary_cross_entropy_with_logits
    losses = network.training_loss(images(), masks, criterion)
    x = network.first_row(images())
    side = [
        criterion(head(features), masks)
        for head, features in zip(network.side_heads, x, strict=True)
    ]
    fused = criterion(network(images()), masks)  # it predicts from the fused output
    torch.testing.assert_close(
        losses["loss"], 0.5 * side[0] + 0.5 * side[1] + 0.75 * side[2] + 0.5 * side[3] + fused
    )
    assert sorted(losses) == ["fused", "loss", "side1", "side2", "side3", "side4"]
    assert len({round(loss.item(), 6) for loss in losses.values()}) == 6


def test_the_fused_output_of_unetpp_msof_sees_all_side_features():
    network = small("unetpp_msof").eval()
    with torch.no_grad():
        expected = network.fused_head.bias.view(1, 1, 1, 1)
        for features, weight in zip(
            network.first_row(images()), network.fused_head.weight.split(4, dim=1), strict=True
        ):
            expected = expected + (features * weight).sum(1, keepdim=True)
        torch.testing.assert_close(network(images()), expected)


def test_a_node_of_unetpp_sees_its_own_row_and_the_row_below():
    # X(0,2) needs X(0,0), X(0,1) and X(1,1), which need X(1,0) and X(2,0). Later columns and lower
    # rows play no part.
    network = small("unetpp_msof")
    network.first_row(images())[1].sum().backward()
    used = {name for name, node in network.nodes.items() if node.conv1.weight.grad is not None}
    assert used == {"x0_0", "x0_1", "x0_2", "x1_0", "x1_1", "x2_0"}
    inputs = {name: node.conv1.in_channels for name, node in network.nodes.items()}
    assert (inputs["x0_2"], inputs["x0_4"], inputs["x1_3"]) == (3 * 4, 5 * 4, 4 * 8)


CONVOLUTIONAL = "Unet UnetPlusPlus MAnet Linknet PSPNet DeepLabV3 DeepLabV3Plus PAN UPerNet".split()
DPT = {"encoder": "tu-vit_tiny_patch16_224", "encoder_weights": "none"}


@pytest.mark.parametrize(
    "architecture, encoder, attention",
    [
        *((name, "resnet18", "improved") for name in CONVOLUTIONAL),
        ("FPN", "timm-tf_efficientnet_lite0", "published"),
        ("Segformer", "mit_b0", "improved"),
        ("DPT", DPT["encoder"], "none"),
    ],
)
def test_architectures_of_smp_keep_the_size_and_take_attention_and_a_classification_head(
    architecture, encoder, attention
):
    network = models.build(
        f"smp/{architecture}",
        encoder=encoder,
        encoder_weights="none",
        attention=attention,
        classification_weight=0.5,
    ).eval()
    with torch.inference_mode():
        logits, classification = network.outputs(images(batch=1, height=128, width=160))
    assert (logits.shape, classification.shape) == ((1, 1, 128, 160), (1,))


def test_dpt_refuses_attention_because_its_encoder_has_no_feature_maps():
    with pytest.raises(ValueError, match=r"smp/DPT cannot have attention.*attention=none"):
        models.build("smp/DPT", attention="improved", **DPT)


@pytest.mark.parametrize(
    "attention, profiles, residual", [("published", 1, False), ("improved", 2, True)]
)
def test_the_decoder_and_the_head_of_smp_see_attended_features_from_stride_4_on(
    attention, profiles, residual
):
    network = small("smp/Unet", attention=attention, classification_weight=0.5).eval()
    seen = {}
    network.network.encoder.register_forward_hook(
        lambda module, inputs, output: seen.update(plain=list(output))
    )
    network.network.decoder.register_forward_pre_hook(
        lambda module, inputs: seen.update(decoder=inputs[0])
    )
    network.network.classification_head.register_forward_pre_hook(
        lambda module, inputs: seen.update(head=inputs[0])
    )
    with torch.inference_mode():
        network(images())
        expected = [
            block(plain)
            for block, plain in zip(network.network.attention, seen["plain"][2:], strict=True)
        ]
    assert [plain.shape[2] for plain in seen["plain"]] == [64, 32, 16, 8, 4, 2]
    assert seen["decoder"][0] is seen["plain"][0]
    assert seen["decoder"][1] is seen["plain"][1]
    assert all(
        torch.equal(one, other) for one, other in zip(seen["decoder"][2:], expected, strict=True)
    )
    assert not torch.equal(seen["decoder"][2], seen["plain"][2])
    assert seen["head"] is seen["decoder"][5]
    blocks = [(len(block.reducers), block.residual) for block in network.network.attention]
    assert blocks == [(profiles, residual)] * 4


def test_attention_only_adds_names_to_those_of_smp():
    with_attention = small("smp/Unet").state_dict().keys()
    plain = small("smp/Unet", attention="none").state_dict().keys()
    smp = smp_library.load().Unet("resnet18", encoder_weights=None, in_channels=1).state_dict()
    assert plain == {f"network.{name}" for name in smp}
    assert plain < with_attention
    assert {name.split(".")[1] for name in with_attention - plain} == {"attention"}


def test_without_attention_a_network_of_smp_is_the_librarys():
    network = small("smp/Unet", attention="none").eval()
    unet = smp_library.load().Unet(
        "resnet18", encoder_weights=None, in_channels=1, decoder_channels=(16, 16, 8, 8, 8)
    )
    unet.eval().load_state_dict(network.network.state_dict())
    with torch.inference_mode():
        # 0.449, 0.226: the grey ImageNet mean and deviation.
        expected = unet((images(height=64, width=96) - 0.449) / 0.226)
        torch.testing.assert_close(network(images(height=64, width=96)), expected)


def test_an_unknown_architecture_of_smp_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"FNP.*Unet, UnetPlusPlus.*FPN"):
        models.build("smp/FNP")


def test_settings_whose_output_has_another_size_are_refused():
    network = small("smp/FPN", upsampling=2)
    with pytest.raises(ValueError, match="encoder_depth and upsampling"):
        network(images())


@pytest.mark.parametrize("name", [name for name in SMALL if name != "chexlocnet"])
def test_an_untrained_network_expects_few_positive_pixels(name):
    images = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        probabilities = small(name).eval()(images).sigmoid()
    assert 0.001 < probabilities.mean() < 0.1
