"""The ONNX graph of networks gives PyTorch's probability maps, or is not kept."""

import functools
import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import models
from models.classification import NetworkWithClassification
from models.network import SegmentationNetwork
from pneumothorax import dicom, png
from pneumothorax.errors import BadInput
from pneumothorax.pipeline import artifacts
from pneumothorax.prediction import onnx_export, onnx_graph, onnx_runtime, probability_maps
from pneumothorax.prediction.exported import ExportedNetworks
from pneumothorax.prediction.probability_maps import Predictor
from tests.helpers.networks import SMALL, small
from tests.helpers.stages import ROOT

NAMES = (
    *(name for name in models.NAMES if name != "chexlocnet"),
    "smp/FPN",
    "smp/Unet",
    "smp/UnetPlusPlus",
)
QUICK = ("ica_resunet",)  # all others with --all
SETTINGS = {
    **SMALL,
    "ica_resunet": {**SMALL["ica_resunet"], "decoder_channels": (16, 8, 8, 8)},
    "smp/UnetPlusPlus": SMALL["ica_resunet"],
}
SIZE = 64


def lively(network):
    """The network with contrast in its probability maps, which random weights lack."""
    network.train()
    with torch.no_grad():
        for _ in range(3):  # statistics for batch norms
            network(torch.rand(4, 1, SIZE, SIZE))
        logits = network.eval()(torch.rand(4, 1, SIZE, SIZE))
        *_, head = (
            part
            for part in network.modules()
            if isinstance(part, nn.Conv2d) and part.out_channels == 1
        )
        scale = 2 / logits.std()
        head.bias.copy_(scale * (head.bias - logits.mean()))
        head.weight.mul_(scale)
    return network


class Tiny(NetworkWithClassification):
    """For what does not depend on the network: an export of a real one takes ten seconds."""

    def __init__(self, classification_weight):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.last = nn.Conv2d(4, 1, 3, padding=1)
        self.add_classification_head(4, classification_weight)

    def outputs(self, images):
        features = self.first(self.prepare(images))
        return self.last(features), self.classification(features)


def tiny(*, seed=0, classification_weight=0.0):
    torch.manual_seed(seed)
    return lively(Tiny(classification_weight))


