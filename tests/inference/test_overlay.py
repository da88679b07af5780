"""The overlay shows the radiograph and the finding, and hides neither."""

import numpy as np
import pytest

from pneumothorax.inference import overlay
from tests.helpers.images import disc, noise


def test_without_a_finding_the_overlay_is_the_radiograph():
    radiograph = noise(1, 64)
    drawn = overlay.draw(radiograph, np.zeros_like(radiograph))
    np.testing.assert_array_equal(drawn, np.stack([radiograph] * 3, axis=2))


def test_the_outline_is_outside_the_mask_and_the_rest_is_the_radiograph():
    radiograph, mask = noise(1, 64), disc(64, 30, 30, 10)
    drawn = overlay.draw(radiograph, mask)
    outline = (drawn == overlay.COLOUR_BGR).all(axis=2)
    assert outline.any()
    assert not (outline & (mask == 1)).any()
    # At 64 pixels the outline is 1 wide: the four neighbours of the mask's pixels.
    grown = mask.copy()
    for shift in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        grown |= np.roll(mask, shift, axis=(0, 1))
    np.testing.assert_array_equal(outline, (grown == 1) & (mask == 0))
    rest = (mask == 0) & ~outline
    np.testing.assert_array_equal(drawn[rest], np.stack([radiograph[rest]] * 3, axis=1))


def test_the_fill_leaves_three_quarters_of_the_radiographs_contrast():
    radiograph, mask = np.full((64, 64), 100, np.uint8), disc(64, 30, 30, 10)
    radiograph[30, 30] = 200
    drawn = overlay.draw(radiograph, mask).astype(int)
    assert drawn[25, 30].tolist() == [75, 119, 139]  # 0.75 * 100 + 0.25 * (0, 176, 255), rounded
    assert (drawn[30, 30] - drawn[25, 30]).tolist() == [75, 75, 75]


def test_the_outline_is_wider_in_a_larger_image():
    def outline_px(size):
        mask = disc(size, size // 2, size // 2, size // 4)
        drawn = overlay.draw(np.zeros((size, size), np.uint8), mask)
        return int((drawn[size // 2] == overlay.COLOUR_BGR).all(axis=1).sum())

    assert outline_px(256) == 2  # 1 on either side
    assert outline_px(2048) == 8  # 4 on either side


def test_a_mask_at_the_edge_of_the_radiograph_is_drawn():
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 60:] = 1
    drawn = overlay.draw(np.zeros((64, 64), np.uint8), mask)
    assert (drawn[:, 59] == overlay.COLOUR_BGR).all()
    assert (drawn[:, 63] == drawn[:, 60]).all()


@pytest.mark.parametrize("shape", [(128, 128), (1024, 1024), (2400, 600), (12, 900), (700, 9)])
def test_a_caution_is_written_over_the_lower_edge_and_leaves_the_rest(shape):
    radiograph = np.full(shape, 100, np.uint8)
    mask = np.zeros_like(radiograph)
    mask[: shape[0] // 3] = 1
    plain, drawn = overlay.draw(radiograph, mask), overlay.draw(radiograph, mask, caution="PHANTOM")
    changed = (plain != drawn).any(axis=2)
    rows = np.flatnonzero(changed.any(axis=1))
    assert rows[-1] == shape[0] - 1
    assert rows[0] >= shape[0] // 2
    if min(shape) > 100:
        assert changed.any(axis=0).mean() >= 0.45  # at least about half as wide as the image


def test_a_caution_can_be_read_on_an_image_of_any_brightness():
    for grey in (0, 255):
        radiograph = np.full((256, 256), grey, np.uint8)
        drawn = overlay.draw(radiograph, np.zeros_like(radiograph), caution="PHANTOM")
        written = drawn[236:, 60:196]
        assert (written == 0).mean() > 0.3
        assert (written > 200).mean() > 0.05
