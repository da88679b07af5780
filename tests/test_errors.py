"""How messages count."""

import pytest

from pneumothorax.errors import counted


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 files are copies"), (1, "1 file is a copy"), (12, "12 files are copies")],
)
def test_a_count_of_one_goes_with_the_singular(number, text):
    assert counted(number, "file is a copy", "files are copies") == text


def test_without_a_plural_an_s_makes_it():
    assert [counted(number, "image") for number in (1, 2)] == ["1 image", "2 images"]
