"""Blends: the probability maps of several runs as one, with given or fitted weights."""

import argparse

import numpy as np
import pytest

from pneumothorax.masks import blending
from tests.helpers.images import disc


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


def test_equal_maps_give_the_same_map_with_any_weights():
    stored = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    for weights in ((0.05, 0.95), (0.4, 0.6), (0.3, 0.3, 0.4), (1 / 3, 1 / 3, 1 / 3)):
        np.testing.assert_array_equal(blending.blend([stored] * len(weights), weights), stored)


def constructed(n_images, weights, seed, size=64):
    """Moments of random maps; their blend with these weights is each pixel's chance to be true."""
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
def test_known_weights_are_recovered(weights):
    assert blending.fit(constructed(60, weights, seed=1)) == pytest.approx(weights)


def test_candidates_are_fitted_weights_equal_weights_and_each_run_alone_each_once():
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


def test_every_combination_of_weights_is_tried_once():
    tried = blending.simplex(3)
    assert len(tried) == 231  # 20 steps split among 3 runs: 22 over 2
    assert len({tuple(row) for row in tried.round(9).tolist()}) == 231
    np.testing.assert_allclose(tried.sum(axis=1), 1)
    assert (tried >= 0).all()


@pytest.mark.parametrize(
    "text, expected",
    [("a", {"a": None}), ("a,b", {"a": None, "b": None}), ("a=0.4,b=.6", {"a": 0.4, "b": 0.6})],
)
def test_runs_are_parsed_with_or_without_weights(text, expected):
    assert blending.parse(text) == expected


@pytest.mark.parametrize(
    "text", ["a=0.4,b=0.5", "a=0.4,b", "a=-0.5,b=1.5", "a=x", "a,a", "a=nan,b=1", "a,b,c,d,e,f,g"]
)
def test_impossible_weights_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError):
        blending.parse(text)


def test_weights_are_described_by_their_purpose():
    assert blending.described(
        ["a", "b"], {"0": [0.5, 0.5], "final": [0.5, 0.5], "1": [0.5, 0.5]}
    ) == ["weights: a 0.5, b 0.5"]
    assert blending.described(
        ["a", "b"], {"10": [1.0, 0.0], "2": [0.25, 0.75], "final": [0.0, 1.0]}
    ) == [
        "weights for the test images: a 0, b 1",
        "weights for the scores: fold 2: a 0.25, b 0.75; fold 10: a 1, b 0",
    ]