def grey(n, *, seed=0, size=SIZE):
    """(N, 1, S, S) uint8."""
    return torch.randint(
        0, 256, (n, 1, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def run(graph, images):
    """The model's outputs by name, from onnxruntime alone."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"images": images.numpy()}), strict=True))


def steps(ours, theirs):
    """The largest difference between two maps as they are stored, in steps of 1/255."""
    return np.abs(np.rint(np.asarray(ours) * 255) - np.rint(np.asarray(theirs) * 255)).max()


@pytest.fixture(scope="module")
def exported():
    """name -> the lively network and its graph, which takes seconds to make."""

    @functools.cache
    def made(name):
        torch.manual_seed(0)
        network = lively(models.build(name, **SETTINGS[name]))
        return network, onnx_graph.export({0: network}, image_size=SIZE, facts={})

    return made


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES],
)
def test_exported_networks_give_the_maps_of_pytorch_for_any_number_of_images(
    name, exported, tmp_path
):
    network, graph = exported(name)
    onnx.checker.check_model(graph, full_check=True)
    for n in (1, 3, 5):
        images = grey(n, seed=n)
        expected, _ = probability_maps.probabilities([network], images.float() / 255)
        found = run(graph, images)
        assert list(found) == ["probability"]
        assert (found["probability"].dtype, found["probability"].shape) == (
            np.float32,
            (n, 1, SIZE, SIZE),
        )
        assert steps(found["probability"], expected) <= 1
        assert np.ptp(expected.numpy()) > 0.2
    (tmp_path / "network.onnx").write_bytes(graph)
    cut = onnx_runtime.load(tmp_path / "network.onnx", [0])[0]
    assert cut.image_size == SIZE
    with torch.inference_mode():
        (logits, classification), (expected, _) = (
            one.outputs(images.float() / 255) for one in (cut.network, network)
        )
    assert classification is None
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def two():
    """Networks with a classification head by fold (0 and 3), and the model that holds them."""
    networks = {fold: tiny(seed=fold, classification_weight=0.5) for fold in (0, 3)}
    return networks, onnx_graph.export(networks, image_size=SIZE, facts={"run": "two"})


def test_the_outputs_are_of_mean_logits_over_image_and_mirror_and_over_the_folds(two):
    networks, graph = two
    images = grey(3)
    found = run(graph, images)
    maps, classifications = [], []
    with torch.no_grad():
        for network in networks.values():
            for mirror in (False, True):
                pixels = images.float() / 255
                logits, classification = network.outputs(pixels.flip(3) if mirror else pixels)
                maps.append(logits.flip(3) if mirror else logits)
                classifications.append(classification)
    assert list(found) == ["probability", "classification"]
    assert found["classification"].shape == (3,)
    np.testing.assert_allclose(found["probability"], (sum(maps) / 4).sigmoid(), atol=1e-4)
    expected = (sum(classifications) / 4).sigmoid()
    np.testing.assert_allclose(found["classification"], expected, atol=1e-4)
    assert (maps[0] - maps[1]).abs().max() > 0.1  # a mirror matters
    assert (maps[0] - maps[2]).abs().max() > 0.1  # and so does a fold


def test_the_network_of_each_fold_can_be_cut_out_of_the_file(two, tmp_path):
    networks, graph = two
    (tmp_path / "network.onnx").write_bytes(graph)
    images = torch.rand(3, 1, SIZE, SIZE)
    for fold, network in networks.items():
        cut = onnx_runtime.load(tmp_path / "network.onnx", [fold])[fold]
        with torch.inference_mode():
            (logits, classification), expected = (
                cut.network.outputs(images),
                network.outputs(images),
            )
        torch.testing.assert_close(logits, expected[0], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(classification, expected[1], rtol=1e-3, atol=1e-3)


def test_the_file_describes_itself_but_not_the_machine_it_was_made_on(two):
    _, graph = two
    facts = {entry.key: entry.value for entry in onnx.load_from_string(graph).metadata_props}
    assert facts["run"] == "two"
    assert facts["network"] == "Tiny"
    assert json.loads(facts["folds"]) == [0, 3]
    assert facts["image_size"] == "64"
    assert facts["input"].startswith("images (N, 1, 64, 64) uint8 grey, 0 to 255")
    assert facts["output"].startswith("probability (N, 1, 64, 64) float32 in 0 to 1")
    assert facts["output_classification"].startswith("classification (N) float32")
    for place in (str(ROOT), "site-packages", "onnx_graph.py", "stack_trace"):
        assert place.encode() not in graph


@pytest.mark.parametrize(
    "shape, kind, output, message",
    [
        (["N", 1, "S", "S"], onnx.TensorProto.UINT8, "probability", "square grey images"),
        (["N", 1, 64, 32], onnx.TensorProto.UINT8, "probability", "square grey images"),
        (["N", 3, 64, 64], onnx.TensorProto.UINT8, "probability", "square grey images"),
        ([], onnx.TensorProto.UINT8, "probability", "square grey images"),
        (["N", 1, 64, 64], onnx.TensorProto.FLOAT, "probability", "square grey images"),
        (["N", 1, 64, 64], onnx.TensorProto.UINT8, "mask", "take and give images, mask"),
    ],
)
def test_a_graph_that_takes_or_gives_something_else_is_refused(shape, kind, output, message):
    make = onnx.helper.make_tensor_value_info
    to_float = onnx.helper.make_node("Cast", ["images"], [output], to=onnx.TensorProto.FLOAT)
    graph = onnx.helper.make_graph(
        [to_float],
        "other",
        [make("images", kind, shape)],
        [make(output, onnx.TensorProto.FLOAT, shape)],
    )
    opset = [onnx.helper.make_opsetid("", onnx_graph.OPSET)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
    with pytest.raises(ValueError, match=message):
        ExportedNetworks(model.SerializeToString())


def test_equal_networks_give_equal_bytes(two):
    _, graph = two
    again = {fold: tiny(seed=fold, classification_weight=0.5) for fold in (0, 3)}
    assert onnx_graph.export(again, image_size=SIZE, facts={"run": "two"}) == graph


def test_mask_r_cnn_is_refused_with_the_reason():
    with pytest.raises(
        BadInput, match=r"CheXLocNet cannot be exported to ONNX: Mask R-CNN chooses boxes"
    ):
        onnx_graph.export({0: small("chexlocnet")}, image_size=SIZE, facts={})


class Undecided(SegmentationNetwork):
    """Branches on the values of the image, which the exporter cannot follow."""

    def forward(self, images):
        return images if images.mean() > 0.5 else -images


def test_a_network_that_the_exporter_cannot_follow_is_refused_by_name():
    with pytest.raises(BadInput, match="Undecided cannot be exported to ONNX: "):
        onnx_graph.export({0: Undecided()}, image_size=SIZE, facts={})


def test_weights_too_large_for_one_file_are_refused_before_the_export(monkeypatch):
    monkeypatch.setattr(onnx_graph, "LARGEST_BYTES", 100_000)
    with pytest.raises(BadInput, match=r"the weights of 2 networks take 0\.0 GiB .* --fold 0"):
        onnx_graph.export({0: small("unet"), 1: small("unet")}, image_size=SIZE, facts={})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(output, networks, weights) of run "r" with a file of folds 0 and 1, without a cache."""
    output = tmp_path_factory.mktemp("made")
    networks = {fold: Predictor(tiny(seed=fold), SIZE) for fold in (0, 1)}
    weights = {artifacts.Run("r").fold(fold).best_weights: f"hash {fold}" for fold in networks}
    assert (
        onnx_export.write(output, "r", networks, weights=weights, images=[output / "absent.png"])
        <= 1
    )
    return output, networks, weights


@pytest.fixture
def written(made, tmp_path):
    """A copy that tests may change."""
    output, networks, weights = made
    return shutil.copytree(output, tmp_path / "output"), networks, weights


def test_a_graph_that_disagrees_with_pytorch_is_not_kept(written, monkeypatch):
    output, networks, weights = written
    path = output / artifacts.Run("r").onnx
    good = path.read_bytes()
    monkeypatch.setattr(onnx_graph, "export", lambda *_, **__: good)
    other = {0: networks[0], 1: Predictor(tiny(seed=2), SIZE)}
    with pytest.raises(
        BadInput, match=r"run r was not kept: its probability maps differ from PyTorch's by \d+/255"
    ):
        onnx_export.write(
            output, "r", other, weights={"other": "hash"}, images=[output / "absent.png"]
        )
    assert path.read_bytes() == good
    assert onnx_export.is_current(output, "r", [0, 1], weights, or_more=False)


def test_differences_are_counted_in_the_steps_of_stored_maps(made):
    output, networks, _ = made
    graph = (output / artifacts.Run("r").onnx).read_bytes()
    ours = [one.network for one in networks.values()]
    assert onnx_export.largest_difference(graph, ours, grey(3)) <= 1
    other = [ours[0], tiny(seed=9)]
    expected = [
        probability_maps.probabilities(some, grey(3).float() / 255)[0] for some in (ours, other)
    ]
    found = onnx_export.largest_difference(graph, other, grey(3))
    assert abs(found - steps(*expected)) <= 1
    assert found > 10


def test_maps_that_are_not_finite_differ_by_255(made, monkeypatch):
    output, networks, _ = made
    graph = (output / artifacts.Run("r").onnx).read_bytes()

    class Broken:
        def run(self, names, images):
            return [np.full((1, 1, SIZE, SIZE), np.nan, np.float32)]

    patched = "pneumothorax.prediction.exported.session"
    monkeypatch.setattr(patched, lambda graph, threads: Broken())
    assert (
        onnx_export.largest_difference(graph, [one.network for one in networks.values()], grey(1))
        == 255
    )


def test_a_file_is_current_until_its_bytes_its_folds_or_their_weights_change(
    written,
):
    output, _, weights = written

    def is_current(folds, weights, *, or_more=False):
        return onnx_export.is_current(output, "r", folds, weights, or_more=or_more)

    first = {artifacts.Run("r").fold(0).best_weights: "hash 0"}
    assert is_current([0, 1], weights)
    assert is_current([0], first, or_more=True)
    assert not is_current([0], first)
    assert not is_current(
        [0, 1], {**weights, **dict.fromkeys(first, "of another training")}, or_more=True
    )
    assert not is_current(
        [0, 1, 2], {**weights, artifacts.Run("r").fold(2).best_weights: "hash 2"}, or_more=True
    )
    path = output / artifacts.Run("r").onnx
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert not is_current([0, 1], weights)


def test_maps_are_compared_on_images_of_the_run_or_on_noise_if_those_are_missing(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for number, path in enumerate(paths):
        path.write_bytes(png.encode_small(np.full((128, 128), number, np.uint8)))
    found = onnx_export.images_to_check(paths, SIZE)
    assert (found.shape, found.dtype) == ((3, 1, SIZE, SIZE), torch.uint8)
    assert [image.unique().tolist() for image in found] == [[0], [2], [4]]  # first, middle, last
    paths[2].unlink()
    found = onnx_export.images_to_check(paths, SIZE)
    assert [len(image.unique()) > 200 for image in found] == [False, True, False]


def test_real_radiographs_get_the_maps_of_pytorch(real_data, exported):
    files = sorted((real_data / "siim").rglob("*.dcm"))
    images = torch.from_numpy(
        np.stack([png.downsample(dicom.read(path).image, SIZE) for path in files])
    ).unsqueeze(1)
    assert len(images) >= 60
    network, graph = exported("ica_resunet")
    expected, _ = probability_maps.probabilities([network], images.float() / 255)
    assert steps(run(graph, images)["probability"], expected) <= 1
    assert np.ptp(expected.numpy()) > 0.2
