"""Blends: the maps of several runs as one, weights fitted on out-of-fold maps, and what they gain."""

import argparse
import json
import shutil

import cv2
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from pneumothorax import png
from pneumothorax.errors import BadInput
from pneumothorax.masks import blending, calibration, evaluation, predicted, thresholds
from pneumothorax.masks.calibration import Calibration
from pneumothorax.masks.postprocess import Triplet
from pneumothorax.masks.predicted import Image, Predicted, StoredMap
from pneumothorax.pipeline import artifacts, lineage, records
from pneumothorax.pipeline.engine import Engine
from pneumothorax.scores import gain
from tests.helpers.images import disc
from tests.helpers.stages import TINY, run_stage


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


@pytest.mark.parametrize(
    "weights", [(0.3, 0.7), (0.0, 1.0), (0.2, 0.5, 0.3), (0.1, 0.0, 0.65, 0.25)]
)
def test_weights_are_recovered_where_they_are_known(weights):
    assert blending.fit(constructed(60, weights, seed=1)) == pytest.approx(weights)


def test_candidates_are_the_fitted_weights_equal_ones_and_each_run_alone_without_repetition():
    equal, first, second = (0.5, 0.5), (1.0, 0.0), (0.0, 1.0)
    assert blending.candidates(constructed(60, (0.3, 0.7), seed=1)) == [
        pytest.approx((0.3, 0.7)),
        equal,
        first,
        second,
    ]
    assert blending.candidates(constructed(60, (0.0, 1.0), seed=1)) == [second, equal, first]


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
    "text, expected",
    [("a", {"a": None}), ("a,b", {"a": None, "b": None}), ("a=0.4,b=.6", {"a": 0.4, "b": 0.6})],
)
def test_runs_are_given_with_or_without_weights(text, expected):
    assert blending.parse(text) == expected


@pytest.mark.parametrize(
    "text", ["a=0.4,b=0.5", "a=0.4,b", "a=-0.5,b=1.5", "a=x", "a,a", "a=nan,b=1", "a,b,c,d,e,f,g"]
)
def test_weights_that_make_no_sense_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError):
        blending.parse(text)


def stored_images(folder, n_images, seed):
    """Images with two runs' maps: the first sees the discs, the second shifts them; half have one."""
    rng = np.random.default_rng(seed)
    images, scores = [], []
    for number in range(n_images):
        truth = (
            disc(64, *rng.integers(20, 44, 2), 8) if number % 2 else np.zeros((64, 64), np.uint8)
        )
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
        Image(image.image_id, image.stored, image.shape, rows_of_others[bool(image.label_rows)])
        if fold == 1
        else image
        for image, fold in zip(before.images, before.fold, strict=True)
    ]
    one, _ = evaluation.evaluate(before, grid, engine=engine, given=None)
    other, _ = evaluation.evaluate(
        before._replace(images=exchanged), grid, engine=engine, given=None
    )
    assert one.weights[1] == other.weights[1]
    assert one.calibrations[1] == other.calibrations[1]
    assert one.fitted.by_fold[1] == other.fitted.by_fold[1]
    own = before.fold == 1
    assert one.images["rle"][own].tolist() == other.images["rle"][own].tolist()
    assert one.images["p_positive"][own].tolist() == other.images["p_positive"][own].tolist()
    assert (
        one.calibrations[None] != other.calibrations[None]
    )  # what is for test images rests on all


def test_scores_from_the_search_are_those_of_the_masks_that_are_made(tmp_path):
    found = stored_images(tmp_path, 24, seed=4)
    grid = thresholds.Grid(
        min_components=(0, 100), fill_holes=(False, True), min_probabilities=(0.0, 0.3, 0.6)
    )
    blend, singles = evaluation.evaluate(found, grid, engine=Engine(1), given=(0.5, 0.5))
    assert len(singles) == 2
    for each in (blend, *singles):
        assert each.images["dice"].mean() == pytest.approx(list(each.fitted.steps.values())[-1][0])
    assert blend.images["rle"].map(type).eq(str).all()


