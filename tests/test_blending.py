"""Blends: the maps of several runs as one, weights fitted on out-of-fold maps, and what they gain."""

import argparse
import json
import shutil

import cv2
import numpy as np
import pytest
from conftest import disc, run_stage

from pneumothorax import artifacts, blending, evaluation, lineage, png, predicted, records, thresholds
from pneumothorax.engine import Engine
from pneumothorax.errors import BadInput
from pneumothorax.predicted import Image, Predicted, StoredMap

SMALL = """
model: ica_resunet
model_settings: {encoder: resnet18, encoder_weights: none, decoder_channels: [16, 16, 8, 8, 8]}
image_size: 64
epochs: 1
batch_size: 4
learning_rate: 0.001
"""


def test_a_blend_is_the_weighted_mean_at_the_size_of_the_largest_map():
    first, second = np.full((4, 4), 100, np.uint8), np.full((8, 8), 200, np.uint8)
    second[0, 0] = 0
    found = blending.blend([first, second], (0.25, 0.75))
    assert found.shape == (8, 8)
    assert found.dtype == np.uint8
    assert found[0, 0] == 25
    assert (found.ravel()[1:] == 175).all()  # 0.25 x 100 + 0.75 x 200
    assert blending.blend([first, second], (1.0, 0.0)) is first
    assert blending.blend([first, first], (0.5, 0.5)).tolist() == first.tolist()


def test_any_weights_of_equal_maps_give_that_map():
    stored = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    for weights in ((0.05, 0.95), (0.4, 0.6), (0.3, 0.3, 0.4), (1 / 3, 1 / 3, 1 / 3)):
        np.testing.assert_array_equal(blending.blend([stored] * len(weights), weights), stored)


def constructed(n_images, weights, seed, size=64):
    """Moments of random maps whose blend with these weights is each pixel's chance to belong to the truth."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n_images):
        maps = [rng.integers(0, 256, (size, size), dtype=np.uint8) for _ in weights]
        chance = sum(weight * one for weight, one in zip(weights, maps, strict=True)) / 255
        found.append(blending.moments(maps, (rng.random((size, size)) < chance).astype(np.uint8)))
    return found


@pytest.mark.parametrize("weights", [(0.3, 0.7), (0.0, 1.0), (0.2, 0.5, 0.3), (0.1, 0.0, 0.65, 0.25)])
def test_weights_are_recovered_where_they_are_known(weights):
    assert blending.fit(constructed(60, weights, seed=1)) == pytest.approx(weights)


def test_equal_runs_get_equal_weights():
    rng = np.random.default_rng(2)
    stored, truth = rng.integers(0, 256, (32, 32), dtype=np.uint8), disc(32, 10, 10, 6)
    assert blending.fit([blending.moments([stored] * 2, truth)]) == (0.5, 0.5)


def test_moments_are_means_over_the_pixels_of_the_largest_map():
    one, two = np.full((2, 2), 51, np.uint8), np.full((4, 4), 102, np.uint8)  # 0.2 and 0.4
    truth = np.zeros((8, 8), np.uint8)
    truth[:, :4] = 1  # half of the image
    found = blending.moments([one, two], truth)
    np.testing.assert_allclose(found.between, [[0.04, 0.08], [0.08, 0.16]], rtol=1e-6)
    np.testing.assert_allclose(found.with_truth, [0.1, 0.2], rtol=1e-6)


def test_all_weights_are_tried_once():
    tried = blending._simplex(3)
    assert len(tried) == 231  # 20 steps into 3 parts: 22 over 2
    assert len({tuple(row) for row in tried.round(9).tolist()}) == 231
    np.testing.assert_allclose(tried.sum(axis=1), 1)
    assert (tried >= 0).all()


@pytest.mark.parametrize(
    "text, expected", [("a", {"a": None}), ("a,b", {"a": None, "b": None}), ("a=0.4,b=.6", {"a": 0.4, "b": 0.6})]
)
def test_runs_are_given_with_or_without_weights(text, expected):
    assert blending.parse(text) == expected


@pytest.mark.parametrize("text", ["a=0.4,b=0.5", "a=0.4,b", "a=-0.5,b=1.5", "a=x", "a,a", "a=nan,b=1", "a,b,c,d,e,f,g"])
def test_weights_that_make_no_sense_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError):
        blending.parse(text)


def stored_images(folder, n_images, seed):
    """Images with two runs' maps: the first sees the discs, the second shifts them; half have one."""
    rng = np.random.default_rng(seed)
    images, scores = [], []
    for number in range(n_images):
        truth = disc(64, *rng.integers(20, 44, 2), 8) if number % 2 else np.zeros((64, 64), np.uint8)
        stored = []
        for run in range(2):
            seen = np.roll(truth, 4 * run, axis=1) * rng.uniform(0.4, 1.0) + 0.3 * rng.random()
            blurred = cv2.GaussianBlur(seen.astype(np.float32), (0, 0), 2)
            path = folder / f"{number}-{run}.png"
            data = png.encode_small(np.clip(blurred * 255, 0, 255).astype(np.uint8))
            path.write_bytes(data)
            stored.append(StoredMap(path, records.sha256(path)))
        rows = (predicted.rle.encode(truth),) if truth.any() else ()
        images.append(Image(str(number), tuple(stored), (64, 64), rows))
        scores.append([float(png.read(one.path).max()) / 255 for one in stored])
    return Predicted(images, np.arange(n_images) % 3, np.array(scores))


