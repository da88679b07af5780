"""`check_submission.py FILE` finds every planted fault, and passes correct files."""

import numpy as np
import pytest

from pneumothorax import rle
from pneumothorax.data import labels
from pneumothorax.pipeline import artifacts, locks
from pneumothorax.submission import checking
from pneumothorax.submission.checking import Reference, TrainingMasks
from pneumothorax.submission.pixel_runs import Mask
from tests.helpers.stages import write_lines
from tests.helpers.submission_samples import SIZE, absolute, called, downsampled, drawn, prepared

N_TEST = 40  # test images t0, t1, ...; every fourth (t3, t7, ...) has no mask, 30 have one


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    rng = np.random.default_rng(0)
    training = ["-1" if number % 4 == 3 else rle.encode(drawn(rng)) for number in range(80)]
    return prepared(
        tmp_path_factory.mktemp("prepared"),
        training,
        {f"t{n}": (SIZE, SIZE) for n in range(N_TEST)},
    )


@pytest.fixture(scope="module")
def masks():
    """Of the test images; None for every fourth."""
    rng = np.random.default_rng(1)
    return [None if number % 4 == 3 else drawn(rng) for number in range(N_TEST)]


@pytest.fixture
def right(masks):
    """The lines of a correct submission; image n is rows[n + 1], on line n + 2."""
    return ["ImageId,EncodedPixels"] + [
        f"t{n},{'-1' if mask is None else rle.encode(mask)}" for n, mask in enumerate(masks)
    ]


@pytest.fixture
def check(tmp_path, output, capsys):
    """(exit code, output, errors) for the lines of a file, with a prepared folder."""

    def check(lines, *more, output=output):
        path = write_lines(tmp_path / "mine.csv", lines)
        code = called(path, "--output", output, *more)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return check


