"""Precision, checkpoints and predictions, tested without running stages 02 and 03."""

import pickle

import numpy as np
import pytest
import torch

from pneumothorax.compute import checkpoint, runtime
from pneumothorax.errors import BadInput
from pneumothorax.prediction import probability_maps


def test_on_a_cpu_mixed_precision_is_bf16_without_loss_scaling():
    cpu = torch.device("cpu")
    for enabled, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        with runtime.autocast(cpu, enabled=enabled):
            assert torch.nn.Conv2d(1, 1, 3)(torch.rand(1, 1, 8, 8)).dtype == dtype
        assert not runtime.loss_scaler(cpu, enabled=enabled).is_enabled()


@pytest.mark.parametrize("has_bf16, dtype", [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_without_bf16_gets_fp16(monkeypatch, has_bf16, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    assert runtime.half(torch.device("cuda")) is dtype


@pytest.mark.parametrize(
    "units, expected", [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({}, False)]
)
def test_a_cpu_computes_in_bf16_if_it_has_units_for_it(monkeypatch, units, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, **units})
    assert runtime.computes_in_bf16(torch.device("cpu")) is expected


def test_a_loaded_checkpoint_equals_the_saved_one(tmp_path):
    state = {"epoch": 3, "score": 0.5, "network": {"weight": torch.arange(6.0).reshape(2, 3)}}
    checkpoint.save(tmp_path / "a.pt", state)
    loaded = checkpoint.load(tmp_path / "a.pt")
    assert loaded["epoch"] == 3
    assert torch.equal(loaded["network"]["weight"], state["network"]["weight"])


@pytest.mark.parametrize("where", [0.2, 0.5, 0.8])
def test_flipped_bytes_in_a_checkpoint_are_noticed(tmp_path, where):
    path = tmp_path / "a.pt"
    checkpoint.save(path, {"network": {"weight": torch.randn(64, 64)}})
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(BadInput, match=r"a\.pt"):
        checkpoint.load(path)


def test_a_truncated_checkpoint_is_noticed(tmp_path):
    path = tmp_path / "a.pt"
    checkpoint.save(path, {"network": {"weight": torch.randn(64, 64)}})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadInput, match="not a whole checkpoint"):
        checkpoint.load(path)


def test_a_checkpoint_of_another_format_is_refused(tmp_path):
    for state in ({"network": {}}, {"format": checkpoint.FORMAT - 1, "network": {}}, [1, 2]):
        torch.save(state, tmp_path / "a.pt")
        with pytest.raises(
            BadInput, match=rf"not a checkpoint of this project \(format {checkpoint.FORMAT}\)"
        ):
            checkpoint.load(tmp_path / "a.pt")


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def test_a_malicious_checkpoint_does_nothing(tmp_path):
    marker = tmp_path / "was-here"
    torch.save({"format": checkpoint.FORMAT, "network": Evil(marker)}, tmp_path / "zip.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil(marker)))
    for name in ("zip.pt", "plain.pt"):
        with pytest.raises(BadInput):
            checkpoint.load(tmp_path / name)
    assert not marker.exists()


def test_weights_of_another_network_or_not_finite_are_refused(tmp_path):
    network = torch.nn.Linear(3, 2)
    good = {name: value.clone() for name, value in network.state_dict().items()}
    for wrong, match in (
        ({"weight": good["weight"]}, "another network"),
        ({**good, "weight": torch.zeros(3, 3)}, "another network"),
        ({**good, "bias": torch.tensor([0.0, float("nan")])}, "not finite"),
    ):
        with pytest.raises(BadInput, match=match):
            checkpoint.load_weights(network, wrong, tmp_path / "x.pt")


class Brightness(torch.nn.Module):
    """Logits that depend on position: image values on the left, zero on the right."""

    def forward(self, images):
        logits = torch.zeros_like(images)
        half = images.shape[3] // 2
        logits[..., :half] = images[..., :half] * 8
        return logits

    def outputs(self, images):
        return self(images), images.mean((1, 2, 3))


class Headless(torch.nn.Identity):
    def outputs(self, images):
        return self(images), None


def test_probabilities_are_the_mean_over_networks_and_over_the_mirror_image():
    images = torch.rand(2, 1, 4, 8)
    network = Brightness()
    found, classification = probability_maps.probabilities([network, Headless()], images)
    by_hand = (
        network(images).sigmoid()
        + network(images.flip(3)).sigmoid().flip(3)
        + 2 * images.sigmoid()  # Identity twice
    ) / 4
    np.testing.assert_allclose(found.numpy(), by_hand.numpy(), atol=1e-6)
    assert (
        classification is None
    )  # a mean over the networks that have a classification head would be of other networks


def test_the_classification_heads_probability_is_the_mean_over_networks_and_mirror_images():
    images = torch.rand(2, 1, 4, 8)
    _, classification = probability_maps.probabilities([Brightness(), Brightness()], images)
    np.testing.assert_allclose(
        classification.numpy(), images.mean((1, 2, 3)).sigmoid().numpy(), atol=1e-6
    )