def test_each_images_probability_is_calibrated_on_the_other_folds(tmp_path):
    found = stored_images(tmp_path, 30, seed=6)
    blend, _ = evaluation.evaluate(found, thresholds.Grid(), engine=Engine(1), given=(0.25, 0.75))
    score, positive = found.scores @ [0.25, 0.75], np.arange(30) % 2
    np.testing.assert_allclose(blend.score, score)
    for fold in range(3):
        own = found.fold == fold
        expected = calibration.fit(score[~own], positive[~own])(score[own])
        np.testing.assert_allclose(blend.images.loc[own, "p_positive"], expected)
    assert roc_auc_score(positive, blend.images["p_positive"]) > 0.8


def test_weights_that_suit_the_pixels_and_spoil_the_masks_are_not_taken(tmp_path):
    """The first run is right and 0.3 too high everywhere, the second sees nothing: background alone prefers that."""
    images, scores = [], []
    for number in range(24):
        truth = disc(64, 20 + number, 30, 8) if number % 2 else np.zeros((64, 64), np.uint8)
        stored = []
        for run, values in enumerate((truth * 178 + 77, np.zeros((64, 64)))):
            path = tmp_path / f"{number}-{run}.png"
            path.write_bytes(png.encode_small(values.astype(np.uint8)))
            stored.append(StoredMap(path, records.sha256(path)))
        images.append(
            Image(
                str(number),
                tuple(stored),
                (64, 64),
                (predicted.rle.encode(truth),) if number % 2 else (),
            )
        )
        scores.append([1.0 if number % 2 else 0.3, 0.0])
    found = Predicted(images, np.arange(24) % 3, np.array(scores))
    by_pixels = blending.fit([evaluation.moments(image) for image in images])
    assert by_pixels[0] < 0.3
    blend, (first, _) = evaluation.evaluate(found, thresholds.Grid(), engine=Engine(1), given=None)
    assert blend.images["dice"].mean() == first.images["dice"].mean() == 1.0


TRIPLETS = {number: Triplet(0.9, 0, 0.9, min_probability=0.1 * number) for number in range(3)}
FINAL = Triplet(0.5, 0, 0.25, min_probability=0.6)


def constructed_evaluation(images=None, score=None):
    """All that was fitted without a fold differs from what was fitted on all."""
    weights = {None: (0.25, 0.75), 0: (1.0, 0.0), 1: (0.0, 1.0), 2: (0.5, 0.5)}
    curves = {
        None: Calibration(1.0, 0.0),
        **{number: Calibration(2.0, 5.0 + number) for number in range(3)},
    }
    fitted = thresholds.Fitted(TRIPLETS, FINAL, {}, 0.9, np.zeros((1, 1, 1)), {})
    return evaluation.Evaluation(weights, curves, fitted, images, score)


def test_test_images_get_what_was_fitted_on_all_folds():
    (rule,) = constructed_evaluation().rules(np.array([[0.2, 0.6]]))
    assert rule.weights == (0.25, 0.75)
    assert rule.triplet == FINAL
    assert rule.p_positive == pytest.approx(
        0.5
    )  # 0.25 x 0.2 + 0.75 x 0.6, by a curve that changes nothing


def test_a_row_of_the_submission_obeys_the_whole_rule(tmp_path):
    first, second = np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint8)
    first[0, 0], second[1, 0] = 255, 128
    stored = []
    for number, values in enumerate((first, second)):
        path = tmp_path / f"{number}.png"
        path.write_bytes(png.encode_small(values))
        stored.append(StoredMap(path, records.sha256(path)))
    image = Image("a", tuple(stored), (8, 8), ())
    triplet = Triplet(0.3, 0, 0.3, min_probability=0.6)
    assert (
        evaluation.mask_row(image, evaluation.Rule((0.25, 0.75), triplet, 0.6)) == "1 1"
    )  # 0.75 x 128 = 96 > 76
    assert evaluation.mask_row(image, evaluation.Rule((0.75, 0.25), triplet, 0.6)) == "0 1"
    assert evaluation.mask_row(image, evaluation.Rule((0.75, 0.25), triplet, 0.59)) == "-1"


