"""Checkpoints: whole, of this project, and never executed."""

import pickle

import pytest
import torch

from pneumothorax.compute import checkpoint
from pneumothorax.errors import BadInput


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
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
