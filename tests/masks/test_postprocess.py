"""From probability map to mask: the windowed shortcut is exact, and each threshold does its job."""

import cv2
import numpy as np
import pytest
from scipy import ndimage

from pneumothorax.masks import postprocess
from pneumothorax.masks.postprocess import Triplet
from tests.helpers.images import disc


def plain_mask(stored, triplet, shape):
    """Upsamples the whole map, thresholds in floating point, finds components by flood fill."""
    large = (
        cv2.resize(stored, shape[::-1], interpolation=cv2.INTER_LINEAR)
        if stored.shape != shape
        else stored
    )
    probability = large / 255.0
    scale = shape[0] * shape[1] / 1024**2
    if (probability > triplet.top).sum() < triplet.min_area * scale:
        return np.zeros(shape, np.uint8)
    mask = probability > triplet.bottom
    return np.where(sizes(mask) >= triplet.min_component * scale, mask, False).astype(np.uint8)


def sizes(mask):
    """For every pixel the size of its 8-connected component; 0 outside."""
    height, width = mask.shape
    result = np.zeros(mask.shape, int)
    seen = ~mask
    for start in zip(*np.nonzero(mask), strict=True):
        if seen[start]:
            continue
        component, pending = [], [start]
        seen[start] = True
        while pending:
            row, column = pending.pop()
            component.append((row, column))
            for r in range(max(0, row - 1), min(height, row + 2)):
                for c in range(max(0, column - 1), min(width, column + 2)):
                    if not seen[r, c]:
                        seen[r, c] = True
                        pending.append((r, c))
        result[tuple(np.array(component).T)] = len(component)
    return result


def blobs(seed, shape=(32, 32)):
    """(h, w) uint8 map: up to three blurred discs, some across the border."""
    rng = np.random.default_rng(seed)
    stored = np.zeros(shape, np.float32)
    for _ in range(rng.integers(0, 4)):
        centre = [int(rng.integers(-2, n + 2)) for n in shape[::-1]]
        cv2.circle(stored, centre, int(rng.integers(1, 7)), float(rng.random()), -1)
    stored = cv2.GaussianBlur(stored, (0, 0), 0.3 + 1.5 * rng.random())
    if seed % 5 == 0:
        stored[rng.integers(0, shape[0]), rng.integers(0, shape[1])] = 1  # a single pixel
    if seed % 7 == 0:
        stored[[0, 0, -1, -1], [0, -1, 0, -1]] = rng.random(4)
    return postprocess.quantise(stored)


SHAPES = {
    "twice": (64, 64),
    "four times": (128, 128),
    "three times": (96, 96),
    "equal": (32, 32),
    "in one axis": (32, 128),
}
SHAPES |= {"5/4": (40, 40), "odd": (75, 101), "smaller": (16, 16), "half of an odd": (33, 31)}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_windowed_mask_equals_the_plain_one(shape):
    triplets = [
        Triplet(0.5, 0, 0.5),
        Triplet(0.7, 3000, 0.3),
        Triplet(0.4, 10000, 0.2, 4000),
        Triplet(0.9, 1, 0),
        Triplet(0, 0, 0),
    ]
    filled = 0
    for seed in range(40):
        stored = blobs(seed)
        for triplet in triplets[seed % 2 :: 2]:
            expected = plain_mask(stored, triplet, shape)
            found = postprocess.mask(stored, triplet, shape)
            assert found.dtype == np.uint8
            np.testing.assert_array_equal(found, expected, err_msg=f"seed {seed}, {triplet}")
            filled += bool(expected.any())
    assert filled > 15


@pytest.mark.parametrize("size", [128, 256, 512])
def test_the_windowed_mask_is_exact_at_the_competitions_size(size):
    for seed in range(3):
        stored = cv2.resize(blobs(seed + 1), (size, size))
        large = cv2.resize(stored, (1024, 1024), interpolation=cv2.INTER_LINEAR)
        expected = (
            (large / 255 > 0.3) if (large / 255 > 0.6).sum() >= 2000 else np.zeros((1024, 1024))
        )
        np.testing.assert_array_equal(
            postprocess.mask(stored, Triplet(0.6, 2000, 0.3), (1024, 1024)), expected
        )


@pytest.mark.parametrize("shape", [(64, 64), (96, 96), (32, 32), (40, 52)])
def test_an_upsampled_window_equals_that_part_of_the_whole_map_and_holds_all_higher_values(shape):
    for seed in range(30):
        stored = blobs(seed)
        whole = (
            cv2.resize(stored, shape[::-1], interpolation=cv2.INTER_LINEAR)
            if shape != stored.shape
            else stored
        )
        window = postprocess.upsample(stored, shape, above=76)
        if window is None:
            assert whole.max() <= 76
            continue
        np.testing.assert_array_equal(window.values, whole[window.slices])
        outside = np.ones(shape, bool)
        outside[window.slices] = False
        assert not (whole[outside] > 76).any()


def test_masks_of_a_triplet_by_hand():
    # A 1024 x 1024 map that needs no upsampling: 100 pixels at 0.8, 300 around them at 0.4.
    stored = np.zeros((1024, 1024), np.uint8)
    stored[10:30, 10:30] = 102  # 0.4
    stored[15:25, 15:25] = 204  # 0.8

    def area(*values):
        return int(postprocess.mask(stored, Triplet(*values), stored.shape).sum())

    assert area(0.7, 100, 0.3) == 400  # 100 pixels above 0.7 are enough: everything above 0.3
    assert area(0.7, 101, 0.3) == 0  # one too few: the image is empty
    assert area(0.3, 400, 0.3) == 400
    assert area(0.7, 50, 0.5) == 100
    assert area(0.81, 1, 0.3) == 0  # no pixel is above the top threshold
    assert area(0.8, 1, 0.3) == 0  # above, not at
    assert area(0.79, 1, 0.4) == 100