def test_the_facts_say_what_was_fitted_for_whom():
    # Ten images, half of them positive: 0.5 is calibrated, 0.9 is 0.4 too sure.
    images = pd.DataFrame({"true_px": [0, 5] * 5, "dice": [1.0, 0.5] * 5, "p_positive": 0.5})
    facts = evaluation.facts(constructed_evaluation(images, np.full(10, 0.9)))
    assert facts["final"] == vars(FINAL)
    assert facts["by_fold"] == {str(number): vars(triplet) for number, triplet in TRIPLETS.items()}
    assert facts["weights"] == {
        "final": [0.25, 0.75],
        "0": [1.0, 0.0],
        "1": [0.0, 1.0],
        "2": [0.5, 0.5],
    }
    assert facts["calibration"]["final"] == {"slope": 1.0, "intercept": 0.0}
    assert facts["calibration"]["1"] == {"slope": 2.0, "intercept": 6.0}
    assert facts["nested_siim_dice"] == 0.75
    assert facts["naive_siim_dice"] == 0.9
    assert facts["expected_calibration_error"] == pytest.approx(
        {"calibrated": 0.0, "uncalibrated": 0.4}
    )


def test_the_gain_is_the_blends_score_minus_that_of_its_best_run():
    ids = [f"i{number}" for number in range(40)]
    manifest = pd.DataFrame(
        {"image_id": ids, "view": "", "sex": "", "height": 64, "width": 64, "positive": 1}
    )
    folds = pd.DataFrame(
        {"image_id": ids, "patient_id": [f"p{n // 2}" for n in range(40)], "fold": 0}
    )

    def predicted_as(overlaps):
        pixels = {
            "true_px": 10,
            "predicted_px": 10,
            "overlap_px": overlaps,
        }  # Dice is the overlap over 10
        return pd.DataFrame(
            {
                "image_id": ids,
                "fold": 0,
                "p_positive": 0.5,
                **pixels,
                "dice": np.array(overlaps) / 10,
            }
        )

    worse, better = predicted_as([4] * 40), predicted_as([5, 7] * 20)
    blend = predicted_as([9 - number % 5 for number in range(40)])  # 7 of 10 on average
    found = gain.over_best_single(blend, {"a": worse, "b": better}, manifest, folds, seed=1)
    assert found["run"] == "b"
    assert found["siim_dice"] == pytest.approx(0.6)
    assert found["difference"] == pytest.approx(0.1)
    assert 0 < found["low"] < 0.1 < found["high"]
    other = gain.over_best_single(blend, {"a": worse, "b": better}, manifest, folds, seed=2)
    assert (other["low"], other["high"]) != (found["low"], found["high"])
    assert "best single run b 0.6000: the blend gains +0.1000" in gain.sentence(found)


@pytest.fixture(scope="module")
def two_runs(folded, tmp_path_factory):
    """Two runs of the same settings and seed: their maps are equal."""
    output = tmp_path_factory.mktemp("blend") / "output"
    shutil.copytree(folded, output)
    config = output.parent / "small.yaml"
    config.write_text(TINY)
    for run in ("one", "twin"):
        settings = ("--config", config, "--set", "epochs=1")
        run_stage("02_train.py", *settings, "--run", run, "--output", output, "--workers", 0)
        run_stage("03_predict.py", "--run", run, "--output", output, "--workers", 0)
    return output


def table(output, name):
    return artifacts.read_table(output, artifacts.Submission(name).cross_validation).set_index(
        "row"
    )


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
        pairs = zip(
            table(two_runs, "one").to_numpy().ravel(),
            table(two_runs, name).to_numpy().ravel(),
            strict=True,
        )
        assert all(one == pytest.approx(other, nan_ok=True) for one, other in pairs)
        one, other = (
            (two_runs / artifacts.Submission(each).csv).read_bytes() for each in ("one", name)
        )
        assert one == other
        record = records.read(two_runs, artifacts.Submission(name).record)
        assert record["gain"]["difference"] == 0
        assert record["gain"]["low"] == record["gain"]["high"] == 0


