"""Orientation: 20 real masks are enough to tell, and correct ones are never doubted."""

import numpy as np
import pytest

from pneumothorax import rle
from pneumothorax.data import labels
from pneumothorax.submission import orientation, pixel_runs
from pneumothorax.submission.pixel_runs import Mask
from tests.helpers.submission_samples import drawn

PLANTED = {
    "transposed (text row by row instead of down the columns)": lambda mask: mask.T,
    "upside down": lambda mask: mask[::-1],
    "transposed and upside down": lambda mask: mask[::-1].T,
}


def as_mask(pixels):
    pixels = np.ascontiguousarray(pixels)
    return Mask(rle.runs(rle.encode(pixels), pixels.size), pixels.shape)


@pytest.fixture(scope="module")
def real(real_data):
    """(H, W) masks of 300 real positives."""
    rows = [
        texts
        for texts in labels.read(real_data / "labels" / "stage_2_train.csv.gz").rows.values()
        if texts
    ]
    return [rle.union(texts, (1024, 1024))[::2, ::2] for texts in rows[:: len(rows) // 300][:300]]


def test_twenty_real_masks_are_enough_to_tell_and_correct_ones_are_never_doubted(real):
    masks = [as_mask(mask) for mask in real]
    planted = {name: [as_mask(plant(mask)) for mask in real] for name, plant in PLANTED.items()}
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(real))
        training = [masks[number] for number in order[20:120]]
        assert not orientation.judge([masks[number] for number in order[:20]], training).suspect
        for name, wrong in planted.items():
            verdict = orientation.judge([wrong[number] for number in order[:20]], training)
            assert verdict.clear
            assert verdict.reading == name


def test_left_and_right_are_not_told_apart():
    rng = np.random.default_rng(0)
    drawings = [drawn(rng, 128) for _ in range(70)]
    training = [as_mask(mask) for mask in drawings[:50]]
    found = [
        orientation.judge([as_mask(turn(mask)) for mask in drawings[50:]], training).nats
        for turn in (lambda mask: mask, lambda mask: mask[:, ::-1])
    ]
    assert found[0] == pytest.approx(found[1])


def test_a_few_upside_down_masks_among_many_that_fit_no_reading_are_only_suspect():
    rng = np.random.default_rng(0)
    training = [as_mask(drawn(rng, 128)) for _ in range(60)]
    rows, columns = np.ogrid[:128, :128]
    discs = [
        as_mask(((rows - 64) ** 2 + (columns - 64) ** 2 < 16).astype(np.uint8))
    ] * 15  # where no lung is
    verdict = orientation.judge(
        [*discs, *(as_mask(drawn(rng, 128)[::-1]) for _ in range(5))], training
    )
    assert verdict.reading == "upside down"
    assert verdict.suspect
    assert not verdict.clear
    again = orientation.judge([as_mask(drawn(rng, 128)[::-1]) for _ in range(20)], training)
    assert again.clear


def test_one_mask_where_no_lung_is_does_not_outweigh_the_others():
    rng = np.random.default_rng(0)
    training = [as_mask(drawn(rng, 128)) for _ in range(60)]
    right = [as_mask(drawn(rng, 128)) for _ in range(20)]
    line = np.zeros((128, 128), np.uint8)
    line[127, :] = 1
    without = orientation.judge(right, training)
    with_line = orientation.judge([*right, as_mask(line)], training)
    assert not with_line.suspect
    assert abs(with_line.nats - without.nats) < 1


def test_too_few_masks_in_the_file_or_in_training_are_not_judged():
    masks = [as_mask(drawn(np.random.default_rng(0), 64))] * 50
    assert orientation.judge(masks[:9], masks) is None
    assert orientation.judge(masks[:10], masks[:49]) is None
    assert orientation.judge(masks[:10], masks) is not None


def test_features_are_the_centroid_and_the_spread_as_the_mask_is_read():
    """A bar in a 4 x 8 image: rows 1 to 3 of column 6, pixels 25 to 27."""
    mask = Mask((np.array([25]), np.array([28])), (4, 8))
    spread, half = np.sqrt(2 / 3), 0.5  # of rows 1, 2, 3; half a pixel is added
    expected = (2.5 / 4 - 0.5, 6.5 / 8 - 0.5, np.log((spread + half) / 4), np.log(half / 8))
    assert orientation.features(mask) == pytest.approx(expected)
    assert orientation.features(mask, upside_down=True)[0] == pytest.approx(-expected[0])
    # Read row by row, pixels 25 to 27 are columns 1 to 3 of row 3.
    expected = (3.5 / 4 - 0.5, 2.5 / 8 - 0.5, np.log(half / 4), np.log((spread + half) / 8))
    assert orientation.features(mask, row_major=True) == pytest.approx(expected)


def test_the_pixels_of_runs_are_those_of_the_drawn_mask():
    mask = drawn(np.random.default_rng(3), 64)
    np.testing.assert_array_equal(
        pixel_runs.pixels(as_mask(mask).runs), np.flatnonzero(mask.T.ravel())
    )
