"""Files of weights as people have them: whole networks, checkpoints, wrappers, timm's names."""

import argparse

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import models
from models import encoder_weights, smp_library, torchvision_ops
from models.encoder_weights import WeightsError


def grey_encoder(name="resnet18"):
    torch.manual_seed(0)
    return smp_library.load().encoders.get_encoder(name, in_channels=1, weights=None)


@pytest.fixture(scope="module")
def unet():
    """smp's U-Net as people train it: for three channels, here with random weights."""
    torch.manual_seed(1)
    return smp_library.load().Unet(
        "resnet18", encoder_weights=None, decoder_channels=(16, 16, 8, 8, 8)
    )


def saved(path, content):
    torch.save(content, path)
    return path


def load(path, name="resnet18"):
    """A grey encoder with the weights of the file, and the state it had before."""
    encoder = grey_encoder(name)
    encoder_weights.load(encoder, path, name=name)
    return encoder


def check_filled(encoder, source):
    """Every tensor is the source's; the first kernel is the sum over its three colours."""
    expected = source.state_dict()
    expected["conv1.weight"] = expected["conv1.weight"].sum(1, keepdim=True)
    loaded = encoder.state_dict()
    assert loaded.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(loaded[name], value, msg=name)


def pretrained_folder(unet, folder):
    unet.save_pretrained(folder / "saved")
    return folder / "saved"


def pretrained_file(unet, folder):
    return pretrained_folder(unet, folder) / "model.safetensors"


def state_dict(unet, folder):
    return saved(folder / "unet.pth", unet.state_dict())


def encoder_as_safetensors(unet, folder):
    save_file(unet.encoder.state_dict(), folder / "encoder.safetensors")
    return folder / "encoder.safetensors"


def data_parallel(unet, folder):
    return saved(folder / "unet.pt", nn.DataParallel(unet).state_dict())


def compiled(unet, folder):
    return saved(folder / "unet.bin", torch.compile(unet).state_dict())


def data_parallel_around_compiled(unet, folder):
    return saved(folder / "unet.pth", nn.DataParallel(torch.compile(unet)).state_dict())


def compiled_around_data_parallel(unet, folder):
    return saved(folder / "unet.pth", torch.compile(nn.DataParallel(unet)).state_dict())


def only_a_stage_compiled(unet, folder):
    whole = nn.Module()
    whole.encoder, layer1 = unet.encoder, unet.encoder.layer1
    whole.encoder.layer1 = torch.compile(layer1)
    path = saved(folder / "unet.pth", whole.state_dict())
    whole.encoder.layer1 = layer1
    return path


def lightning_checkpoint(unet, folder):
    module = nn.Module()  # a LightningModule keeps its network as self.model
    module.model, module.loss = unet, nn.BCEWithLogitsLoss(pos_weight=torch.ones(1))
    content = {"epoch": 3, "state_dict": module.state_dict(), "callbacks": {"best": 0.8}}
    return saved(folder / "last.ckpt", content)


def tutorial_checkpoint(unet, folder):
    """PyTorch's tutorial on saving: beside it an optimizer with tensors by number."""
    optimizer = torch.optim.Adam(unet.parameters())
    content = {"model_state_dict": unet.state_dict(), "optimizer": optimizer.state_dict()}
    return saved(folder / "last.tar", content)


def model_in_a_checkpoint(unet, folder):
    return saved(folder / "last.pth", {"model": unet.state_dict(), "epoch": 3})


def net_of_two_layers(unet, folder):
    return saved(folder / "last.pth", {"model": {"net": unet.state_dict()}, "epoch": 3})


def moving_average_beside_it(unet, folder):
    average = {name: value + 1 for name, value in unet.state_dict().items()}
    content = {"state_dict_ema": average, "state_dict": unet.state_dict()}
    return saved(folder / "last.pth", content)


@pytest.mark.parametrize(
    "write",
    [
        pretrained_folder,
        pretrained_file,
        state_dict,
        encoder_as_safetensors,
        data_parallel,
        compiled,
        data_parallel_around_compiled,
        compiled_around_data_parallel,
        only_a_stage_compiled,
        lightning_checkpoint,
        tutorial_checkpoint,
        model_in_a_checkpoint,
        net_of_two_layers,
        moving_average_beside_it,
    ],
)
def test_the_encoder_is_found_in_what_people_save(tmp_path, unet, write):
    check_filled(load(write(unet, tmp_path)), unet.encoder)