def test_a_blend_goes_into_the_report_beside_its_runs(two_runs):
    run_stage("04_submit.py", "--run", "one", "--output", two_runs, "--workers", 0)
    run_stage(
        "04_submit.py",
        "--runs",
        "one=0.4,twin=0.6",
        "--name",
        "given",
        "--output",
        two_runs,
        "--workers",
        0,
    )
    run_stage(
        "04_submit.py",
        "--runs",
        "one=1,twin=0",
        "--name",
        "alone",
        "--output",
        two_runs,
        "--workers",
        0,
    )
    run_stage("05_report.py", "--names", "one,given,alone", "--output", two_runs, "--workers", 0)
    summary = json.loads((two_runs / artifacts.REPORT_SUMMARY).read_text("utf-8"))["runs"]
    assert summary["given"]["runs"] == ["one", "twin"]
    assert summary["given"]["cost"]["parameters"] == 2 * summary["one"]["cost"]["parameters"]
    assert (
        summary["alone"]["cost"]["parameters"] == summary["one"]["cost"]["parameters"]
    )  # a weight of 0 costs nothing
    assert sorted(summary["given"]["weights"]) == ["final thresholds", "fold 0", "fold 1"]
    assert all(own == {"one": 0.4, "twin": 0.6} for own in summary["given"]["weights"].values())
    assert summary["one"]["weights"] == {}
    scored = table(two_runs, "one").at["all", "siim_dice"]
    assert summary["one"]["steps"][-1]["siim_dice"] == pytest.approx(scored)
    page = (two_runs / artifacts.REPORT_PAGE).read_text("utf-8")
    assert 'aria-label="Weights of given"' in page
    assert 'aria-label="Weights of one"' not in page


def test_the_name_of_a_blend_alone_makes_it_again(two_runs):
    run_stage(
        "04_submit.py",
        "--runs",
        "one=0.4,twin=0.6",
        "--name",
        "given",
        "--output",
        two_runs,
        "--workers",
        0,
    )
    before = (two_runs / artifacts.Submission("given").csv).stat().st_mtime_ns
    run_stage("04_submit.py", "--name", "given", "--output", two_runs, "--workers", 0)
    assert (two_runs / artifacts.Submission("given").csv).stat().st_mtime_ns == before
    assert lineage.runs_of(two_runs, "given") == {"one": 0.4, "twin": 0.6}


def test_runs_that_predicted_other_images_are_not_blended(two_runs, tmp_path):
    output = tmp_path / "output"
    shutil.copytree(two_runs, output)
    run_stage(
        "03_predict.py",
        "--run",
        "twin",
        "--split",
        "oof",
        "--fold",
        0,
        "--output",
        output,
        "--workers",
        0,
    )
    with pytest.raises(
        BadInput, match=r"cannot be blended: 12 images differ(?s:.)*predicted by one only"
    ):
        run_stage(
            "04_submit.py", "--runs", "one,twin", "--name", "x", "--output", output, "--workers", 0
        )


def test_runs_on_other_folds_are_not_blended(two_runs, tmp_path):
    output = tmp_path / "output"
    shutil.copytree(two_runs, output)
    run_stage("01_make_folds.py", "--folds", 2, "--seed", 7, "--overwrite", "--output", output)
    with pytest.raises(BadInput, match="folds changed since"):
        run_stage(
            "04_submit.py", "--runs", "one,twin", "--name", "x", "--output", output, "--workers", 0
        )


@pytest.mark.parametrize(
    "flags",
    [
        ["--runs", "one,twin"],  # a blend needs a name
        ["--runs", "one", "--run", "twin"],
        ["--runs", "one,", "--name", "x"],
        ["--run", ""],
        ["--run", "one", "--min-component", "0,-3"],
        ["--run", "one", "--min-component", "1048577"],  # more than there are pixels
        ["--run", "one", "--min-component", "some"],
        ["--run", "../one"],
    ],
)
def test_flags_that_make_no_sense_are_usage_errors(two_runs, flags):
    with pytest.raises(SystemExit) as caught:
        run_stage("04_submit.py", *flags, "--output", two_runs)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--name", "../x"], "--name"),
        (["--run", "../x"], "--run"),
        (["--runs", "one,../x", "--name", "x"], "--runs"),
    ],
)
def test_the_flag_whose_name_is_no_name_is_told(two_runs, capsys, flags, named):
    with pytest.raises(SystemExit):
        run_stage("04_submit.py", *flags, "--output", two_runs)
    assert f"error: {named} must be" in capsys.readouterr().err