def test_areas_are_in_pixels_of_1024_and_scale_with_the_image():
    stored = np.zeros((256, 256), np.uint8)
    stored[0:10, 0:10] = 255  # 100 of 256 x 256 pixels are 1,600 of 1024 x 1024
    assert postprocess.mask(stored, Triplet(0.5, 1600, 0.5), (256, 256)).sum() == 100
    assert postprocess.mask(stored, Triplet(0.5, 1601, 0.5), (256, 256)).sum() == 0
    assert postprocess.mask(stored, Triplet(0.5, 0, 0.5, 1600), (256, 256)).sum() == 100
    assert postprocess.mask(stored, Triplet(0.5, 0, 0.5, 1617), (256, 256)).sum() == 0
    assert postprocess.scaled(1600, (256, 256)) == 100


def test_small_components_are_removed_and_components_that_touch_at_a_corner_are_one():
    inside = np.zeros((10, 10), np.uint8)
    inside[0:2, 0:2] = inside[2:4, 2:4] = 1  # 4 + 4 pixels, joined at a corner
    inside[8, 8] = inside[6, 0:3] = 1  # 1 and 3 pixels
    assert postprocess.remove_small_components(inside, 0).sum() == 12
    assert postprocess.remove_small_components(inside, 1).sum() == 12
    assert postprocess.remove_small_components(inside, 3).sum() == 11
    np.testing.assert_array_equal(
        postprocess.remove_small_components(inside, 4),
        np.where(np.add.outer(np.arange(10), np.arange(10)) <= 6, inside, 0)
        * (np.arange(10)[:, None] < 4),
    )
    assert postprocess.remove_small_components(inside, 8).sum() == 8
    assert postprocess.remove_small_components(inside, 9).sum() == 0
    assert postprocess.remove_small_components(inside, 3.5).sum() == 8
    assert postprocess.remove_small_components(np.ones((5, 5), np.uint8), 25).sum() == 25
    assert postprocess.remove_small_components(np.zeros((5, 5), np.uint8), 25).sum() == 0


def test_holes_are_filled_as_scipy_fills_them():
    ring = disc(20, 10, 10, 6) & ~disc(20, 10, 10, 3)
    assert postprocess.fill_holes(ring).tolist() == disc(20, 10, 10, 6).tolist()
    rng = np.random.default_rng(0)
    changed = 0
    for density in np.linspace(0.3, 0.8, 60):
        inside = (rng.random((24, 31)) < density).astype(np.uint8)
        # SciPy's background is 4-connected, so its mask is 8-connected, as ours.
        expected = ndimage.binary_fill_holes(inside)
        np.testing.assert_array_equal(postprocess.fill_holes(inside), expected)
        changed += int(expected.sum() > inside.sum())
    assert changed > 30


def test_holes_are_filled_before_small_components_are_removed():
    stored = np.zeros((1024, 1024), np.uint8)
    stored[100:110, 100:110] = 255
    stored[102:108, 102:108] = 0  # a frame of 64 pixels around a hole of 36
    assert postprocess.mask(stored, Triplet(0.5, 0, 0.5, 100, True), stored.shape).sum() == 100
    assert postprocess.mask(stored, Triplet(0.5, 0, 0.5, 100, False), stored.shape).sum() == 0
    assert postprocess.mask(stored, Triplet(0.5, 0, 0.5, 0, False), stored.shape).sum() == 64


def test_thresholds_are_described_in_words():
    assert Triplet(0.7, 1500.0, 0.3).described() == "top 0.7, minimum area 1500, bottom 0.3"
    assert "minimum area 1048576," in Triplet(0.7, 1048576.0, 0.3).described()  # to the pixel
    every = Triplet(0.7, 0, 0.3, 250, True, 0.4).described()
    assert every == (
        "bottom 0.3, components below 250 pixels removed, holes filled, "
        "images with a probability below 0.4 empty"
    )


def test_an_image_below_the_image_threshold_is_empty():
    stored = np.full((64, 64), 255, np.uint8)
    triplet = Triplet(0.5, 0, 0.5, min_probability=0.3)
    assert postprocess.mask(stored, triplet, (64, 64), 0.3).all()
    assert not postprocess.mask(stored, triplet, (64, 64), 0.29).any()


def test_a_stored_value_is_above_its_level_exactly_when_its_probability_is_above_the_threshold():
    values = np.arange(256)
    for threshold in [
        *np.linspace(0, 0.999, 501),
        *(k / 255 for k in range(255)),
        *(k / 20 for k in range(20)),
    ]:
        exact = values > round(threshold * 255, 6)
        np.testing.assert_array_equal(values > postprocess.level(threshold), exact)


def test_quantised_probabilities_are_rounded():
    assert postprocess.quantise(
        np.array([0, 0.5 / 255 - 1e-6, 0.5 / 255 + 1e-6, 0.5, 1])
    ).tolist() == [
        0,
        0,
        1,
        128,
        255,
    ]
    assert postprocess.quantise(np.zeros(1, np.float32)).dtype == np.uint8


@pytest.mark.parametrize(
    "values",
    [
        (0.3, 0, 0.5),
        (1.0, 0, 0.5),
        (0.5, -1, 0.5),
        (0.5, 0, -0.1),
        (0.5, 0, 0.5, -1),
        (float("nan"), 0, 0),
    ],
)
def test_an_impossible_triplet_is_refused(values):
    with pytest.raises(ValueError, match="bottom <= top"):
        Triplet(*values)
