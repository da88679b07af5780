"""Run lengths: the competition's example, every real label, and the usual bugs."""

import gzip

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pneumothorax import rle
from pneumothorax.errors import BadInput
from tests.helpers.images import plain_encode

REAL_SHAPE = (1024, 1024)


@pytest.fixture(scope="module")
def real_rows(real_data):
    """[(image id, row)] of the 3,576 real mask rows."""
    with gzip.open(real_data / "labels" / "stage_2_train.csv.gz", "rt") as file:
        pairs = [line.strip().split(",") for line in file][1:]
    rows = [(image_id.strip(), text.strip()) for image_id, text in pairs if text.strip() != "-1"]
    assert len(rows) == 3576  # FACTS.md
    return rows


def plain_union(texts, n_pixels):
    """A flat, column-major bytearray of 0 and 1, from slices alone."""
    pixels = bytearray(n_pixels)
    for text in texts:
        numbers = [int(word) for word in text.split()]
        end = 0
        for gap, length in zip(numbers[0::2], numbers[1::2], strict=True):
            start = end + gap
            end = start + length
            pixels[start:end] = b"\1" * length
    assert len(pixels) == n_pixels
    return pixels


def test_the_competitions_example_decodes_and_encodes_as_published():
    mask = np.array([[0, 1, 0, 0], [1, 1, 0, 1], [1, 0, 0, 1]], dtype=np.uint8)
    assert rle.encode(mask) == "1 4 5 2"
    np.testing.assert_array_equal(rle.decode("1 4 5 2", (3, 4)), mask)


@pytest.mark.parametrize(
    ("pixels", "text"),
    [
        ([(0, 0)], "0 1"),  # the first pixel
        ([(0, 1)], "4 1"),  # column-major: one step right is one column of 4
        ([(0, 0), (2, 0)], "0 1 1 1"),  # the second gap counts from the end of the first run
        ([(3, 0), (0, 1)], "3 2"),  # the run continues at the top of the next column
        ([(3, 2)], "11 1"),  # the last pixel: the usual encoder loses it
        ([(0, 0), (3, 2)], "0 1 10 1"),  # both ends
    ],
)
def test_encode_and_decode_by_hand(pixels, text):
    mask = np.zeros((4, 3), dtype=np.uint8)
    for row, column in pixels:
        mask[row, column] = 1
    assert rle.encode(mask) == text
    np.testing.assert_array_equal(rle.decode(text, (4, 3)), mask)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (4, 3), (1024, 1024)])
def test_a_full_mask_is_one_run_and_an_empty_one_is_minus_one(shape):
    full = np.ones(shape, dtype=np.uint8)
    assert rle.encode(full) == f"0 {shape[0] * shape[1]}"
    assert rle.decode(rle.encode(full), shape).all()
    assert rle.encode(np.zeros(shape, dtype=np.uint8)) == "-1"
    assert not rle.decode("-1", shape).any()


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int32, np.int64, np.float32])
def test_any_number_but_0_is_inside_for_every_type(dtype):
    assert rle.encode(np.array([[0, 255], [7, 0]]).astype(dtype)) == "1 2"


def test_a_transposed_or_cut_out_view_encodes_like_its_copy():
    big = np.random.default_rng(0).integers(0, 2, (40, 30), dtype=np.uint8)
    for view in (big.T, big[3:20, 5:17], big[::-1, ::2]):
        assert rle.encode(view) == plain_encode(view)


def test_a_mask_that_is_not_two_dimensional_is_our_own_mistake():
    with pytest.raises(ValueError, match=r"\(H, W\).*\(2, 2, 1\)"):
        rle.encode(np.zeros((2, 2, 1), np.uint8))


@settings(max_examples=300, deadline=None)
@given(
    arrays.arrays(
        np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 1)
    )
)
def test_any_small_mask_round_trips_and_agrees_with_the_plain_encoder(mask):
    text = rle.encode(mask)
    assert text == plain_encode(mask)
    decoded = rle.decode(text, mask.shape)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, mask)