def test_weights_are_told_for_what_they_are_used_for():
    assert blending.told(["a", "b"], {"0": [0.5, 0.5], "final": [0.5, 0.5], "1": [0.5, 0.5]}) == [
        "weights: a 0.5, b 0.5"
    ]
    assert blending.told(
        ["a", "b"], {"10": [1.0, 0.0], "2": [0.25, 0.75], "final": [0.0, 1.0]}
    ) == [
        "weights for the test images: a 0, b 1",
        "weights that the scores rest on: fold 2: a 0.25, b 0.75; fold 10: a 1, b 0",
    ]


def test_the_order_in_which_runs_are_named_changes_nothing(two_runs, capsys):
    shared = ["--output", two_runs, "--workers", 0]
    run_stage("04_submit.py", "--runs", "twin=0.2,one=0.8", "--name", "order", *shared)
    record = records.read(two_runs, artifacts.Submission("order").record)
    assert record["settings"]["runs"] == {"one": 0.8, "twin": 0.2}
    assert record["weights"]["final"] == [0.8, 0.2]
    assert "weights: one 0.8, twin 0.2" in capsys.readouterr().out
    run_stage("04_submit.py", "--runs", "one=0.8,twin=0.2", "--name", "order", *shared)
    assert "up to date" in capsys.readouterr().out


def test_a_submission_is_made_again_as_it_was_made(two_runs, capsys):
    shared = ["--output", two_runs, "--workers", 0]
    flags = ["--fill-holes", "--image-threshold", "--min-component", "0,400", "--seed", 3]
    run_stage("04_submit.py", "--runs", "one=0.4,twin=0.6", "--name", "flags", *flags, *shared)
    record = records.read(two_runs, artifacts.Submission("flags").record)
    assert record["settings"]["grid"]["min_components"] == [0, 400]
    assert record["settings"]["grid"]["fill_holes"] == [False, True]
    assert len(record["settings"]["grid"]["min_probabilities"]) > 1
    steps = artifacts.read_table(two_runs, artifacts.Submission("flags").steps)
    assert steps["step"].tolist()[2:] == ["small parts dropped", "holes filled", "image threshold"]
    nested = table(two_runs, "flags").at["all", "siim_dice"]
    assert steps["siim_dice"].iloc[-1] == pytest.approx(nested)
    capsys.readouterr()
    run_stage("04_submit.py", "--name", "flags", *shared)
    assert "up to date" in capsys.readouterr().out
    assert records.read(two_runs, artifacts.Submission("flags").record) == record


def test_a_submission_that_cannot_be_made_leaves_the_earlier_one(two_runs, tmp_path):
    output = tmp_path / "output"
    shutil.copytree(two_runs, output)
    run_stage("04_submit.py", "--run", "one", "--output", output, "--workers", 0)
    before = (output / artifacts.Submission("one").csv).read_bytes()
    (tmp_path / "other.csv").write_text("ImageId,EncodedPixels\nunheard-of,-1\n")
    other = ["--sample-submission", tmp_path / "other.csv"]
    with pytest.raises(BadInput, match="unheard-of: no prediction"):
        run_stage("04_submit.py", "--run", "one", *other, "--output", output, "--workers", 0)
    assert (output / artifacts.Submission("one").csv).read_bytes() == before
    next((output / "runs" / "one" / "oof").iterdir()).unlink()
    with pytest.raises(BadInput, match="is not the map"):
        run_stage("04_submit.py", "--run", "one", "--overwrite", "--output", output, "--workers", 0)
    assert (output / artifacts.Submission("one").csv).read_bytes() == before


def edited(output, run, **columns):
    """The run's predictions with other values, as `predicted.read` sees them."""
    frame = artifacts.read_table(output, artifacts.Run(run).predictions)
    artifacts.write_table(output, artifacts.Run(run).predictions, frame.assign(**columns))


def test_an_images_score_is_the_classification_heads_where_there_is_one(two_runs, tmp_path):
    shutil.copytree(two_runs, tmp_path / "output")
    edited(tmp_path / "output", "twin", p_classification=0.125)
    found = predicted.read(tmp_path / "output", ["one", "twin"], artifacts.OOF)
    frame = artifacts.read_table(two_runs, artifacts.Run("one").predictions)
    np.testing.assert_array_equal(found.scores[:, 0], frame.loc[frame["split"] == "oof", "p_max"])
    assert (found.scores[:, 1] == 0.125).all()