@pytest.fixture
def check_alone(tmp_path, right, capsys, monkeypatch):
    """The same with a sample submission and no output folder, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    ids = [line.partition(",")[0] for line in right[1:]]
    sample = write_lines(tmp_path / "sample.csv", [right[0], *(f"{i},-1" for i in ids)])

    def check(lines):
        path = write_lines(tmp_path / "mine.csv", lines)
        code = called(path, "--sample-submission", sample)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return check


def test_a_correct_file_passes_without_a_warning(check, right):
    code, printed, errors = check(right)
    assert (code, errors) == (0, "")
    assert (
        "40 of 40 ids have a legal row, 30 of them a mask (75.0%; of 80 training images 75.0%)"
        in printed
    )
    assert "warning" not in printed
    assert printed.endswith("mine.csv is a valid submission\n")


def low(mask):
    """The mask moved down to the lower edge of the image, and cut off there."""
    lowest = np.flatnonzero(mask.any(axis=1)).max() - 5  # so that many columns end at the edge
    moved = np.zeros_like(mask)
    moved[SIZE - 1 - lowest :] = mask[: lowest + 1]
    return moved


def first_gap_plus_one(text):
    gap, rest = text.split(" ", 1)
    return f"{int(gap) + 1} {rest}"


def every(masks, write):
    """The correct file, with `write(mask)` in every row that has a mask."""
    return ["ImageId,EncodedPixels"] + [
        f"t{n},{'-1' if m is None else write(m)}" for n, m in enumerate(masks)
    ]


def at(line, text):
    """A fault on one line, counted from 1: `text` replaces it, None removes it."""
    return lambda rows, masks: rows[: line - 1] + ([] if text is None else [text]) + rows[line:]


# Image 4 has a mask and is on line 6, image 7 has none and is on line 9.
TEXT = {
    "wrong header": (
        at(1, "ImageId, EncodedPixels"),
        ["line 1: wrong header 'ImageId, EncodedPixels'"],
    ),
    "no header": (at(1, None), ["line 1: wrong header", "'t0': missing"]),
    "index column": (
        lambda rows, masks: [f",{row}" for row in rows],
        ["line 1: wrong header ',ImageId,Enc"],
    ),
    "missing id": (at(9, None), ["line 9, 't7': missing; it belongs after 't6' on line 8"]),
    "first id missing": (at(2, None), ["line 2, 't0': missing; it belongs after line 1"]),
    "extra id": (
        lambda rows, masks: [*rows, "t99,-1"],
        ["line 42, 't99': not in the sample submission"],
    ),
    "repeated id": (
        at(9, "t6,-1"),
        ["line 9, 't6': is already on line 8, once with -1 and once with a mask"],
    ),
    "repeated and overlapping": (
        # Pixels 2010 to 2039 are in both.
        lambda rows, masks: [*rows[:5], "t4,2000 40", "t4,2010 100", *rows[6:]],
        ["line 7, 't4': is already on line 6, and the two masks overlap in 30 pixels"],
    ),
    "-1 in the cell of a mask": (at(6, "t4,-1 2000 40"), ["line 6, 't4': -1 next to runs"]),
    "spaces around an id": (at(6, " t4,-1"), ["line 6, 't4': spaces around the id"]),
    "odd count": (at(6, "t4,2000 40 900"), ["line 6, 't4': an odd count of numbers"]),
    "past the end": (
        at(6, "t4,1048570 7"),
        ["line 6, 't4': a run ends at pixel 1048577", "counted from 1"],
    ),
    "far past the end": (
        at(6, "t4,1048570 99"),
        ["line 6, 't4': a run ends at pixel 1048669, past the image's "],
    ),
    "number without end": (at(6, f"t4,{'9' * 40} 7"), ["line 6, 't4': not pairs of whole numbers"]),
    "overlapping runs": (
        at(6, "t4,2000 40 -10 40"),
        ["line 6, 't4': a negative number: runs overlap"],
    ),
    "absolute and overlapping": (
        at(6, "t4,500000 40 500020 40 501024 40"),
        ["line 6, 't4': absolute starts", "1 of its runs overlap"],
    ),
    "run of length 0": (at(6, "t4,2000 0"), ["line 6, 't4': a run of length 0"]),
    "text": (at(6, "t4,NaN"), ["line 6, 't4': not run lengths"]),
    "empty cell": (at(9, "t7,"), ["line 9, 't7': an empty cell: -1 means no mask"]),
    "three cells": (at(6, "t4,-1,0.9"), ["line 6, 't4': 3 cells instead of 2"]),
}

CONVENTION = {
    "absolute starts in one row": (
        lambda rows, masks: at(6, f"t4,{absolute(masks[4])}")(rows, masks),
        ["line 6, 't4': absolute starts: 'start length' pairs", "1 absolute starts\n"],
    ),
    "absolute starts that also fit as gaps": (
        at(6, "t4,1100 20 2120 25 3142 28 4168 22"),  # four columns at rows 76, 72, 70, 72
        ["line 6, 't4': absolute starts", "1 absolute starts\n"],
    ),
    "absolute starts": (
        lambda rows, masks: every(masks, absolute),
        [
            "30 absolute starts",
            "line 2, 't0': absolute",
            "and 10 more: absolute starts",
            "0- or 1-based",
        ],
    ),
    "absolute 0-based starts": (
        lambda rows, masks: every([m if m is None else low(m) for m in masks], absolute),
        ["30 absolute starts", "the absolute starts are 0-based"],
    ),
    "absolute 1-based starts": (
        lambda rows, masks: every(
            [m if m is None else low(m) for m in masks], lambda m: absolute(m, 1)
        ),
        [
            "30 absolute starts",
            "line 2, 't0'",
            "the absolute starts are 1-based, as in other competitions",
        ],
    ),
    "first gaps one too large": (
        lambda rows, masks: every(
            [low(m) if n % 8 == 0 else m for n, m in enumerate(masks)],
            lambda m: first_gap_plus_one(rle.encode(m)),
        ),
        ["5 masks look one pixel too low", "line 2 't0', line 10 't8'", "counted from 1"],
    ),
    "row by row": (
        # The rows of a mask are the columns of the transposed mask.
        lambda rows, masks: every(masks, lambda m: rle.encode(m.T)),
        [
            "lines 2 to 40: the masks look transposed (text row by row",
            "30 masks",
            "most clearly line ",
        ],
    ),
    "upside down": (
        lambda rows, masks: every(masks, lambda m: rle.encode(m[::-1])),
        ["lines 2 to 40: the masks look upside down", "30 masks"],
    ),
    "row by row and upside down": (
        lambda rows, masks: every(masks, lambda m: rle.encode(m[::-1].T)),
        ["lines 2 to 40: the masks look transposed and upside down"],
    ),
    "one mask of 512 x 512": (
        lambda rows, masks: at(6, f"t4,{rle.encode(downsampled(masks[4], 512))}")(rows, masks),
        ["1 another size\n", "line 6, 't4': looks encoded at 512 x 512, the image is 1024 x 1024"],
    ),
    "all of 256 x 256": (
        lambda rows, masks: every(masks, lambda m: rle.encode(downsampled(m, 256))),
        ["30 another size", "line 2, 't0': looks encoded at 256 x 256"],
    ),
    "one mask of 2048 x 2048": (
        lambda rows, masks: at(6, f"t4,{rle.encode(downsampled(masks[4], 2048))}")(rows, masks),
        ["line 6, 't4': ", "looks encoded at 2048 x 2048"],
    ),
}


@pytest.mark.parametrize("fault", [*TEXT, *CONVENTION])
def test_every_planted_fault_ends_with_exit_code_3_its_line_and_its_id(fault, check, right, masks):
    plant, expected = {**TEXT, **CONVENTION}[fault]
    code, printed, errors = check(plant(right, masks))
    assert code == 3
    for words in expected:
        assert words in errors
    assert "valid submission\n" not in printed
    assert "predicted pneumothorax" not in printed  # an illegal row is not an empty mask


NEED_TRAINING_MASKS = ("row by row", "upside down", "row by row and upside down")


@pytest.mark.parametrize("fault", [*TEXT, *CONVENTION])
def test_without_an_output_folder_all_faults_but_of_orientation_are_found(
    fault, check_alone, right, masks
):
    plant, expected = {**TEXT, **CONVENTION}[fault]
    code, printed, errors = check_alone(plant(right, masks))
    if fault in NEED_TRAINING_MASKS:
        assert (code, errors) == (0, "")
        assert "sizes and training masks not compared" in printed
        return
    assert code == 3
    for words in expected:
        assert words in errors
    assert "valid submission\n" not in printed


def test_without_a_sample_submission_it_says_that_ids_are_not_checked(
    right, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path = write_lines(tmp_path / "mine.csv", right)
    assert called(path) == 0
    printed = capsys.readouterr().out
    assert "ids not checked: pass the competition's sample" in printed
    assert printed.endswith("mine.csv has only legal rows; ids not checked\n")
    write_lines(path, [*right[:5], "t4,1 2 3", "t0,-1"])
    assert called(path) == 3
    errors = capsys.readouterr().err
    assert "line 6, 't4': an odd count" in errors
    assert "line 7, 't0': is already on line 2" in errors
    write_lines(path, right[:1])
    assert called(path) == 3
    assert "no rows below the header" in capsys.readouterr().err


def test_the_default_output_folder_is_used_if_it_knows_an_image(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_lines(tmp_path / "mine.csv", ["ImageId,EncodedPixels", "a,99 2"])
    assert called(path) == 0
    prepared(tmp_path / "output", ["-1", "0 5"], {"a": (10, 10)})
    capsys.readouterr()
    assert called(path) == 3
    assert "past the image's 100 pixels" in capsys.readouterr().err
    others = write_lines(tmp_path / "others.csv", ["ImageId,EncodedPixels", "b,99 2"])
    assert called(others) == 0
    printed = capsys.readouterr().out
    assert "not compared with output, which knows no image of " in printed
    assert "every image is assumed to be 1024 x 1024" in printed


WARNED = {
    "all empty": (
        lambda rows, masks: rows[:1] + [f"t{n},-1" for n in range(N_TEST)],
        "lines 2 to 41: no image has a predicted pneumothorax; 75.0% of the training images",
    ),
    "all positive": (
        lambda rows, masks: rows[:1] + [f"t{n},{rows[1].split(',')[1]}" for n in range(N_TEST)],
        "lines 2 to 41: every image has",
    ),
    "few positives": (
        lambda rows, masks: rows[:8] + [f"t{n},-1" for n in range(7, N_TEST)],
        "lines 2 to 41: 15.0% of the images have a mask; 75.0% of",
    ),
    "a mask of the whole image": (
        at(6, f"t4,0 {SIZE * SIZE}"),
        "1 mask covers more than half of the image: line 6 't4'",
    ),
    "tiny masks": (
        lambda rows, masks: every(
            masks, lambda m: rle.encode(m * (np.arange(SIZE) % 5 == 0).astype(np.uint8))
        ),
        "lines 2 to 40: the median mask is",
    ),
    "another order": (
        lambda rows, masks: [*rows[:5], rows[6], rows[5], *rows[7:]],
        "the order of the ids differs from the sample's, starting at line 6, 't5'",
    ),
    "two runs that may be absolute": (
        at(6, "t4,1100 20 2120 25"),
        "line 6, 't4': may be absolute starts",
    ),
    "one mask one pixel too low": (
        lambda rows, masks: at(6, f"t4,{first_gap_plus_one(rle.encode(low(masks[4])))}")(
            rows, masks
        ),
        "1 mask looks one pixel too low",
    ),
    "fewer than twenty masks, row by row": (
        lambda rows, masks: every(
            [m if n < 20 else None for n, m in enumerate(masks)], lambda m: rle.encode(m.T)
        ),
        "lines 2 to 20: the masks look transposed",
    ),
}


@pytest.mark.parametrize("oddity", WARNED)
def test_what_is_legal_but_odd_is_a_warning_with_its_lines(oddity, check, right, masks):
    plant, expected = WARNED[oddity]
    code, printed, errors = check(plant(right, masks))
    assert (code, errors) == (0, "")
    assert any(line.startswith("warning: ") and expected in line for line in printed.splitlines())
    assert "is a valid submission; see the warnings" in printed


def test_four_images_say_nothing_about_the_share_of_positives(tmp_path, check, right):
    sample = write_lines(tmp_path / "sample.csv", [right[0], *(f"t{n},-1" for n in range(4, 8))])
    # One in four has a mask; three in four of the training images.
    lines = [right[0], right[5], "t5,-1", "t6,-1", "t7,-1"]
    code, printed, _ = check(lines, "--sample-submission", sample)
    assert code == 0
    assert "(25.0%; of 80 training images 75.0%)" in printed
    assert "warning" not in printed


def test_many_faults_of_one_kind_crowd_out_no_other_kind(check, masks):
    lines = every(masks, absolute)
    code, _, errors = check([*lines[:8], "t99,-1", *lines[10:], "t1,1 2 3"])
    assert code == 3
    for count in (
        "29 absolute starts",
        "2 missing id",
        "1 extra id",
        "1 repeated id",
        "1 not run lengths",
    ):
        assert count in errors
    assert errors.count("absolute starts: 'start") == 20
    assert "... and 9 more: absolute starts" in errors
    for words in (
        "line 9, 't99': not in the sample",
        "line 41, 't1': is already on line 3",
        "line 41, 't1': an odd count",
    ):
        assert words in errors
    assert "'t7': missing" in errors
    assert "'t8': missing" in errors


def test_run_lengths_are_judged_at_the_images_own_size(tmp_path, check):
    shapes = {"a": (100, 200), "b": (600, 1500), "c": (600, 1500)}
    output = prepared(tmp_path / "own", ["-1", "0 5"], shapes)
    mask = np.zeros((600, 1500), np.uint8)
    mask[100:300, 200:260] = 1
    turned = rle.encode(np.ascontiguousarray(mask.T))  # as if the image had 1500 rows
    lines = ["ImageId,EncodedPixels", "a,19999 2", f"b,{rle.encode(mask)}", f"c,{turned}"]
    code, printed, errors = check(lines, output=output)
    assert code == 3
    assert "line 2, 'a': a run ends at pixel 20001, past the image's 20000 pixels" in errors
    assert "line 3" not in errors
    assert (
        "line 4, 'c': looks encoded at 1500 x 1500 or row by row, the image is 600 x 1500" in errors
    )
    assert (
        "orientation not judged: it takes 10 masks and 50 training masks, found 1 and 1" in printed
    )


def test_a_given_sample_wins_and_images_outside_the_manifest_are_1024_by_1024(tmp_path, check):
    sample = write_lines(tmp_path / "sample.csv", ["ImageId, EncodedPixels", "x, -1", "y, -1"])
    code, _, errors = check(
        ["ImageId, EncodedPixels", "x,1048570 6", "y,1048570 7"], "--sample-submission", sample
    )
    assert code == 3
    assert "1 past the end\n" in errors
    assert "line 3, 'y': a run ends at pixel 1048577, past the image's 1048576 pixels" in errors


def test_an_output_folder_that_is_not_prepared_is_refused(tmp_path, check, right):
    code, _, errors = check(right, output=tmp_path / "nothing")
    assert code == 3
    assert "run 00_prepare_data.py first" in errors
    output = prepared(tmp_path / "damaged", ["-1", "0 5"], {})
    (output / artifacts.SAMPLE_SUBMISSION).unlink()
    code, _, errors = check(right, output=output)
    assert code == 3
    assert "run 00_prepare_data.py again" in errors


def test_checking_writes_nothing_and_waits_for_no_lock(output, check, right):
    def contents():
        return {path: path.stat().st_mtime_ns for path in output.rglob("*")}

    with locks.lock(output, "04_submit-ica_resunet"), locks.lock(output, "03_predict-ica_resunet"):
        before = contents()
        assert check(right)[0] == 0
        assert contents() == before


def test_a_file_that_is_not_a_table_is_refused(tmp_path, output, capsys):
    for data in (b"", b"ImageId,EncodedPixels\n\xff,-1\n"):
        (tmp_path / "odd.csv").write_bytes(data)
        assert called(tmp_path / "odd.csv", "--output", output) == 3
        assert "odd.csv" in capsys.readouterr().err


@pytest.fixture(scope="module")
def real(real_data):
    """{id: (text of the union, Mask)} of the 2,669 positives; ids of the negatives."""
    found = {}
    rows = labels.read(real_data / "labels" / "stage_2_train.csv.gz").rows
    for image_id, texts in rows.items():
        if texts:
            text = texts[0] if len(texts) == 1 else rle.encode(rle.union(texts, (SIZE, SIZE)))
            found[image_id] = text, Mask(rle.runs(text, SIZE * SIZE), (SIZE, SIZE))
    return found, [image_id for image_id, texts in rows.items() if not texts]


def real_subset(real, folder, seed, write=lambda text: text):
    """The report on 200 real positives and 700 negatives, against the others."""
    positives, negatives = real
    rng = np.random.default_rng(seed)
    order = rng.permutation(list(positives))
    chosen, others = order[:200], order[200:]
    rows = {str(name): write(positives[name][0]) for name in chosen} | dict.fromkeys(
        negatives[:700], "-1"
    )
    ids = [str(name) for name in rng.permutation(list(rows))]
    path = write_lines(
        folder / f"{seed}.csv", ["ImageId,EncodedPixels", *(f"{name},{rows[name]}" for name in ids)]
    )
    training = TrainingMasks(
        11147, len(others) / 11147, [positives[name][1] for name in others[:1000]]
    )
    sample = labels.SampleSubmission(("ImageId", "EncodedPixels"), tuple(ids))
    return checking.check(path, Reference(sample, training=training))


def assert_no_remark(report):
    assert report.submitted.problems == []
    assert report.warnings == []


def test_real_masks_pass_without_a_warning(real, tmp_path):
    for seed in range(2):
        assert_no_remark(real_subset(real, tmp_path, seed))


@pytest.mark.slow
def test_fifty_subsets_of_real_masks_pass_without_a_warning(real, tmp_path):
    for seed in range(50):
        assert_no_remark(real_subset(real, tmp_path, seed))


def test_real_masks_written_row_by_row_are_found(real, tmp_path):
    def transposed(text):
        return rle.encode(np.ascontiguousarray(rle.decode(text, (SIZE, SIZE)).T))

    problems = real_subset(real, tmp_path, 0, transposed).submitted.problems
    assert [problem.kind for problem in problems] == ["orientation"]
    assert "transposed (text row by row" in problems[0].text
