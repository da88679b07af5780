"""Any text as a table or as run lengths: read correctly, or refused with a BadInput.

Plain parsers, written independently, decide what is correct. They are for text without
quotation marks and lone carriage returns.
"""

import re

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from pneumothorax import rle
from pneumothorax.data import labels
from pneumothorax.errors import BadInput

IDS = st.sampled_from(
    ["a", "b", "1.20", "NA", "ID_1", "-x", ".hidden", "../up", "=cmd", "i" * 65, ""]
)
NUMBERS = st.one_of(st.integers(-2, 70), st.sampled_from([2**31, 2**63 - 1, 2**63, 10**40]))
RUNS = st.lists(NUMBERS, max_size=6).map(lambda numbers: " ".join(map(str, numbers)))
CELLS = st.one_of(
    RUNS,
    st.sampled_from(["-1", " -1", "", "NaN", "1 2 ", "1  2", "1,2", "٣ ٤", "1.0 2"]),
    st.text(max_size=5),
)
LINES = st.tuples(IDS, st.sampled_from([",", ", ", ";", ",,"]), CELLS).map("".join)
HEADERS = st.sampled_from(
    [
        "ImageId,EncodedPixels",
        "ImageId, EncodedPixels",
        "ImageId,PatientId",
        "ImageId;EncodedPixels",
        "id,rle",
        "",
    ]
)
ENDS = st.sampled_from(["\n", "\r\n", "\n\n"])


@st.composite
def files(draw):
    """A file that is almost correct, with some characters replaced."""
    start, end = draw(st.sampled_from(["", "\ufeff", "\n"])), draw(ENDS)
    text = (
        start
        + end.join([draw(HEADERS), *draw(st.lists(LINES, max_size=6))])
        + draw(st.sampled_from(["", end]))
    )
    for place, letter in draw(
        st.lists(st.tuples(st.integers(0, 200), st.characters(codec="utf-8")), max_size=2)
    ):
        text = text[:place] + letter + text[place + 1 :]
    return text


ANY_TEXT = st.one_of(files(), st.text(max_size=60))
often = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def plain_table(text, columns):
    """[(first, second)] of the rows, stripped; None if the text is not such a table."""
    assume('"' not in text and "\r" not in text.replace("\r\n", "\n"))
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
    rows = [line.split(",") for line in lines]
    rows = [[cell.strip() for cell in row] for row in rows if "".join(row).strip()]
    if not rows or rows[0] != list(columns) or any(len(row) != 2 for row in rows):
        return None
    return [tuple(row) for row in rows[1:]]


def good_id(text):
    return re.fullmatch("[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", text) is not None


def plain_labels(text):
    """{id: the set of its mask rows}; None for text that must be refused."""
    rows = plain_table(text, ("ImageId", "EncodedPixels"))
    if not rows:
        return None
    found = {}
    for image_id, cell in rows:
        words = cell.split(" ")
        numbers = [int(word) for word in words if re.fullmatch("[0-9]+", word)]
        runs = len(numbers) == len(words) and len(words) % 2 == 0 and 0 not in numbers[1::2]
        if not good_id(image_id) or not (runs or cell in ("", "-1")):
            return None
        found.setdefault(image_id, set()).add(cell if runs else "")
    if any("" in rows and len(rows) > 1 for rows in found.values()):
        return None
    return {image_id: rows - {""} for image_id, rows in found.items()}


def outcome(read, tmp_path, text):
    """What `read` returns for a file with this text; None for a BadInput naming it."""
    path = tmp_path / "table.csv"
    path.write_bytes(text.encode("utf-8"))
    try:
        return read(path)
    except BadInput as error:
        assert str(path) in str(error)
        return None


@often
@given(text=ANY_TEXT)
@example(text="ImageId,EncodedPixels\na,1 2\na,-1\n")
@example(text="ImageId,EncodedPixels\na,0 99999999999999999999\n")
@example(text="ImageId,EncodedPixels\na,1 2 3 0\n")
def test_any_text_as_labels(tmp_path, text):
    found = outcome(labels.read, tmp_path, text)
    expected = plain_labels(text)
    if found is None:
        assert expected is None
    else:
        assert {name: set(rows) for name, rows in found.rows.items()} == expected


@often
@given(text=ANY_TEXT)
def test_any_text_as_a_sample_submission(tmp_path, text):
    found = outcome(labels.read_sample, tmp_path, text)
    rows = plain_table(text, ("ImageId", "EncodedPixels"))
    ids = list(dict.fromkeys(row[0] for row in rows or ()))
    expected = ids if ids and all(map(good_id, ids)) else None
    assert (None if found is None else list(found.image_ids)) == expected


@often
@given(text=ANY_TEXT)
def test_any_text_as_patients(tmp_path, text):
    found = outcome(labels.read_patients, tmp_path, text)
    rows = plain_table(text, ("ImageId", "PatientId"))
    good = rows is not None and all(good_id(image_id) and patient for image_id, patient in rows)
    good = good and len(set(rows)) == len(dict(rows))
    assert found == (dict(rows) if good else None)


@often
@given(
    data=st.binary(max_size=200),
    start=st.sampled_from([b"", b"ImageId,EncodedPixels\n", b"\x1f\x8b"]),
)
@pytest.mark.parametrize("read", [labels.read, labels.read_sample, labels.read_patients])
@pytest.mark.parametrize("name", ["table.csv", "table.csv.gz"])
def test_any_bytes_are_read_or_refused_and_raise_nothing_else(tmp_path, read, name, data, start):
    path = tmp_path / name
    path.write_bytes(start + data)
    try:
        read(path)
    except BadInput as error:
        assert str(path) in str(error)


def test_every_error_is_listed_with_line_and_id(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("ImageId,EncodedPixels\na,1 2 3\nb,0 5\nc,x\n", encoding="utf-8")
    with pytest.raises(BadInput) as caught:
        labels.read(path)
    assert "line 2, 'a'" in str(caught.value)
    assert "line 4, 'c'" in str(caught.value)
    assert "'b'" not in str(caught.value)


@often
@given(text=st.one_of(RUNS, CELLS, st.text(alphabet="0123456789 -", max_size=20)))
@example(text="0 18446744073709551617")  # 2^64 + 1, which wraps to 1
@example(text="9223372036854775807 9223372036854775807 1 1")
def test_any_text_as_run_lengths(text):
    shape = (8, 8)
    words = text.split(" ")
    numbers = [int(word) for word in words if re.fullmatch("[0-9]+", word, re.ASCII)]
    legal = (
        len(numbers) == len(words)
        and len(words) % 2 == 0
        and 0 not in numbers[1::2]
        and sum(numbers) <= 64
    )
    try:
        found = rle.decode(text, shape)
    except BadInput:
        assert not legal
        assert text != "-1"
        return
    flat = []
    for gap, length in zip(numbers[::2], numbers[1::2], strict=True) if legal else ():
        flat += [0] * gap + [1] * length
    assert legal or text == "-1"
    np.testing.assert_array_equal(found.T.ravel(), flat + [0] * (64 - len(flat)))
