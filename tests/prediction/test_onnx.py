"""A run's networks in one ONNX file: what PyTorch gives, to a step of 255, or no file; stage 03 with onnxruntime."""

import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import models
from models.network import SegmentationNetwork
from pneumothorax import dicom, png
from pneumothorax.errors import BadInput
from pneumothorax.pipeline import artifacts, journal, records
from pneumothorax.prediction import onnx_export, onnx_runtime, probability_maps
from pneumothorax.prediction.probability_maps import Predictor
from tests.helpers.networks import SMALL, small
from tests.helpers.stages import ROOT, run_stage

NAMES = (*(name for name in models.NAMES if name != "chexlocnet"), "smp/FPN", "smp/UnetPlusPlus")
QUICK = ("ica_resunet", "unet")  # all others with --all
SETTINGS = {**SMALL, "smp/UnetPlusPlus": SMALL["ica_resunet"]}
SIZE = 64


def lively(name, *, seed=0, **settings):
    """A small network whose maps are not nearly constant, as those of random weights are."""
    torch.manual_seed(seed)
    network = models.build(name, **{**SETTINGS[name], **settings}).train()
    with torch.no_grad():
        for _ in range(3):  # batch norms get statistics
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


def grey(n, *, seed=0, size=SIZE):
    """(N, 1, S, S) uint8."""
    return torch.randint(
        0, 256, (n, 1, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def run(graph, images):
    """The model's outputs by name, by onnxruntime as anyone would call it."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"images": images.numpy()}), strict=True))


def steps(ours, theirs):
    """The largest difference of two maps in steps of 1/255, as they are stored."""
    return np.abs(np.rint(np.asarray(ours) * 255) - np.rint(np.asarray(theirs) * 255)).max()


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES],
)
def test_every_network_but_mask_r_cnn_gives_the_maps_of_pytorch_for_any_number_of_images(
    name, tmp_path
):
    network = lively(name)
    graph = onnx_export.export({0: network}, image_size=SIZE, facts={})
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
    (cut,) = onnx_runtime.load(tmp_path / "network.onnx", [0])
    assert cut.image_size == SIZE
    with torch.inference_mode():
        (logits, classification), (expected, _) = (
            one.outputs(images.float() / 255) for one in (cut.network, network)
        )
    assert classification is None
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def two():
    """Two networks with a classification head, of folds 0 and 3, and the model that holds them."""
    networks = {fold: lively("albunet", seed=fold, classification_weight=0.5) for fold in (0, 3)}
    return networks, onnx_export.export(networks, image_size=SIZE, facts={"run": "two"})


def test_the_outputs_are_means_over_image_and_mirror_and_over_the_folds(two):
    networks, graph = two
    images = grey(3)
    found = run(graph, images)
    maps, classifications = [], []
    with torch.no_grad():
        for network in networks.values():
            for mirror in (False, True):
                pixels = images.float() / 255
                logits, classification = network.outputs(pixels.flip(3) if mirror else pixels)
                maps.append((logits.flip(3) if mirror else logits).sigmoid())
                classifications.append(classification.sigmoid())
    assert list(found) == ["probability", "classification"]
    assert found["classification"].shape == (3,)
    np.testing.assert_allclose(found["probability"], sum(maps) / 4, atol=1e-4)
    np.testing.assert_allclose(found["classification"], sum(classifications) / 4, atol=1e-4)
    assert (maps[0] - maps[1]).abs().max() > 0.1  # a mirror matters
    assert (maps[0] - maps[2]).abs().max() > 0.1  # and so does a fold


def test_each_folds_network_can_be_cut_out_of_the_file(two, tmp_path):
    networks, graph = two
    (tmp_path / "network.onnx").write_bytes(graph)
    images = torch.rand(3, 1, SIZE, SIZE)
    for fold, network in networks.items():
        (cut,) = onnx_runtime.load(tmp_path / "network.onnx", [fold])
        with torch.inference_mode():
            (logits, classification), expected = (
                cut.network.outputs(images),
                network.outputs(images),
            )
        torch.testing.assert_close(logits, expected[0], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(classification, expected[1], rtol=1e-3, atol=1e-3)


def test_the_file_says_what_it_is_and_nothing_of_where_it_was_made(two):
    _, graph = two
    facts = {entry.key: entry.value for entry in onnx.load_from_string(graph).metadata_props}
    assert facts["run"] == "two"
    assert facts["network"] == "AlbuNet"
    assert json.loads(facts["folds"]) == [0, 3]
    assert facts["image_size"] == "64"
    assert facts["input"].startswith("images (N, 1, 64, 64) uint8 grey, 0 to 255")
    assert facts["output"].startswith("probability (N, 1, 64, 64) float32 in 0 to 1")
    assert facts["output_classification"].startswith("classification (N) float32")
    for place in (str(ROOT), "site-packages", "onnx_export.py", "stack_trace"):
        assert place.encode() not in graph


def test_equal_networks_give_equal_bytes():
    once, again = (
        onnx_export.export({0: small("unet")}, image_size=SIZE, facts={"run": "r"})
        for _ in range(2)
    )
    assert once == again


def test_mask_r_cnn_is_refused_with_the_reason():
    with pytest.raises(
        BadInput, match=r"CheXLocNet cannot be exported to ONNX: Mask R-CNN chooses boxes"
    ):
        onnx_export.export({0: small("chexlocnet")}, image_size=SIZE, facts={})


class Undecided(SegmentationNetwork):
    """Computes one of two things, by the image."""

    def forward(self, images):
        return images if images.mean() > 0.5 else -images


def test_a_network_that_the_exporter_cannot_follow_is_refused_by_name():
    with pytest.raises(BadInput, match="Undecided cannot be exported to ONNX: "):
        onnx_export.export({0: Undecided()}, image_size=SIZE, facts={})


def test_more_weights_than_a_file_can_hold_are_refused_before_the_work(monkeypatch):
    monkeypatch.setattr(onnx_export, "LARGEST_BYTES", 100_000)
    with pytest.raises(BadInput, match=r"the weights of 2 networks take 0\.0 GiB .* --fold 0"):
        onnx_export.export({0: small("unet"), 1: small("unet")}, image_size=SIZE, facts={})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(output, networks, weights) after a file was written for folds 0 and 1 of run "r", without cached images."""
    output = tmp_path_factory.mktemp("made")
    networks = {fold: Predictor(lively("unet", seed=fold), SIZE) for fold in (0, 1)}
    weights = {artifacts.Run("r").fold(fold).best_weights: f"hash {fold}" for fold in networks}
    assert (
        onnx_export.write(output, "r", networks, weights=weights, images=[output / "absent.png"])
        <= 1
    )
    return output, networks, weights


@pytest.fixture
def written(made, tmp_path):
    """The same, to be changed."""
    output, networks, weights = made
    return shutil.copytree(output, tmp_path / "output"), networks, weights


def test_a_graph_that_disagrees_with_pytorch_is_not_kept(written, monkeypatch):
    output, networks, weights = written
    path = output / artifacts.Run("r").onnx
    good = path.read_bytes()
    monkeypatch.setattr(onnx_export, "export", lambda *_, **__: good)
    other = {0: networks[0], 1: Predictor(lively("unet", seed=2), SIZE)}
    with pytest.raises(
        BadInput, match=r"run r gives other maps than PyTorch, by \d+ of 255, and was not kept"
    ):
        onnx_export.write(
            output, "r", other, weights={"other": "hash"}, images=[output / "absent.png"]
        )
    assert path.read_bytes() == good
    assert onnx_export.is_current(output, "r", [0, 1], weights, or_more=False)


def test_a_difference_is_counted_in_the_steps_of_a_stored_map(made):
    output, networks, _ = made
    graph = (output / artifacts.Run("r").onnx).read_bytes()
    ours = [one.network for one in networks.values()]
    assert onnx_export.largest_difference(graph, ours, grey(3)) <= 1
    other = [ours[0], lively("unet", seed=9)]
    expected = [
        probability_maps.probabilities(some, grey(3).float() / 255)[0] for some in (ours, other)
    ]
    found = onnx_export.largest_difference(graph, other, grey(3))
    assert abs(found - steps(*expected)) <= 1
    assert found > 10


def test_maps_that_are_not_finite_are_a_difference_that_nothing_excuses(made, monkeypatch):
    output, networks, _ = made
    graph = (output / artifacts.Run("r").onnx).read_bytes()

    class Broken:
        def run(self, names, images):
            return [np.full((1, 1, SIZE, SIZE), np.nan, np.float32)]

    monkeypatch.setattr(onnx_runtime, "session", lambda graph: Broken())
    assert (
        onnx_export.largest_difference(graph, [one.network for one in networks.values()], grey(1))
        == 255
    )


def test_a_file_is_current_for_the_folds_it_holds_while_it_and_their_weights_are_as_they_were(
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


def test_maps_are_compared_on_images_of_the_run_and_on_noise_where_those_are_gone(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for number, path in enumerate(paths):
        path.write_bytes(png.encode_small(np.full((128, 128), number, np.uint8)))
    found = onnx_export.images_to_check(paths, SIZE)
    assert (found.shape, found.dtype) == ((3, 1, SIZE, SIZE), torch.uint8)
    assert [image.unique().tolist() for image in found] == [[0], [2], [4]]  # first, middle, last
    paths[2].unlink()
    found = onnx_export.images_to_check(paths, SIZE)
    assert [len(image.unique()) > 200 for image in found] == [False, True, False]


def test_real_radiographs_get_the_maps_of_pytorch(real_data):
    files = sorted((real_data / "siim").rglob("*.dcm"))
    images = torch.from_numpy(
        np.stack([png.downsample(dicom.read(path).image, 128) for path in files])
    ).unsqueeze(1)
    assert len(images) >= 60
    network = lively("ica_resunet")
    graph = onnx_export.export({0: network}, image_size=128, facts={})
    expected, _ = probability_maps.probabilities([network], images.float() / 255)
    assert steps(run(graph, images)["probability"], expected) <= 1
    assert np.ptp(expected.numpy()) > 0.2


TINY = """
model: albunet
model_settings: {encoder: resnet18, encoder_weights: none, filters: 4, classification_weight: 0.5}
image_size: 64
epochs: 3
batch_size: 4
learning_rate: 0.02
"""


@pytest.fixture(scope="module")
def trained(folded, tmp_path_factory):
    """The output folder of run "tiny": two folds trained, and exported."""
    config = tmp_path_factory.mktemp("config") / "tiny.yaml"
    config.write_text(TINY)
    run_stage(
        "02_train.py", "--config", config, "--run", "tiny", "--output", folded, "--workers", 0
    )
    predict(folded, "--export", "onnx")
    return folded


def predict(output, *more):
    run_stage(
        "03_predict.py",
        "--run",
        "tiny",
        "--output",
        output,
        "--workers",
        0,
        "--precision",
        "fp32",
        *more,
    )


def test_the_exported_file_holds_all_folds_of_the_run_and_is_not_made_twice(trained, capsys):
    path = trained / artifacts.Run("tiny").onnx
    facts = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert facts["run"] == "tiny"
    best = [artifacts.Run("tiny").fold(fold).best_weights for fold in (0, 1)]
    assert json.loads(facts["weights"]) == records.hashes(trained, best)
    made = path.stat().st_mtime_ns
    predict(trained, "--export", "onnx")
    assert "network.onnx is up to date" in capsys.readouterr().out
    assert path.stat().st_mtime_ns == made


def stored(output):
    """The predictions table, and all its maps as whole numbers."""
    table = artifacts.read_table(output, artifacts.Run("tiny").predictions)
    places = zip(table["split"], table["image_id"], strict=True)
    maps = [
        png.read(output / artifacts.Run("tiny").probability_map(split, image_id))
        for split, image_id in places
    ]
    return table, np.stack(maps).astype(int)


def backends(output):
    """By which of the two each entry of the journal was made, the last entry of an image."""
    entries = journal.read(output / artifacts.Run("tiny").prediction_journal())
    return {
        name: "onnxruntime" if "onnxruntime" in entry["key"] else "pytorch"
        for name, entry in entries.items()
    }


def test_stage_03_gives_pytorchs_maps_with_onnxruntime_and_never_takes_one_for_the_other(
    trained, capsys
):
    predict(trained)
    table, maps = stored(trained)
    assert set(table["split"]) == {artifacts.OOF, artifacts.TEST}
    assert np.ptp(maps) > 20
    assert set(backends(trained).values()) == {"pytorch"}

    predict(trained, "--backend", "onnxruntime")
    assert "network.onnx is up to date" in capsys.readouterr().out
    table_again, maps_again = stored(trained)
    assert np.abs(maps - maps_again).max() <= 1
    np.testing.assert_allclose(
        table["p_classification"], table_again["p_classification"], atol=1e-4
    )
    assert table["image_id"].equals(table_again["image_id"])
    assert list(backends(trained).values()) == ["onnxruntime"] * len(table)
    assert (
        records.read(trained, artifacts.Run("tiny").predicted)["settings"]["backend"]
        == "onnxruntime"
    )

    predict(trained, "--backend", "onnxruntime")
    assert "the predictions of run tiny are up to date" in capsys.readouterr().out
    predict(trained)
    assert list(backends(trained).values()) == ["pytorch"] * len(table)
    assert (stored(trained)[1] == maps).all()


def test_a_file_of_earlier_weights_is_made_again_before_it_predicts(trained, tmp_path, capsys):
    output = shutil.copytree(trained, tmp_path / "output")
    path = output / artifacts.Run("tiny").onnx
    good = path.read_bytes()
    record = records.read(output, artifacts.Run("tiny").exported)
    path.write_bytes(b"of earlier weights")
    records.write(
        output,
        artifacts.Run("tiny").exported,
        settings=record["settings"],
        inputs=dict.fromkeys(record["inputs"], "of earlier weights"),
        outputs=record["outputs"],
    )
    predict(output, "--backend", "onnxruntime", "--split", "test")
    assert (
        "network.onnx: 2 networks in one file, maps differ from PyTorch's by at most"
        in capsys.readouterr().out
    )
    assert path.read_bytes() == good


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--export", "tflite"], "invalid choice"),
        (["--backend", "tensorrt"], "invalid choice"),
        (["--export", "onnx", "--backend", "onnxruntime"], "not allowed with"),
        (["--export", "onnx", "--device", "cuda"], "leave --device and --precision out"),
        (["--backend", "onnxruntime", "--precision", "bf16"], "leave --device and --precision out"),
        (["--export", "onnx", "--split", "oof"], "--split does not go with it"),
    ],
)
def test_flags_that_do_not_go_together_are_usage_errors(flags, message, capsys):
    with pytest.raises(SystemExit) as caught:
        run_stage("03_predict.py", *flags)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
@pytest.mark.parametrize("flags", [["--export", "onnx"], ["--backend", "onnxruntime"]])
def test_a_missing_package_is_a_usage_error_with_the_command_to_install_it(
    package, flags, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, package, None)  # its import raises ImportError
    with pytest.raises(SystemExit) as caught:
        run_stage("03_predict.py", *flags)
    assert caught.value.code == 2
    assert "python -m pip install -r requirements-extra.txt" in capsys.readouterr().err


def test_without_the_flags_no_package_of_onnx_is_imported(trained):
    code = (
        "import runpy, sys\n"
        "arguments = ['--run', 'tiny', '--output', sys.argv[1], '--workers', '0', '--split', 'test', '--overwrite']\n"
        "runpy.run_path('03_predict.py', run_name='stage')['main'](arguments)\n"
        "print([name for name in ('onnx', 'onnxruntime', 'onnxscript') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, trained],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
