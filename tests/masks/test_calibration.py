"""Calibration turns an image's score into a probability."""

import warnings

import numpy as np
import pytest
from scipy.special import expit, logit

from pneumothorax.masks import calibration


def test_a_known_curve_is_recovered():
    rng = np.random.default_rng(0)
    score = rng.uniform(0.01, 0.99, 20_000)
    positive = rng.random(20_000) < expit(2 * logit(score) - 1)
    found = calibration.fit(score, positive)
    assert found.slope == pytest.approx(2, abs=0.1)
    assert found.intercept == pytest.approx(-1, abs=0.1)


def test_separable_images_get_platts_targets_instead_of_certainty():
    # Two positives at 0.9, three negatives at 0.1: (2 + 1) / (2 + 2) and 1 / (3 + 2).
    found = calibration.fit(np.array([0.9, 0.9, 0.1, 0.1, 0.1]), np.array([1, 1, 0, 0, 0]))
    assert found(np.array([0.9, 0.1])) == pytest.approx([0.75, 0.2], abs=1e-4)


@pytest.mark.parametrize("score", [[0.0, 1.0, 0.0, 1.0], [0.3] * 4, [0.0] * 4])
def test_certain_and_constant_scores_give_finite_probabilities_without_a_warning(score):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        p = calibration.fit(np.array(score), np.array([0, 1, 0, 0]))(np.array(score))
    assert ((p > 0) & (p < 1)).all()


def test_images_keep_their_order():
    rng = np.random.default_rng(1)
    score = rng.random(200)
    p = calibration.fit(score, rng.random(200) < score)(score)
    np.testing.assert_array_equal(np.argsort(p), np.argsort(score))


def test_scores_that_say_the_opposite_give_every_image_the_same_probability():
    found = calibration.fit(np.array([0.1, 0.2, 0.8, 0.9]), np.array([1, 1, 1, 0]))
    # 3 of 4 positive with Platt's targets: (3 x 4/5 + 1/3) / 4
    assert found(np.array([0.1, 0.9])) == pytest.approx([0.6833333, 0.6833333])


def test_log_odds_and_probabilities_are_those_of_scipy():
    score = np.concatenate([np.linspace(1e-6, 1 - 1e-6, 1001), [0.3, 0.5, 0.65, 0, 1]])
    for slope, intercept in ((1, 0), (0.7, -1.2), (1e6, 3)):
        log_odds = logit(score.clip(1e-6, 1 - 1e-6))
        with np.errstate(all="raise", under="ignore"):
            found = calibration.Calibration(slope, intercept)(score)
        np.testing.assert_allclose(found, expit(slope * log_odds + intercept), rtol=1e-12)
