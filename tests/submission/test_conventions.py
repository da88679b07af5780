"""At which size and in which convention a row was written, on all real masks."""

import numpy as np
import pytest

from pneumothorax import rle
from pneumothorax.data import labels
from pneumothorax.submission import conventions, pixel_runs
from pneumothorax.submission.pixel_runs import Mask
from tests.helpers.submission_samples import downsampled, drawn, edges

SHAPE = (1024, 1024)


def runs(*pairs):
    """Runs from (start, end) pairs."""
    return np.array([start for start, _ in pairs]), np.array([end for _, end in pairs])


@pytest.fixture(scope="module")
def real(real_data):
    """The text of each of the 2,669 real masks."""
    rows = labels.read(real_data / "labels" / "stage_2_train.csv.gz").rows.values()
    return [
        texts[0] if len(texts) == 1 else rle.encode(rle.union(texts, SHAPE))
        for texts in rows
        if texts
    ]


@pytest.mark.parametrize("shift", [0, 1, 64, -5])
def test_overlaps_equal_those_of_the_drawn_masks(shift):
    rng = np.random.default_rng(0)
    one, other = (np.bitwise_or(drawn(rng, 64), drawn(rng, 64)) for _ in range(2))
    moved = np.roll(one.T.ravel(), shift)  # nothing lies within 64 pixels of the ends
    assert pixel_runs.overlap(edges(one), edges(other), shift) == (moved & other.T.ravel()).sum()
    assert pixel_runs.overlap(edges(one), edges(one)) == one.sum() == pixel_runs.area(edges(one))


def test_an_empty_mask_overlaps_nothing():
    assert pixel_runs.overlap(pixel_runs.EMPTY, runs((0, 5))) == 0
    assert pixel_runs.overlap(runs((0, 5)), pixel_runs.EMPTY) == 0


def test_column_agreement_is_the_share_of_pixels_with_a_right_neighbour():
    # Columns of 10: rows 2 to 5 and 3 to 6. Of the first 4 pixels 3 have a neighbour, of the
    # last 4 none. Columns of 11: rows 2 to 5 of both.
    assert pixel_runs.column_agreement(runs((2, 6), (13, 17)), [10, 11]) == pytest.approx(
        [3 / 8, 4 / 8]
    )


def test_no_real_mask_is_mistaken_for_another_size_or_convention(real):
    lowest = 1.0
    for text in real:
        pairs = rle.numbers(text)
        found = conventions.gaps(pairs)
        assert conventions.encoded_height(found, SHAPE) is None
        assert conventions.are_absolute(pairs, SHAPE) is False
        lowest = min(lowest, pixel_runs.column_agreement(found, [1024])[0])
    assert lowest == pytest.approx(0.62, abs=0.005)


@pytest.mark.parametrize("size", [128, 224, 256, 512, 768, 1280])
def test_the_size_of_a_resized_real_mask_is_found(real, size):
    right = judged = 0
    for text in real[::60]:
        small = edges(downsampled(rle.decode(text, SHAPE), size))
        if len(small[0]) >= conventions.FEWEST_RUNS:
            judged += 1
            right += conventions.encoded_height(small, SHAPE) == size
    assert judged >= 30
    assert right >= judged - 1


@pytest.mark.parametrize("first", [0, 1])
def test_every_real_mask_with_absolute_starts_is_found(real, first):
    for text in real[::10]:
        starts, ends = conventions.gaps(rle.numbers(text))
        pairs = np.stack([starts + first, ends - starts], axis=1).ravel()
        assert conventions.are_absolute(pairs, SHAPE)


def test_real_masks_one_pixel_too_low_are_found_if_they_touch_the_lower_edge(real):
    masks = [Mask(conventions.gaps(rle.numbers(text)), SHAPE) for text in real]
    assert conventions.too_low(masks) == ([], False)
    moved = [Mask((mask.runs[0] + 1, mask.runs[1] + 1), SHAPE) for mask in masks]
    at_edge = [number for number, mask in enumerate(masks) if (mask.runs[1] % 1024 == 0).sum() >= 3]
    assert conventions.too_low(moved) == (at_edge, True)
    assert len(at_edge) > 10


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([1100, 20, 2120, 25], None),  # two runs could be either
        ([1100, 20, 2124, 20, 3148, 20], True),  # the same rows of three columns
        ([1100, 20, 1004, 20, 1004, 20], False),  # gaps of one column: the usual row
        ([1000, 10, 1014, 10, 1015, 10], False),  # rising, and columns side by side as gaps
        ([700000, 20, 701024, 20], True),  # past the end as gaps
        ([1048570, 20], False),  # one run has no second start
    ],
)
def test_absolute_starts_are_distinguished_from_gaps_by_the_masks_they_give(pairs, expected):
    assert conventions.are_absolute(np.array(pairs), SHAPE) is expected


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([0, 5, 20, 5], 0),  # there is a pixel 0
        ([20, 5, 96, 5], 1),  # pixels 96 to 100 of 100: there is a pixel 100
        ([20, 5, 40, 5], None),
        ([16, 4, 26, 4, 36, 4], 0),  # three columns end at the lower edge, 20, 30, 40
        ([17, 4, 27, 4, 37, 4], 1),  # read as 0-based, they end one pixel past it
    ],
)
def test_the_edges_show_whether_absolute_starts_count_from_0_or_1(pairs, expected):
    assert conventions.first_number([(np.array(pairs), (10, 10))]) == expected


def test_the_size_of_a_mask_with_few_runs_is_not_judged():
    seven, eight = (
        [(512 * column + 100, 512 * column + 140) for column in range(count)] for count in (7, 8)
    )
    assert conventions.encoded_height(runs(*seven), SHAPE) is None
    assert conventions.encoded_height(runs(*eight), SHAPE) == 512


def test_a_line_of_single_pixels_along_the_upper_edge_is_not_too_low():
    mask = np.zeros((64, 64), np.uint8)
    mask[0, 10:40] = 1
    assert conventions.too_low([Mask(edges(mask), (64, 64))] * 2) == ([], False)


def test_one_mask_that_is_too_low_is_odd_and_two_are_clear():
    # 12 or 24 columns of ten pixels, each from row 5 to the first pixel of the next column.
    wide, narrow = (
        Mask(runs(*[(10 * column + 5, 10 * column + 11) for column in range(count)]), (10, 100))
        for count in (24, 12)
    )
    assert conventions.too_low([wide]) == ([0], False)
    assert conventions.too_low([narrow, Mask(runs((5, 10)), (10, 100)), narrow]) == ([0, 2], True)
    assert conventions.too_low([]) == ([], False)
