"""Mask images: two values at the size of the image, or a code and what to do."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from pneumothorax import dicom
from pneumothorax.data.layouts import mask_images
from tests.helpers import rasters
from tests.helpers.images import disc

INSIDE = disc(48, 20, 30, 9)[:40]  # (40, 48)
SHAPE = INSIDE.shape
STEPS = np.tile(np.arange(0, 240, 5, dtype=np.uint8), (40, 1))  # 48 grey values, one a column


def saved(folder, name, image, **options):
    path = folder / name
    Image.fromarray(image).save(path, **options)
    return path


def read(*paths, threshold=None, shape=SHAPE):
    return mask_images.read(paths, shape, threshold=threshold)


def rejection(*paths, **options):
    with pytest.raises(dicom.Rejected) as caught:
        read(*paths, **options)
    return caught.value


# Accepted


def test_the_masks_of_real_files_are_their_pixels_that_are_not_0(real_data):
    paths = sorted((real_data / "siim_png").rglob("png_masks/*.png"))
    positive = [path for path in paths if "_1_" in path.name]
    assert positive
    assert len(paths) > len(positive)
    for path in paths:
        mask = read(path, shape=(1024, 1024))
        np.testing.assert_array_equal(mask, np.asarray(Image.open(path)) > 0)
        assert mask.any() == (path in positive)


@pytest.mark.parametrize("threshold", [None, 128])
@pytest.mark.parametrize("value", [1, 60, 255])
def test_any_value_but_0_is_inside_with_or_without_a_threshold(tmp_path, value, threshold):
    mask = read(saved(tmp_path, "a.png", INSIDE * np.uint8(value)), threshold=threshold)
    np.testing.assert_array_equal(mask, INSIDE)
    assert mask.dtype == np.uint8


@pytest.mark.parametrize("value", [1, 65535])
def test_masks_of_16_bits_are_read(tmp_path, value):
    np.testing.assert_array_equal(read(saved(tmp_path, "a.png", INSIDE * np.uint16(value))), INSIDE)


def test_masks_of_1_bit_and_of_a_palette_are_read(tmp_path):
    one_bit = tmp_path / "a.png"
    one_bit.write_bytes(rasters.encode(SHAPE, rasters.rows(INSIDE, 1), bits=1))
    red = tmp_path / "b.png"
    black_and_red = bytes([0, 0, 0, 128, 0, 0])
    data = rasters.encode(SHAPE, rasters.rows(INSIDE), kind=3, palette=black_and_red)
    red.write_bytes(data)
    for path in (one_bit, red):
        np.testing.assert_array_equal(read(path), INSIDE)


def test_all_0_is_an_empty_mask_and_any_other_constant_a_full_one(tmp_path):
    for value in (0, 1, 255):
        path = saved(tmp_path, f"{value}.png", np.full(SHAPE, value, np.uint8))
        np.testing.assert_array_equal(read(path), np.full(SHAPE, int(value > 0)))


def test_of_colours_the_highest_channel_counts(tmp_path):
    for channel in range(3):
        colours = np.zeros((*SHAPE, 3), np.uint8)
        colours[..., channel] = INSIDE * 200
        np.testing.assert_array_equal(read(saved(tmp_path, "a.png", colours)), INSIDE)


def test_several_masks_of_an_image_are_united(tmp_path):
    left, right = (disc(48, 20, column, 9)[:40] for column in (10, 16))
    paths = [
        saved(tmp_path, "a_1.png", left * np.uint8(255)),
        saved(tmp_path, "a_2.png", right),
        saved(tmp_path, "a_3.png", np.zeros(SHAPE, np.uint8)),
    ]
    np.testing.assert_array_equal(read(*paths), left | right)
    assert (left & right).any()


@pytest.mark.parametrize("threshold", [1, 128, 235, 255])
def test_from_the_threshold_on_a_grey_value_is_inside(tmp_path, threshold):
    path = saved(tmp_path, "a.png", STEPS)
    np.testing.assert_array_equal(read(path, threshold=threshold), threshold <= STEPS)


def test_the_threshold_of_16_bits_is_on_the_scale_to_255(tmp_path):
    values = np.array([[0, 32895, 32896, 65535]], np.uint16)  # 32896 * 255 / 65535 = 128
    path = saved(tmp_path, "a.png", values)
    np.testing.assert_array_equal(read(path, threshold=128, shape=(1, 4)), [[0, 0, 1, 1]])


def test_a_jpeg_mask_is_read_with_a_threshold(tmp_path):
    path = saved(tmp_path, "a.jpg", INSIDE * np.uint8(255), quality=95)
    np.testing.assert_array_equal(read(path, threshold=128), INSIDE)


# Rejected


def test_a_mask_of_another_size_names_both_sizes(tmp_path):
    path = saved(tmp_path, "lung.png", INSIDE)
    error = rejection(path, shape=(48, 40))
    assert error.code == "SIZE_MISMATCH"
    assert str(error) == "mask lung.png is 48 x 40, its image is 40 x 48"
    assert rejection(path, shape=(48, 40), threshold=128).code == "SIZE_MISMATCH"


def test_a_mask_of_more_values_says_how_to_read_it(tmp_path):
    error = rejection(saved(tmp_path, "soft.png", STEPS))
    assert error.code == "BAD_MASK"
    assert (
        str(error) == "mask soft.png has 48 grey values: --mask-threshold 128 says how to read it"
    )


@pytest.mark.parametrize("stray", [1, 254])
def test_one_pixel_of_a_third_value_is_noticed(tmp_path, stray):
    mask = INSIDE * np.uint8(255)
    mask[0, 0] = stray
    assert "has 3 grey values" in str(rejection(saved(tmp_path, "a.png", mask)))


def test_two_values_without_0_are_not_a_mask(tmp_path):
    assert rejection(saved(tmp_path, "a.png", INSIDE + np.uint8(1))).code == "BAD_MASK"


def test_a_jpeg_mask_is_refused_even_if_it_has_two_values(tmp_path):
    blocks = np.zeros((16, 16), np.uint8)
    blocks[:8] = 255  # whole blocks of 8 x 8 survive
    path = saved(tmp_path, "a.png", blocks, format="JPEG", quality=100)
    assert set(np.unique(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))) == {0, 255}
    error = rejection(path, shape=(16, 16))
    assert error.code == "BAD_MASK"
    assert "is a JPEG file" in str(error)
    assert "--mask-threshold 128" in str(error)


@pytest.mark.parametrize("colour", [0, 255])
def test_a_mask_that_only_transparency_draws_is_refused(tmp_path, colour):
    constant = np.full(SHAPE, colour, np.uint8)
    pixels = np.dstack([constant, constant, constant, INSIDE * np.uint8(255)])
    error = rejection(saved(tmp_path, "clear.png", pixels), threshold=128)
    assert error.code == "BAD_MASK"
    assert "mask clear.png has one colour and is partly transparent" in str(error)
    pixels[..., 3] = 255  # opaque
    mask = read(saved(tmp_path, "opaque.png", pixels))
    np.testing.assert_array_equal(mask, np.full(SHAPE, colour // 255))


def test_a_damaged_mask_is_named_with_the_readers_code(tmp_path):
    good = saved(tmp_path, "a_1.png", INSIDE)
    file = io.BytesIO()
    Image.fromarray(INSIDE).save(file, "PNG")
    bad = tmp_path / "a_2.png"
    bad.write_bytes(file.getvalue()[:-20])
    error = rejection(good, bad)
    assert error.code == "TRUNCATED"
    assert str(error).startswith("mask a_2.png: ")
    bad.write_text("text")
    assert rejection(good, bad).code == "NOT_AN_IMAGE"


def test_the_suggested_threshold_lies_within_the_masks_values(tmp_path):
    classes = np.zeros((40, 40), np.uint8)
    classes[:10], classes[10:20] = 1, 2
    path = saved(tmp_path, "classes.png", classes)
    error = rejection(path, shape=classes.shape)
    assert "has 3 grey values: --mask-threshold 1 says how to read it" in str(error)


def test_two_colours_of_equal_brightness_are_refused(tmp_path):
    """Red on white, BGR: the highest channel is 255 everywhere."""
    mask = np.full((40, 40, 3), 255, np.uint8)
    mask[10:30, 10:22] = (0, 0, 255)
    path = tmp_path / "red.png"
    cv2.imwrite(str(path), mask)
    error = rejection(path, shape=(40, 40))
    assert error.code == "BAD_MASK"
    assert "has 2 colours, and none of them is black" in str(error)