def test_maps_are_matched_by_image_and_refused_from_other_folds_or_of_more_images(
    two_runs, tmp_path
):
    output = tmp_path / "output"
    shutil.copytree(two_runs, output)
    frame = artifacts.read_table(output, artifacts.Run("twin").predictions)
    artifacts.write_table(output, artifacts.Run("twin").predictions, frame.iloc[::-1])
    found = predicted.read(output, ["one", "twin"], artifacts.OOF)
    digests = frame.set_index("image_id")["sha256"]
    assert all(image.stored[1].sha256 == digests[image.image_id] for image in found.images)
    artifacts.write_table(output, artifacts.Run("twin").predictions, frame)
    with pytest.raises(BadInput, match="predicted in other folds"):
        edited(output, "twin", fold=(frame["fold"] + 1) % 3)
        predicted.read(output, ["one", "twin"], artifacts.OOF)
    artifacts.write_table(output, artifacts.Run("twin").predictions, frame)
    artifacts.write_table(output, artifacts.Run("one").predictions, frame.iloc[1:])
    with pytest.raises(BadInput, match="predicted by twin only"):
        predicted.read(output, ["one", "twin"], artifacts.OOF)


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"p_max": "", "p_classification": ""}, "has no probability from 0 to 1"),
        ({"p_max": "1.5"}, "has no probability from 0 to 1"),
        ({"p_classification": "-0.1"}, "has no probability from 0 to 1"),
        ({"p_classification": "inf"}, "has no probability from 0 to 1"),
        ({"image_id": "other"}, "other is no image of the manifest"),
        ({"fold": ""}, "has no fold"),
        ({"fold": "0.5"}, "has no fold"),
        ({}, "stands there twice"),
    ],
)
def test_rows_that_no_mask_can_be_made_of_are_listed(two_runs, tmp_path, change, problem):
    shutil.copytree(two_runs, tmp_path / "output")
    path = tmp_path / "output" / artifacts.Run("one").predictions.path
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    row = frame[frame["split"] == "oof"].iloc[:1].assign(**change)
    (frame.iloc[1:] if change else frame).to_csv(path, index=False)
    row.to_csv(path, index=False, header=False, mode="a")
    with pytest.raises(BadInput, match=rf"03_predict\.py --run one --overwrite\n  .*{problem}$"):
        predicted.read(tmp_path / "output", ["one"], artifacts.OOF)


def test_a_damaged_record_of_a_blend_does_not_make_it_a_run(two_runs, tmp_path):
    output = tmp_path / "output"
    shutil.copytree(two_runs, output)
    blend = ["--runs", "one=0.4,twin=0.6", "--name", "torn", "--output", output, "--workers", 0]
    run_stage("04_submit.py", *blend)
    path = output / artifacts.Submission("torn").record.path
    before = path.read_bytes()
    path.write_bytes(before[:500])
    with pytest.raises(BadInput, match=r"postprocess\.json is damaged(?s:.)*--runs"):
        run_stage("04_submit.py", "--name", "torn", "--output", output, "--workers", 0)
    run_stage("04_submit.py", *blend)
    assert path.read_bytes() == before


def test_an_edited_record_is_noticed(two_runs, tmp_path, capsys):
    output = tmp_path / "output"
    shutil.copytree(two_runs, output)
    run_stage("04_submit.py", "--run", "one", "--output", output, "--workers", 0)
    path = output / artifacts.Submission("one").record.path
    before = path.read_bytes()
    path.write_bytes(before.replace(b'"nested_siim_dice": 0.', b'"nested_siim_dice": 1.'))
    with pytest.raises(
        BadInput, match=r"postprocess\.json is damaged: run 04_submit\.py --name one again"
    ):
        run_stage("05_report.py", "--names", "one", "--output", output, "--workers", 0)
    run_stage("04_submit.py", "--run", "one", "--output", output, "--workers", 0)
    assert path.read_bytes() == before