@pytest.mark.parametrize("name", ["ica_resunet", "smp/FPN"])
def test_a_checkpoint_of_this_project_gives_its_encoder(tmp_path, name):
    torch.manual_seed(2)
    source = models.build(name, encoder="resnet18", encoder_weights="none")
    content = {"format": 3, "config": {"epochs": 1}, "network": source.state_dict()}
    path = saved(tmp_path / "best.pt", content)
    target = models.build(name, encoder="resnet18", encoder_weights=path)
    pairs = zip(source.encoder_parameters(), target.encoder_parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_16_bit_weights_are_summed_over_the_colours_in_32_bits(tmp_path, unet, kind):
    state = {name: value.to(kind) for name, value in unet.encoder.state_dict().items()}
    loaded = load(saved(tmp_path / "half.pth", state)).state_dict()
    red, green, blue = state["conv1.weight"].float().unbind(1)
    torch.testing.assert_close(
        loaded["conv1.weight"][:, 0], red + green + blue, rtol=1e-6, atol=1e-7
    )
    assert torch.equal(loaded["layer4.1.bn2.running_var"], torch.ones(512))
    assert loaded["layer4.1.conv2.weight"].dtype == torch.float32


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_values_that_are_not_finite_are_refused_with_the_tensor(tmp_path, unet, value):
    state = {name: each.clone() for name, each in unet.state_dict().items()}
    # 1e300 is finite only in 64 bits.
    state["encoder.layer2.0.bn1.weight"] = torch.full((128,), value, dtype=torch.float64)
    path = saved(tmp_path / "nan.pth", state)
    with pytest.raises(WeightsError, match=r"nan\.pth .*not finite, in layer2\.0\.bn1\.weight: "):
        load(path)


def test_what_is_not_finite_in_the_decoder_does_not_matter(tmp_path, unet):
    state = {**unet.state_dict(), "segmentation_head.0.bias": torch.tensor([float("nan")])}
    check_filled(load(saved(tmp_path / "unet.pth", state)), unet.encoder)


def test_another_architecture_is_refused_with_the_first_missing_tensors_and_a_count(tmp_path):
    mobilenet = torchvision_ops.load().models.mobilenet_v2(num_classes=3).state_dict()
    with pytest.raises(WeightsError) as caught:
        load(saved(tmp_path / "other.pth", mobilenet))
    # 20 convolutions, each with a batch norm of four tensors
    headline, missing, unexpected = str(caught.value).split("\n  ")
    assert headline.endswith("do not fit resnet18: 0 of 100 tensors match")
    assert missing.startswith("missing: conv1.weight, bn1.weight, bn1.bias, bn1.running_mean")
    assert unexpected.startswith("unexpected: features.0.0.weight, features.0.1.weight")


def test_blocks_that_share_a_few_names_with_the_encoder_are_not_taken_for_it(tmp_path):
    blocks = nn.ModuleList(nn.ModuleDict({"conv1": nn.Conv2d(1, 1, 1)}) for _ in range(3))
    with pytest.raises(WeightsError, match=r"0 of 100 .*\n.*\n  unexpected: 0\.conv1\.weight, 0\."):
        load(saved(tmp_path / "blocks.pth", blocks.state_dict()))


@pytest.mark.parametrize("prefix", ["", "encoder."])
def test_a_deeper_encoder_is_not_cut_to_fit(tmp_path, prefix):
    deeper = {prefix + name: value for name, value in grey_encoder("resnet34").state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load(saved(tmp_path / "deeper.pth", deeper))
    assert "100 of 100 tensors match\n  unexpected: layer1.2.conv1.weight" in str(caught.value)


def test_two_encoders_in_a_file_are_refused_with_their_names(tmp_path, unet):
    twins = nn.ModuleDict({"student": unet, "teacher": unet})
    with pytest.raises(WeightsError, match=r"2 times, as student\.encoder\., teacher\.encoder\."):
        load(saved(tmp_path / "twins.pth", twins.state_dict()))


def test_quantised_weights_are_refused(tmp_path, unet):
    state = unet.encoder.state_dict()
    state["layer3.0.conv1.weight"] = (100 * state["layer3.0.conv1.weight"]).to(torch.int8)
    with pytest.raises(WeightsError, match=r"perhaps quantised: layer3\.0\.conv1\.weight"):
        load(saved(tmp_path / "int8.pth", state))


@pytest.mark.parametrize(
    "tensor", [torch.zeros(64, device="meta"), torch.ones(64).to_sparse()], ids=["meta", "sparse"]
)
def test_tensors_without_plain_values_are_refused(tmp_path, unet, tensor):
    state = {**unet.encoder.state_dict(), "bn1.weight": tensor}
    with pytest.raises(WeightsError, match="expected a dict of tensors"):
        load(saved(tmp_path / "odd.pth", state))


def test_a_checkpoint_without_a_known_key_is_refused_with_its_keys(tmp_path, unet):
    path = saved(tmp_path / "last.pth", {"generator": unet.state_dict(), "epoch": 3})
    with pytest.raises(WeightsError, match=r"state_dict, model.*network.*generator, epoch"):
        load(path)


def test_a_checkpoint_that_contains_itself_is_refused(tmp_path):
    content = {"epoch": 3}
    content["model"] = content
    with pytest.raises(WeightsError, match="expected a dict of tensors"):
        load(saved(tmp_path / "loop.pth", content))


def test_a_checkpoint_with_other_objects_is_refused_with_their_name_and_a_way_out(tmp_path, unet):
    content = {"state_dict": unet.state_dict(), "args": argparse.Namespace(lr=1)}
    with pytest.raises(WeightsError, match=r"argparse\.Namespace.*torch\.save\(network\.state_d"):
        load(saved(tmp_path / "last.pth", content))


def test_a_folder_without_weights_is_refused_with_the_missing_file(tmp_path):
    with pytest.raises(WeightsError, match=r"model\.safetensors: no such file"):
        load(tmp_path)


TIMM = ["test_convnext", "test_efficientnet", "test_resnet", "test_byobnet"]


def timm_file(folder, name, **settings):
    """timm's whole network with random weights, saved as timm's hub has it."""
    import timm

    torch.manual_seed(3)
    network = timm.create_model(name, **settings)
    save_file(network.state_dict(), folder / "model.safetensors")
    return folder / "model.safetensors"


@pytest.mark.parametrize("name", TIMM)
def test_the_file_of_timm_fills_its_encoder_as_timm_fills_it(tmp_path, name):
    import timm

    path = timm_file(tmp_path, name)
    encoder = grey_encoder(f"tu-{name}").eval()
    before = torch.get_rng_state()
    encoder_weights.load(encoder, path, name=f"tu-{name}")
    assert torch.equal(torch.get_rng_state(), before)
    overlay = {"file": str(path)}
    timms = timm.create_model(
        name, features_only=True, in_chans=1, pretrained=True, pretrained_cfg_overlay=overlay
    ).eval()
    image = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features, expected = encoder.model(image), timms(image)
    assert len(features) == len(expected) >= 4
    for feature, other in zip(features, expected, strict=True):
        torch.testing.assert_close(feature, other)


def test_a_whole_network_of_smp_fills_an_encoder_of_timm(tmp_path):
    settings = {"encoder_weights": None, "in_channels": 1}
    unet = smp_library.load().Unet("tu-test_convnext", **settings)
    path = saved(tmp_path / "unet.pth", nn.DataParallel(unet).state_dict())
    loaded = load(path, "tu-test_convnext").state_dict()
    assert all(torch.equal(loaded[name], each) for name, each in unet.encoder.state_dict().items())


def test_a_deeper_file_of_timm_is_not_cut_to_fit(tmp_path):
    with pytest.raises(WeightsError, match=r"100 of 100 tensors match\n  unexpected: layer1\.2\."):
        load(timm_file(tmp_path, "resnet34", in_chans=1), "tu-resnet18")


@pytest.mark.parametrize("classes", [0, 14])
def test_a_vision_transformer_fits_whatever_classes_it_was_trained_for(tmp_path, classes):
    path = timm_file(tmp_path, "test_vit", num_classes=classes, in_chans=1)
    network = models.build("smp/DPT", encoder="tu-test_vit", encoder_weights=path)
    from safetensors.torch import load_file

    given = load_file(path)
    loaded = network.network.encoder.model.state_dict()
    same = [name for name in loaded if not name.startswith("head.")]
    assert len(same) > 50
    assert all(torch.equal(loaded[name], given[name]) for name in same)
