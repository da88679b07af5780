"""How many images at a time fit into a GPU's memory."""

import pytest

from pneumothorax.compute import memory


@pytest.mark.parametrize(
    ("available", "parts"),
    [
        (2000, 1),  # 100 + 16 * 100 = 1700 <= 1800
        (1800, 2),  # 1620 < 1700, and half of the batch takes 900
        (999, 4),  # 899 < 900, and a quarter takes 500
        (400, 8),  # 360 >= 300 for two images
        (10, 8),  # nothing fits: as small as can be
    ],
)
def test_a_batch_is_cut_into_as_few_parts_as_fit(available, parts):
    found = memory.fewest_parts(16, lambda images: 100 + 100 * images, available)
    assert found == parts


def test_a_batch_that_cannot_be_cut_needs_no_trial():
    def trial(images):
        raise AssertionError("no trial is needed")

    assert memory.fewest_parts(3, trial, 0) == 1
