"""The path from probability maps to masks: fitted nested, applied as it was scored."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from pneumothorax import rle
from pneumothorax.masks import blending, calibration, evaluation, results, thresholds
from pneumothorax.masks.calibration import Calibration
from pneumothorax.masks.evaluation import Blend, Evaluation, Fits, Rule
from pneumothorax.masks.nested import NestedThresholds
from pneumothorax.masks.postprocess import Triplet
from pneumothorax.masks.predicted import Image, Predicted
from pneumothorax.pipeline.engine import Engine
from tests.helpers.images import disc
from tests.helpers.maps import store, stored_images


def test_the_fit_that_scores_a_fold_does_not_depend_on_its_labels(tmp_path):
    """Exchanging the truths of fold 1 changes neither its blend nor its thresholds."""
    grid, engine = thresholds.Grid(min_probabilities=thresholds.MIN_PROBABILITIES), Engine(1)
    before = stored_images(tmp_path, 30, seed=3)
    exchanged_rows = ("0 4096",), ()
    exchanged = [
        Image(image.image_id, image.stored, image.shape, exchanged_rows[bool(image.label_rows)])
        if fold == 1
        else image
        for image, fold in zip(before.images, before.fold, strict=True)
    ]
    one, _ = evaluation.evaluate(before, grid, engine=engine, weights=None)
    other, _ = evaluation.evaluate(
        before._replace(images=exchanged), grid, engine=engine, weights=None
    )
    assert one.fits.blends[1] == other.fits.blends[1]
    assert one.thresholds.by_fold[1] == other.thresholds.by_fold[1]
    own = before.fold == 1
    assert one.images["rle"][own].tolist() == other.images["rle"][own].tolist()
    assert one.images["p_positive"][own].tolist() == other.images["p_positive"][own].tolist()
    # The final fit sees all images.
    assert one.fits.blends[None].calibration != other.fits.blends[None].calibration


def test_the_search_and_the_masks_give_the_same_score(tmp_path):
    found = stored_images(tmp_path, 24, seed=4)
    grid = thresholds.Grid(
        min_components=(0, 100), fill_holes=(False, True), min_probabilities=(0.0, 0.3, 0.6)
    )
    blend, singles = evaluation.evaluate(found, grid, engine=Engine(1), weights=(0.5, 0.5))
    assert len(singles) == 2
    for each in (blend, *singles):
        assert each.images["dice"].mean() == pytest.approx(
            list(each.thresholds.steps.values())[-1].nested
        )
    assert blend.images["rle"].map(type).eq(str).all()


def test_an_images_probability_is_calibrated_on_the_other_folds(tmp_path):
    found = stored_images(tmp_path, 30, seed=6)
    blend, _ = evaluation.evaluate(found, thresholds.Grid(), engine=Engine(1), weights=(0.25, 0.75))
    score, positive = found.scores @ [0.25, 0.75], np.arange(30) % 2
    np.testing.assert_allclose(blend.uncalibrated, score)
    for fold in range(3):
        own = found.fold == fold
        expected = calibration.fit(score[~own], positive[~own])(score[own])
        np.testing.assert_allclose(blend.images.loc[own, "p_positive"], expected)
    assert roc_auc_score(positive, blend.images["p_positive"]) > 0.8


def test_weights_that_suit_pixels_but_spoil_masks_are_not_chosen(tmp_path):
    """The first run is right but 0.3 too high; the second is 0, which suits the background."""
    images, scores = [], []
    for number in range(24):
        truth = disc(64, 20 + number, 30, 8) if number % 2 else np.zeros((64, 64), np.uint8)
        stored = (
            store(tmp_path, f"{number}-0", truth * 178 + 77),
            store(tmp_path, f"{number}-1", np.zeros((64, 64))),
        )
        rows = (rle.encode(truth),) if number % 2 else ()
        images.append(Image(str(number), stored, (64, 64), rows))
        scores.append([1.0 if number % 2 else 0.3, 0.0])
    found = Predicted(images, np.arange(24) % 3, np.array(scores))
    by_pixels = blending.fit([evaluation.moments(image) for image in images])
    assert by_pixels[0] < 0.3
    blend, (first, _) = evaluation.evaluate(
        found, thresholds.Grid(), engine=Engine(1), weights=None
    )
    assert blend.images["dice"].mean() == first.images["dice"].mean() == 1.0


TRIPLETS = {number: Triplet(0.9, 0, 0.9, min_probability=0.1 * number) for number in range(3)}
FINAL = Triplet(0.5, 0, 0.25, min_probability=0.6)


def constructed_evaluation(images=None, score=None):
    """The final fit differs from each nested one."""
    blends = {
        None: Blend((0.25, 0.75), Calibration(1.0, 0.0)),
        0: Blend((1.0, 0.0), Calibration(2.0, 5.0)),
        1: Blend((0.0, 1.0), Calibration(2.0, 6.0)),
        2: Blend((0.5, 0.5), Calibration(2.0, 7.0)),
    }
    fitted = NestedThresholds(TRIPLETS, FINAL, 0.9, {}, np.zeros((1, 1, 1)), {})
    return Evaluation(Fits(blends, fitted), images, score)


def test_test_images_get_the_final_fit():
    (rule,) = constructed_evaluation().fits.rules(np.array([[0.2, 0.6]]))
    assert rule.weights == (0.25, 0.75)
    assert rule.triplet == FINAL
    # 0.25 x 0.2 + 0.75 x 0.6, and a calibration that changes nothing
    assert rule.p_positive == pytest.approx(0.5)


def test_a_submission_row_obeys_the_whole_rule(tmp_path):
    first, second = np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint8)
    first[0, 0], second[1, 0] = 255, 128
    stored = store(tmp_path, "first", first), store(tmp_path, "second", second)
    image = Image("a", stored, (8, 8), ())
    triplet = Triplet(0.3, 0, 0.3, min_probability=0.6)
    for weights, p_positive, text in (
        ((0.25, 0.75), 0.6, "1 1"),  # 0.75 x 128 = 96 > 76
        ((0.75, 0.25), 0.6, "0 1"),
        ((0.75, 0.25), 0.59, "-1"),
    ):
        assert evaluation.mask_row(image, Rule(weights, triplet, p_positive)) == text


def test_the_facts_give_every_fit_by_its_purpose():
    # Ten images, half of them positive: 0.5 is calibrated, 0.9 is 0.4 too high.
    images = pd.DataFrame({"true_px": [0, 5] * 5, "dice": [1.0, 0.5] * 5, "p_positive": 0.5})
    facts = results.facts(constructed_evaluation(images, np.full(10, 0.9)))
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