def test_what_scores_a_fold_does_not_depend_on_its_labels(tmp_path):
    """Weights, calibration and thresholds of fold 1, after its truths were exchanged."""
    grid, engine = thresholds.Grid(min_probabilities=thresholds.MIN_PROBABILITIES), Engine(1)
    before = stored_images(tmp_path, 30, seed=3)
    rows_of_others = ("0 4096",), ()
    exchanged = [
        Image(image.image_id, image.stored, image.shape, rows_of_others[bool(image.label_rows)]) if fold == 1 else image
        for image, fold in zip(before.images, before.fold, strict=True)
    ]
    one, _ = evaluation.evaluate(before, grid, engine=engine, given=None)
    other, _ = evaluation.evaluate(before._replace(images=exchanged), grid, engine=engine, given=None)
    assert one.weights[1] == other.weights[1]
    assert one.calibrations[1] == other.calibrations[1]
    assert one.fitted.by_fold[1] == other.fitted.by_fold[1]
    own = before.fold == 1
    assert one.images["rle"][own].tolist() == other.images["rle"][own].tolist()
    assert one.images["p_positive"][own].tolist() == other.images["p_positive"][own].tolist()
    assert one.calibrations[None] != other.calibrations[None]  # what is for test images rests on all


def test_scores_from_the_search_are_those_of_the_masks_that_are_made(tmp_path):
    found = stored_images(tmp_path, 24, seed=4)
    grid = thresholds.Grid(min_components=(0, 100), fill_holes=(False, True), min_probabilities=(0.0, 0.3, 0.6))
    blend, singles = evaluation.evaluate(found, grid, engine=Engine(1), given=(0.5, 0.5))
    assert len(singles) == 2
    for each in (blend, *singles):
        assert each.images["dice"].mean() == pytest.approx(list(each.fitted.steps.values())[-1][0])
    assert blend.images["rle"].map(type).eq(str).all()


@pytest.fixture(scope="module")
def two_runs(folded, tmp_path_factory):
    """Two runs of the same settings and seed: their maps are equal."""
    output = tmp_path_factory.mktemp("blend") / "output"
    shutil.copytree(folded, output)
    config = output.parent / "small.yaml"
    config.write_text(SMALL)
    for run in ("one", "twin"):
        run_stage("02_train.py", "--config", config, "--run", run, "--output", output, "--workers", 0)
        run_stage("03_predict.py", "--run", run, "--output", output, "--workers", 0)
    return output


