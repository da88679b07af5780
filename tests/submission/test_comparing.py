"""`check_submission.py FILE OTHER`: differences of small files, worked out by hand."""

from pathlib import Path

import numpy as np
import pytest

from pneumothorax import rle
from pneumothorax.submission import comparing
from pneumothorax.submission.pixel_runs import Mask
from pneumothorax.submission.reading import Row, Submitted
from tests.helpers.stages import write_lines
from tests.helpers.submission_samples import called, drawn, edges, prepared

FIRST = ["ImageId,EncodedPixels", "a,100 40", "b,-1", "c,-1", "d,100 10", "e,500 20"]
SECOND = ["ImageId,EncodedPixels", "e,500 20", "d,-1", "c,7 5", "b,-1", "a,120 40"]


@pytest.fixture
def diff(tmp_path, capsys, monkeypatch):
    """(exit code, lines, errors) for the lines of two files, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def diff(first, second, *more):
        paths = [
            write_lines(tmp_path / f"{name}.csv", lines)
            for name, lines in (("one", first), ("two", second))
        ]
        code = called(*paths, *more)
        printed = capsys.readouterr()
        return code, printed.out.splitlines(), printed.err

    return diff


def test_the_difference_of_two_files_by_hand(diff, tmp_path):
    code, lines, errors = diff(FIRST, SECOND)
    assert (code, errors) == (0, "")
    # a: 100..139 and 120..159, 20 pixels in both: Dice 40/80 = 0.5. b: both empty, 1.
    # c and d: one empty, 0. e: 1.
    assert lines == [
        "3 of 5 images changed",
        "mean Dice between them 0.5000 (both masks empty = 1, one empty = 0)",
        "over the 4 images where either has a mask 0.3750",
        "area of all masks 70 -> 65 pixels (-5, -7.1%)",
        "positives gained: 1",
        "  c: 0 -> 5 pixels, 5 differ, Dice 0.0000",
        "positives lost: 1",
        "  d: 10 -> 0 pixels, 10 differ, Dice 0.0000",
        "largest changes: 3",
        "  a: 40 -> 40 pixels, 40 differ, Dice 0.5000",
        "  d: 10 -> 0 pixels, 10 differ, Dice 0.0000",
        "  c: 0 -> 5 pixels, 5 differ, Dice 0.0000",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.csv", "two.csv"]


def test_files_without_rows_are_refused(diff):
    code, lines, errors = diff(FIRST[:1], FIRST[:1])
    assert (code, lines) == (3, [])
    assert "no rows below the header" in errors


def test_a_file_does_not_differ_from_itself(diff):
    code, lines, _ = diff(FIRST, FIRST)
    assert code == 0
    assert lines[0] == "0 of 5 images changed"
    assert "1.0000" in lines[1]
    code, lines, _ = diff(["ImageId,EncodedPixels", "a,-1"], ["ImageId, EncodedPixels", "a, -1"])
    assert lines[:3] == [
        "0 of 1 images changed",
        "mean Dice between them 1.0000 (both masks empty = 1, one empty = 0)",
        "area of all masks 0 -> 0 pixels (+0)",
    ]


def test_drawn_masks_differ_as_their_pixels_do():
    rng = np.random.default_rng(0)
    one, other = [drawn(rng, 64) for _ in range(30)], [drawn(rng, 64) for _ in range(30)]

    def submitted(masks):
        rows = [Row(n, str(n), Mask(edges(mask), mask.shape)) for n, mask in enumerate(masks)]
        return Submitted(Path("drawn.csv"), rows)

    found = comparing.compare(submitted(one), submitted(other))
    expected = [2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in zip(one, other, strict=True)]
    assert max(expected) > 0.3
    np.testing.assert_allclose(found.dice, expected)
    np.testing.assert_array_equal(
        found.changed_px, [(a ^ b).sum() for a, b in zip(one, other, strict=True)]
    )


def test_long_lists_are_cut_and_counted(diff):
    first = ["ImageId,EncodedPixels", *(f"i{n},-1" for n in range(25))]
    second = ["ImageId,EncodedPixels", *(f"i{n},0 {n + 1}" for n in range(25))]
    _, lines, _ = diff(first, second)
    gained = lines[lines.index("positives gained: 25") :]
    assert gained[1].startswith("  i24: 0 -> 25 pixels")  # the largest first
    assert gained[20].startswith("  i5:")
    assert gained[21] == "  ... and 5 more"


def test_other_ids_and_faulty_files_are_refused_with_a_list(diff):
    code, _, errors = diff(FIRST, [*SECOND[:-1], "z,-1"])
    assert code == 3
    assert "different images (2 ids)" in errors
    assert "a: only in" in errors
    assert "z: only in" in errors
    code, _, errors = diff(FIRST, [*SECOND[:-1], "a,1 2 3"])
    assert code == 3
    assert "two.csv is not a valid submission" in errors
    assert "line 6, 'a': an odd count" in errors


def test_image_sizes_come_from_a_prepared_folder(diff, tmp_path):
    output = prepared(tmp_path / "prepared", ["-1", "0 5"], {"a": (10, 10)})
    lines = ["ImageId,EncodedPixels", f"a,{rle.encode(np.ones((10, 10), np.uint8))}"]
    assert diff(lines, lines, "--output", output)[0] == 0
    code, _, errors = diff(lines, [lines[0], "a,0 101"], "--output", output)
    assert code == 3
    assert "past the image's 100 pixels" in errors


def test_a_sample_submission_is_refused_when_two_files_are_compared(capsys):
    with pytest.raises(SystemExit) as left:
        called("a.csv", "b.csv", "--sample-submission", "sample.csv")
    assert left.value.code == 2
    assert "is for checking one file" in capsys.readouterr().err
