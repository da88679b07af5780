"""ROC and calibration of the image-level probability, by hand and against scikit-learn."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import auc

from pneumothorax.scores import bootstrap, curves
from tests.helpers.frames import frame, random_frame


def image_level(positive, p, found=None):
    """Images with these truths, probabilities, and decisions (whether a pixel is predicted)."""
    found = np.asarray(p) > 0.5 if found is None else np.asarray(found)
    positive = np.asarray(positive)
    return frame(
        4 * positive, 4 * found, 4 * (positive * found), p_positive=np.asarray(p, dtype=float)
    )


def test_roc_by_hand():
    # From the highest probability down: positive, negative, positive, negative.
    table = curves.roc(image_level([1, 0, 1, 0], [0.9, 0.8, 0.7, 0.1]))
    assert table.to_numpy().tolist() == [
        [0, 0, np.inf],
        [0, 0.5, 0.9],
        [0.5, 0.5, 0.8],
        [0.5, 1, 0.7],
        [1, 1, 0.1],
    ]


def test_the_area_under_the_curve_is_the_auc_score():
    table = random_frame(np.random.default_rng(0), patients=100)
    curve = curves.roc(table)
    assert auc(curve["fpr"], curve["tpr"]) == pytest.approx(bootstrap.measured(table)["auc"])


def test_the_operating_point_is_that_of_the_masks_instead_of_a_threshold():
    # 3 positives, 2 found; 4 negatives, 1 false alarm, with the lowest probability of all.
    table = image_level(
        [1, 1, 1, 0, 0, 0, 0], [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.1], [1, 1, 0, 0, 0, 0, 1]
    )
    point = curves.operating_point(table)
    assert point.to_dict("records") == [{"fpr": pytest.approx(1 / 4), "tpr": pytest.approx(2 / 3)}]


def test_a_single_class_has_no_curve_and_half_an_operating_point():
    table = image_level([0, 0], [0.1, 0.9])
    assert curves.roc(table).empty
    assert list(curves.roc(table).columns) == ["fpr", "tpr", "threshold"]
    assert np.isnan(curves.operating_point(table)["tpr"].item())


def test_calibration_and_its_error_by_hand():
    # Two bins. Below 0.5: 0.1, 0.3, 0.2, mean 0.2, one of three positive. Above: 0.6 and 1.0,
    # mean 0.8, both positive.
    table = curves.calibration(image_level([0, 1, 0, 1, 1], [0.1, 0.3, 0.2, 0.6, 1.0]), bins=2)
    assert table[["low", "high", "images"]].to_numpy().tolist() == [[0, 0.5, 3], [0.5, 1, 2]]
    assert table["p_positive"].tolist() == pytest.approx([0.2, 0.8])
    assert table["positive_share"].tolist() == pytest.approx([1 / 3, 1])
    assert curves.expected_calibration_error(table) == pytest.approx(
        (3 * (1 / 3 - 0.2) + 2 * (1 - 0.8)) / 5
    )


@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
def test_calibration_agrees_with_scikit_learn_and_counts_every_image_once(strategy):
    rng = np.random.default_rng(1)
    p = np.round(rng.beta(0.4, 1.2, size=500), 2)  # crowded near 0, with ties and values on edges
    positive = (rng.random(500) < p).astype(int)
    table = curves.calibration(image_level(positive, p), strategy=strategy)
    share, mean = calibration_curve(positive, p, n_bins=10, strategy=strategy)
    np.testing.assert_allclose(table["positive_share"], share)
    np.testing.assert_allclose(table["p_positive"], mean)
    assert table["images"].sum() == 500


def test_bins_with_few_images_have_wide_intervals_and_empty_bins_are_left_out():
    # 100 images at 0.05, half of them positive, and one at 0.95. Wilson by hand, z = 1.96:
    # centre 0.5, half width 1.96 / (100 + 3.8415) * sqrt(25 + 0.9604) = 0.0962; for 1 of 1
    # from 1 / (1 + 3.8415) = 0.2065 to 1.
    table = curves.calibration(image_level([0, 1] * 50 + [1], [0.05] * 100 + [0.95]))
    assert table["images"].tolist() == [100, 1]
    assert table["share_low"].tolist() == pytest.approx([0.4038, 0.2065], abs=1e-4)
    assert table["share_high"].tolist() == pytest.approx([0.5962, 1], abs=1e-4)


def test_equal_probabilities_share_one_bin_with_either_strategy():
    table = image_level([0, 1, 0, 1], [0.3] * 4)
    for strategy in ("uniform", "quantile"):
        bins = curves.calibration(table, strategy=strategy)
        assert bins["images"].tolist() == [4]
        assert curves.expected_calibration_error(bins) == pytest.approx(0.2)