def table(output, name):
    return artifacts.read_table(output, artifacts.cross_validation(name)).set_index("row")


def test_a_blend_of_two_equal_runs_scores_as_one(two_runs, capsys):
    shared = ["--output", two_runs, "--workers", 0]
    run_stage("04_submit.py", "--run", "one", *shared)
    run_stage("04_submit.py", "--runs", "one=0.4,twin=0.6", "--name", "given", *shared)
    capsys.readouterr()
    run_stage("04_submit.py", "--runs", "one,twin", "--name", "fitted", *shared)
    printed = capsys.readouterr().out
    assert "weights: one 0.5, twin 0.5" in printed
    assert "best single run one" in printed
    for name in ("given", "fitted"):
        pairs = zip(table(two_runs, "one").to_numpy().ravel(), table(two_runs, name).to_numpy().ravel(), strict=True)
        assert all(one == pytest.approx(other, nan_ok=True) for one, other in pairs)
        one, other = (artifacts.submission(two_runs, each).read_bytes() for each in ("one", name))
        assert one == other
        record = records.read(two_runs, artifacts.submitted(name))
        assert record["gain"]["difference"] == 0
        assert record["gain"]["low"] == record["gain"]["high"] == 0


def test_a_blend_goes_into_the_report_beside_its_runs(two_runs):
    run_stage("04_submit.py", "--run", "one", "--output", two_runs, "--workers", 0)
    run_stage("04_submit.py", "--runs", "one=0.4,twin=0.6", "--name", "given", "--output", two_runs, "--workers", 0)
    run_stage("05_report.py", "--names", "one,given", "--output", two_runs, "--workers", 0)
    summary = json.loads((two_runs / artifacts.REPORT_SUMMARY).read_text("utf-8"))["runs"]
    assert summary["given"]["runs"] == ["one", "twin"]
    assert summary["given"]["cost"]["parameters"] == 2 * summary["one"]["cost"]["parameters"]


def test_the_name_of_a_blend_alone_makes_it_again(two_runs):
    run_stage("04_submit.py", "--runs", "one=0.4,twin=0.6", "--name", "given", "--output", two_runs, "--workers", 0)
    before = artifacts.submission(two_runs, "given").stat().st_mtime_ns
    run_stage("04_submit.py", "--name", "given", "--output", two_runs, "--workers", 0)
    assert artifacts.submission(two_runs, "given").stat().st_mtime_ns == before
    assert lineage.runs_of(two_runs, "given") == {"one": 0.4, "twin": 0.6}


def test_runs_that_predicted_other_images_are_not_blended(two_runs, tmp_path):
    output = tmp_path / "output"
    shutil.copytree(two_runs, output)
    run_stage("03_predict.py", "--run", "twin", "--split", "oof", "--fold", 0, "--output", output, "--workers", 0)
    with pytest.raises(BadInput, match=r"cannot be blended: 12 images differ(?s:.)*predicted by one only"):
        run_stage("04_submit.py", "--runs", "one,twin", "--name", "x", "--output", output, "--workers", 0)


def test_runs_on_other_folds_are_not_blended(two_runs, tmp_path):
    output = tmp_path / "output"
    shutil.copytree(two_runs, output)
    run_stage("01_make_folds.py", "--folds", 2, "--seed", 7, "--overwrite", "--output", output)
    with pytest.raises(BadInput, match="folds changed since"):
        run_stage("04_submit.py", "--runs", "one,twin", "--name", "x", "--output", output, "--workers", 0)


def test_a_blend_without_a_name_is_a_usage_error(two_runs):
    with pytest.raises(SystemExit) as caught:
        run_stage("04_submit.py", "--runs", "one,twin", "--output", two_runs)
    assert caught.value.code == 2