@settings(max_examples=200, deadline=None)
@given(
    arrays.arrays(
        st.sampled_from([np.bool_, np.uint8, np.int16, np.float32]),
        st.tuples(st.integers(1, 12), st.integers(1, 12)),
        elements=st.integers(0, 1),
    )
)
def test_the_order_of_a_mask_in_memory_does_not_change_its_text(mask):
    height, width = mask.shape
    scattered = np.full((2 * height, 3 * width), 1, mask.dtype)[::-2, ::3]
    scattered[:] = mask
    orders = {
        "C": np.ascontiguousarray(mask),
        "Fortran": np.asfortranarray(mask),
        "neither": scattered,
    }
    expected = plain_encode(mask)
    assert {name: rle.encode(one) for name, one in orders.items()} == dict.fromkeys(
        orders, expected
    )


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("shape", [(37, 53), (64, 1), (1, 64), (101, 100)])
def test_random_masks_with_all_four_corners_set_round_trip(seed, shape):
    mask = (np.random.default_rng(seed).random(shape) < 0.1 * (seed + 1)).astype(np.uint8)
    mask[[0, 0, -1, -1], [0, -1, 0, -1]] = 1
    assert rle.encode(mask) == plain_encode(mask)
    np.testing.assert_array_equal(rle.decode(rle.encode(mask), shape), mask)


def test_all_real_rows_survive_decoding_and_encoding_unchanged(real_rows):
    changed = [
        image_id for image_id, text in real_rows if rle.encode(rle.decode(text, REAL_SHAPE)) != text
    ]
    assert changed == []


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 8])
def test_real_unions_equal_a_slow_decoder_pixel_by_pixel(real_rows, every):
    by_image = {}
    for image_id, text in real_rows:
        by_image.setdefault(image_id, []).append(text)
    assert len(by_image) == 2669  # FACTS.md: the other 9,378 images have no mask row
    areas = []
    for image_id, texts in list(by_image.items())[::every]:
        truth = plain_union(texts, 1024 * 1024)
        mask = rle.union(texts, REAL_SHAPE)
        assert mask.tobytes("F") == truth, image_id
        areas.append(truth.count(1))
    if every == 1:
        assert (min(areas), max(areas)) == (55, 161421)  # FACTS.md
    assert not rle.union([], REAL_SHAPE).any()


def test_overlapping_rows_count_once():
    # 2 .. 5 and 4 .. 7 of a column of 10: pixels 2 to 7, six of them.
    np.testing.assert_array_equal(
        rle.union(["2 4", "4 4"], (10, 1))[:, 0], [0, 0, 1, 1, 1, 1, 1, 1, 0, 0]
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "1",
        "1 2 3",
        "-1 2",
        "1 -2",
        "1.0 2",
        "NaN",
        "nan nan",
        "1,2",
        "1  2",
        " 1 2",
        "1 2 ",
        "1\t2",
        "a b",
        "0x1 2",
        "1e3 2",
        "-1 ",
        "--1",
        "1 2 -1",
        "9999999999999 1",
        "\u0661 \u0662",
        "\uff11 \uff14",
        "1 2\n",
    ],
)
def test_text_other_than_pairs_of_whole_numbers_is_bad_input(text):
    with pytest.raises(BadInput, match="pairs"):
        rle.decode(text, (10, 10))


def test_a_run_of_length_0_is_bad_input_and_numbered():
    with pytest.raises(BadInput, match=r"length 0 \(pair 2\)"):
        rle.decode("1 4 5 0", (10, 10))


@pytest.mark.parametrize("text", ["100 1", "0 101", "90 5 5 1", "999999999999 999999999999"])
def test_a_run_past_the_last_pixel_is_bad_input(text):
    with pytest.raises(BadInput, match="past the image's 100 pixels"):
        rle.decode(text, (10, 10))


def test_a_run_up_to_the_last_pixel_is_legal():
    assert rle.decode("99 1", (10, 10))[9, 9] == 1


def test_absolute_starts_are_named_where_they_overflow_the_image():
    # 0-based absolute starts of three legal runs in 100 pixels: 20..24, 50..54, 90..99.
    with pytest.raises(BadInput, match="absolute"):
        rle.decode("20 5 50 5 90 10", (10, 10))
    with pytest.raises(BadInput, match="absolute"):  # the same, 1-based
        rle.decode("21 5 51 5 91 10", (10, 10))
    with pytest.raises(BadInput) as error:  # falling starts are not absolute starts either
        rle.decode("60 5 50 5", (10, 10))
    assert "absolute" not in str(error.value)


def test_a_mask_that_does_not_decode_to_itself_is_a_bug_and_named():
    mask = np.array([[0, 1], [0, 1]], dtype=np.uint8)
    assert rle.encode_checked(mask, "a") == "2 2"  # the second column of 2
    with pytest.raises(RuntimeError, match="a: the run lengths do not decode to the mask"):
        rle.encode_checked(2 * mask, "a")
