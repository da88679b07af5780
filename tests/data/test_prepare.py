"""Stage 00: all files accounted for, the right pixels, the same bytes after mishaps."""

import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pandas as pd
import pytest

from pneumothorax import dicom, png
from pneumothorax.data import discovery, one_image, outcome
from pneumothorax.errors import BadInput
from pneumothorax.pipeline import artifacts, atomic, journal
from tests.helpers.dicoms import write_dicom
from tests.helpers.images import disc, noise, plain_encode
from tests.helpers.stages import ROOT, run_stage, tiny_input, write_lines

STAGE = "00_prepare_data.py"
TABLES = ("manifest.csv", "labels.csv", "rejected.csv", "sample_submission.csv", "prepare.json")


def prepared(source, output, *flags, size=64, workers=1):
    """Run stage 00; -> the manifest, indexed by image id."""
    run_stage(
        STAGE, "--input", source, "--output", output, "--size", size, "--workers", workers, *flags
    )
    return manifest_of(output)


def manifest_of(output):
    return artifacts.read_table(output, artifacts.MANIFEST).set_index("image_id")


def refused(source, output, *flags, **settings):
    """The message of the BadInput that ends stage 00."""
    with pytest.raises(BadInput) as caught:
        prepared(source, output, *flags, **settings)
    return str(caught.value)


def rejected(output):
    """{source: code} of rejected.csv."""
    table = artifacts.read_table(output, artifacts.REJECTED)
    return dict(zip(table["source"], table["code"], strict=True))


def contents(
    folder, *, only=("manifest.csv", "labels.csv", "rejected.csv", "sample_submission.csv", ".png")
):
    """{path below the folder: sha256} of the tables and cached PNGs."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name.endswith(only)
    }


def snapshot(folder):
    """{path: (time, size)} of everything below a folder."""
    return {
        str(path): (path.lstat().st_mtime_ns, path.lstat().st_size)
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def tiny(tmp_path):
    return tiny_input(tmp_path / "input", train=6, test=2)


def labelled(folder, images, **tags):
    """A folder with negative training images {name: (H, W) array} and their labels."""
    for name, image in images.items():
        write_dicom(folder / f"{name}.dcm", image, **tags)
    write_lines(
        folder / "train-rle.csv", ["ImageId, EncodedPixels", *(f"{name}, -1" for name in images)]
    )
    return folder


# Real data


@pytest.fixture(scope="module")
def siim(real_data, tmp_path_factory):
    """Output of stage 00 on the 90 real files, at the default size with one worker."""
    output = tmp_path_factory.mktemp("siim")
    prepared(real_data / "siim", output, size=512)
    return output


def test_the_real_files_make_30_training_and_60_test_images(siim):
    manifest = manifest_of(siim)
    assert dict(manifest["split"].value_counts()) == {"train": 30, "test": 60}
    assert manifest["positive"].sum() == 8
    assert set(manifest["decoder"]) == {"libjpeg-turbo"}
    assert set(zip(manifest["height"], manifest["width"], strict=True)) == {(1024, 1024)}
    assert manifest["mask_rows"].max() == 4  # data/README.md: one has 4 label rows
    assert rejected(siim) == {}
    assert len(list((siim / "cache" / "512" / "images").iterdir())) == 90
    assert len(list((siim / "cache" / "512" / "masks").iterdir())) == 8


def test_real_masks_are_the_union_of_their_rows_halved_by_majority(real_data, siim):
    rows = {}
    for line in (real_data / "siim" / "train-rle.csv").read_text().splitlines()[1:]:
        image_id, text = (cell.strip() for cell in line.split(","))
        if text != "-1":
            rows.setdefault(image_id, []).append(text)
    manifest = manifest_of(siim)
    for image_id, texts in rows.items():
        flat = np.zeros(1024 * 1024, dtype=np.uint8)
        for text in texts:
            edges = np.cumsum([int(word) for word in text.split()])
            for start, end in zip(edges[0::2], edges[1::2], strict=True):
                flat[start:end] = 1
        mask = flat.reshape(1024, 1024).T
        assert manifest.loc[image_id, "mask_pixels"] == mask.sum()
        assert manifest.loc[image_id, "mask_rows"] == len(texts)
        half = mask.reshape(512, 2, 512, 2).sum(axis=(1, 3)) >= 2
        cached = cv2.imread(
            str(siim / "cache" / "512" / "masks" / f"{image_id}.png"), cv2.IMREAD_UNCHANGED
        )
        np.testing.assert_array_equal(cached > 0, half)
        assert set(np.unique(cached)) == {0, 255}
    assert set(rows) == set(manifest.index[manifest["positive"] == 1])
    kept = (
        artifacts.read_table(siim, artifacts.LABELS)
        .groupby("image_id")["rle"]
        .apply(list)
        .to_dict()
    )
    assert kept == {image_id: rows[image_id] for image_id in sorted(rows)}


def test_the_manifest_holds_the_hash_of_each_cached_png_and_the_sample_keeps_its_order(
    real_data, siim
):
    for image_id, row in manifest_of(siim).iterrows():
        data = (siim / "cache" / "512" / "images" / f"{image_id}.png").read_bytes()
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        assert (real_data / "siim" / row["source"]).is_file()
    given = pd.read_csv(real_data / "siim" / "stage_2_sample_submission.csv", dtype=str)
    assert (
        pd.read_csv(siim / artifacts.SAMPLE_SUBMISSION)["ImageId"].tolist()
        == given["ImageId"].tolist()
    )


def test_two_workers_give_the_same_bytes_as_one(real_data, siim, tmp_path):
    prepared(real_data / "siim", tmp_path, size=512, workers=2)
    assert contents(tmp_path) == contents(siim)
    assert (tmp_path / "prepare.json").read_bytes() == (siim / "prepare.json").read_bytes()


def test_the_502_real_files_are_all_training_images_without_a_sample_submission(
    real_data, tmp_path, capsys
):
    manifest = prepared(real_data / "siim_502", tmp_path, size=128)
    assert len(manifest) == 502
    assert set(manifest["split"]) == {"train"}
    assert manifest["positive"].sum() == 160
    assert not (tmp_path / "sample_submission.csv").exists()
    assert "0 test images" in capsys.readouterr().out


# A good folder


def test_cached_masks_at_the_size_of_the_images_are_the_truth(tiny, tmp_path):
    manifest = prepared(tiny.folder, tmp_path / "output", size=128)
    assert manifest["positive"].sum() == len(tiny.positives) == 3
    for image_id, mask in tiny.masks.items():
        assert manifest.loc[image_id, "mask_pixels"] == mask.sum()
        path = tmp_path / "output" / "cache" / "128" / "masks" / f"{image_id}.png"
        assert path.exists() == bool(mask.any())
        if mask.any():
            np.testing.assert_array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), mask * 255)
            image = cv2.imread(
                str(tmp_path / "output" / "cache" / "128" / "images" / f"{image_id}.png"),
                cv2.IMREAD_UNCHANGED,
            )
            assert image[cv2.erode(mask, np.ones((5, 5))) == 1].mean() == pytest.approx(230, abs=3)


def test_the_manifest_is_sorted_by_split_and_id_wherever_the_files_are(tmp_path):
    folder = labelled(tmp_path / "in", {"b": noise(1)})
    write_dicom(folder / "z" / "a.dcm", noise(2))
    write_dicom(folder / "a" / "c.dcm", noise(3))
    write_dicom(folder / "a" / "0.dcm", noise(4))
    write_lines(folder / "train-rle.csv", ["ImageId,EncodedPixels", "b,-1", "c,-1", "a,-1"])
    write_lines(folder / "stage_2_sample_submission.csv", ["ImageId,EncodedPixels", "0,-1"])
    assert list(prepared(folder, tmp_path / "out").index) == ["a", "b", "c", "0"]


def test_patients_are_hashed_and_two_images_of_one_patient_share_the_hash(tiny, tmp_path):
    manifest = prepared(tiny.folder, tmp_path / "output")
    hashes = manifest.loc[list(tiny.patients), "patient_id"]
    for first in tiny.patients:
        for second in tiny.patients:
            assert (hashes[first] == hashes[second]) == (
                tiny.patients[first] == tiny.patients[second]
            )
    assert hashes.str.fullmatch("[0-9a-f]{16}").all()
    assert (
        manifest.loc[tiny.test_ids, "patient_id"] == ""
    ).all()  # without PatientID they are unknown, not one person
    salted = prepared(tiny.folder, tmp_path / "salted", "--salt", "other")
    assert not set(salted["patient_id"]) - {""} & set(hashes)


def test_planted_names_and_patient_ids_reach_no_output_file_and_no_printed_line(tmp_path, capfd):
    planted = {
        "PatientName": "Planted^Name",
        "PatientID": "planted-patient-77",
        "PatientBirthDate": "19551102",
    }
    planted |= {
        "InstitutionName": "Planted Hospital",
        "AccessionNumber": "planted-accession",
        "PatientComments": "planted comment",
    }
    folder = labelled(tmp_path / "in", {"a": noise(1), "b": noise(2), "cut": noise(4)}, **planted)
    write_dicom(folder / "b.dcm", noise(2), **planted | {"PatientID": "planted-patient-78"})
    write_lines(
        folder / "train-rle.csv", ["ImageId,EncodedPixels", "a,100 50", "b,100 50", "cut,-1"]
    )
    write_dicom(folder / "unlabelled.dcm", noise(3), **planted)
    data = (folder / "cut.dcm").read_bytes()
    (folder / "cut.dcm").write_bytes(data[: len(data) // 2])
    (folder / "odd.dcm").write_bytes(data.replace(b"\x10\x00\x20\x00LO", b"\x10\x00\x20\x00FD"))
    assert "2 of 5 files rejected" in refused(folder, tmp_path / "out")
    assert rejected(tmp_path / "out") == {
        "cut.dcm": "TRUNCATED",
        "odd.dcm": "BAD_HEADER",
        "unlabelled.dcm": "UNLABELLED",
    }
    with pytest.raises(
        BadInput, match=r"00_prepare_data\.py first"
    ):  # the bad files are not accepted yet
        run_stage("01_make_folds.py", "--output", tmp_path / "out", "--folds", 2)
    prepared(folder, tmp_path / "out", "--max-bad", 2)
    run_stage("01_make_folds.py", "--output", tmp_path / "out", "--folds", 2)
    written = b"".join(
        path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()
    )
    printed = "".join(capfd.readouterr())
    assert len(written) > 2 * 64 * 64
    for word in (b"Planted^", b"planted-p", b"Planted H", b"planted-a", b"planted c", b"19551102"):
        assert word not in written
        assert word.decode() not in printed


def test_a_uid_that_does_not_name_the_image_is_not_kept(tmp_path):
    """In a damaged file it may be the text of another tag."""
    folder = labelled(tmp_path / "in", {"a": noise(1)}, SOPInstanceUID="planted-patient-79")
    assert list(prepared(folder, tmp_path / "out").index) == ["a"]
    written = b"".join(
        path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()
    )
    assert b"planted" not in written


def test_verify_checks_everything_and_writes_nothing(tiny, tmp_path, capsys):
    (tiny.folder / "bad.dcm").write_bytes(b"text")
    before = snapshot(tmp_path)
    command = [STAGE, "--verify", "--input", tiny.folder, "--output", tmp_path / "output"]
    with pytest.raises(BadInput, match=r"bad\.dcm: NOT_DICOM"):
        run_stage(*command, "--workers", 1)
    assert snapshot(tmp_path) == before
    assert "6 training images, 3 with pneumothorax" in capsys.readouterr().out
    run_stage(*command, "--max-bad", 1, "--workers", 2)
    assert snapshot(tmp_path) == before


def test_unlabelled_images_are_listed_and_not_used(tiny, tmp_path, capsys):
    manifest = prepared(tiny.folder, tmp_path / "output")
    (unlabelled,) = tiny.unlabelled_ids
    assert unlabelled not in manifest.index
    assert [
        code for source, code in rejected(tmp_path / "output").items() if unlabelled in source
    ] == ["UNLABELLED"]
    assert not list((tmp_path / "output" / "cache").rglob(f"{unlabelled}*"))
    assert "1 image is not annotated" in capsys.readouterr().out


def test_a_mask_too_thin_to_half_cover_a_pixel_stays_positive():
    for size, small in ((1024, 512), (1024, 64), (1024, 32), (96, 64)):
        mask = np.zeros((size, size), dtype=np.uint8)
        mask[size // 3, size // 3] = 1
        assert 1 <= png.downsample_mask(mask, small).sum() <= 4
        assert png.downsample_mask(mask, small).dtype == np.uint8
        assert png.downsample_mask(np.zeros_like(mask), small).sum() == 0
        assert png.downsample_mask(np.ones_like(mask), small).all()


def test_cached_pngs_are_uncompressed_and_exact():
    image = noise(1, 64)
    data = png.encode(image)
    assert 64 * 65 < len(data) < 64 * 65 + 200  # a filter byte per row, and the headers
    np.testing.assert_array_equal(
        cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED), image
    )
    mask = disc(64, 20, 20, 9)
    assert len(png.encode_mask(mask)) < 64 * 9 + 200
    np.testing.assert_array_equal(png.decode(png.encode_mask(mask), "mask") > 0, mask == 1)
    for broken in (b"", b"text", data[:20]):
        with pytest.raises(BadInput, match="mask"):
            png.decode(broken, "mask")


# Bad files


def test_every_bad_file_is_listed_with_its_code_and_the_good_ones_are_kept(tmp_path):
    folder = labelled(tmp_path / "in", {"good.1": noise(1), "good.2": noise(2), "cut": noise(3)})
    (folder / "empty.dcm").write_bytes(b"")
    (folder / "text.dcm").write_bytes(b"hello")
    whole = (folder / "cut.dcm").read_bytes()
    (folder / "cut.dcm").write_bytes(whole[: len(whole) // 2])
    write_dicom(folder / "frames.dcm", noise(3), NumberOfFrames=3)
    write_dicom(folder / "huge.dcm", noise(3), Rows=65535, Columns=65535)
    write_dicom(folder / "evil.dcm", noise(3), SOPInstanceUID="../../evil")
    write_dicom(folder / "nopixels.dcm", noise(3), PixelData=None)
    write_dicom(folder / "renamed.dcm", noise(3), SOPInstanceUID="neither.listed")
    write_dicom(folder / "good.9.dcm", noise(3), SOPInstanceUID="unheard.of")
    (folder / "folder.dcm").mkdir()
    message = refused(folder, tmp_path / "out", "--allow-missing")
    expected = {
        "empty.dcm": "NOT_DICOM",
        "text.dcm": "NOT_DICOM",
        "cut.dcm": "TRUNCATED",
        "frames.dcm": "MULTI_FRAME",
        "huge.dcm": "TOO_LARGE",
        "evil.dcm": "BAD_ID",
        "nopixels.dcm": "NO_PIXELS",
        "renamed.dcm": "BAD_ID",
        "good.9.dcm": "BAD_ID",
        "folder.dcm": "NOT_A_FILE",
    }
    assert rejected(tmp_path / "out") == expected
    assert set(manifest_of(tmp_path / "out").index) == {
        "good.1",
        "good.2",
    }  # written before the refusal
    assert "10 of 12 files rejected" in message
    for name, code in expected.items():
        assert f"{name}: {code}" in message
    assert not list(tmp_path.rglob("evil*.png"))
    prepared(folder, tmp_path / "out", "--max-bad", 10)
    prepared(folder, tmp_path / "out", "--max-bad", "84%")  # 10 of 12 is 83.3 %
    assert refused(folder, tmp_path / "out", "--max-bad", 9)
    assert refused(folder, tmp_path / "out", "--max-bad", "83%")


def test_links_are_followed_only_when_asked(tmp_path):
    folder = labelled(tmp_path / "in", {"a": noise(1), "b": noise(2)})
    (tmp_path / "elsewhere").mkdir()
    shutil.move(folder / "b.dcm", tmp_path / "elsewhere" / "b.dcm")
    (folder / "b.dcm").symlink_to(tmp_path / "elsewhere" / "b.dcm")
    (folder / "loop").symlink_to(folder)
    (folder / "outside").symlink_to(tmp_path / "elsewhere")
    refused(folder, tmp_path / "out")
    assert rejected(tmp_path / "out") == {"b.dcm": "NOT_A_FILE"}
    assert list(manifest_of(tmp_path / "out").index) == ["a"]
    assert set(prepared(folder, tmp_path / "out", "--follow-symlinks").index) == {"a", "b"}


def test_a_pipe_does_not_hang_the_stage(tmp_path):
    folder = labelled(tmp_path / "in", {"a": noise(1)})
    os.mkfifo(folder / "pipe.dcm")
    refused(folder, tmp_path / "out")
    assert rejected(tmp_path / "out") == {"pipe.dcm": "NOT_A_FILE"}


def test_copies_of_a_file_are_kept_once_and_counted(tmp_path, capsys):
    folder = labelled(tmp_path / "in", {"a": noise(1), "b": noise(2)})
    (folder / "again").mkdir()
    shutil.copy(folder / "a.dcm", folder / "again" / "a.dcm")
    assert list(prepared(folder, tmp_path / "out").index) == ["a", "b"]
    assert "1 file is a copy of another" in capsys.readouterr().out
    assert rejected(tmp_path / "out") == {}


def test_two_files_of_one_id_with_different_contents_are_both_rejected(tmp_path):
    folder = labelled(tmp_path / "in", {"a": noise(1), "b": noise(2)})
    write_lines(folder / "train-rle.csv", ["ImageId,EncodedPixels", "a,0 500", "b,-1"])
    write_dicom(folder / "again" / "a.dcm", noise(3))
    for _ in range(2):  # the same when the command runs again
        assert "2 of 3 files rejected" in refused(folder, tmp_path / "out")
        assert rejected(tmp_path / "out") == {
            "a.dcm": "DUPLICATE_ID",
            "again/a.dcm": "DUPLICATE_ID",
        }
        assert list(manifest_of(tmp_path / "out").index) == ["b"]
        assert not list((tmp_path / "out" / "cache").rglob("a.png"))


def test_a_copy_that_has_vanished_counts_as_another_file(tmp_path):
    for name in ("one", "copy"):
        (tmp_path / name).write_bytes(b"the same")
    (tmp_path / "other").write_bytes(b"not the same")
    assert outcome.same_contents([tmp_path / "one", tmp_path / "copy"])
    assert not outcome.same_contents([tmp_path / "one", tmp_path / "other"])
    assert not outcome.same_contents([tmp_path / "one", tmp_path / "gone"])


def test_where_file_name_and_uid_disagree_the_listed_one_names_the_image(tmp_path):
    folder = labelled(tmp_path / "in", {"a": noise(1), "b": noise(2)})
    write_dicom(folder / "a.dcm", noise(1), SOPInstanceUID="1.2.3")
    shutil.move(folder / "b.dcm", folder / "renamed.dcm")
    assert list(prepared(folder, tmp_path / "out").index) == ["a", "b"]
    write_dicom(folder / "a.dcm", noise(1), SOPInstanceUID="b")  # both are listed
    refused(folder, tmp_path / "out", "--allow-missing")
    assert rejected(tmp_path / "out") == {"a.dcm": "BAD_ID"}


def test_identical_pixels_under_two_ids_are_mentioned(tmp_path, capsys):
    prepared(
        labelled(tmp_path / "in", {"a": noise(1), "b": noise(1), "c": noise(2)}), tmp_path / "out"
    )
    assert "2 images share their pixels" in capsys.readouterr().out


def test_colour_images_and_repeated_label_rows_are_mentioned(tmp_path, capsys):
    folder = labelled(tmp_path / "in", {"a": noise(1), "b": cv2.merge([noise(2)] * 3)})
    write_lines(folder / "train-rle.csv", ["ImageId,EncodedPixels", "a,-1", "b,0 5", "b,0 5"])
    assert prepared(folder, tmp_path / "out").loc["b", "mask_pixels"] == 5
    printed = capsys.readouterr().out
    assert "1 colour image converted to grey" in printed
    assert "1 label row is listed twice (warning)" in printed


def test_images_with_less_than_a_tenth_of_the_grey_range_are_counted_and_named(tmp_path, capsys):
    low = noise(2).astype(np.uint16) * 16  # 12 bits, declared as 16: 255 * 16 / 65535 * 255 = 16
    images = {"a": noise(1), **{name: low + np.uint16(at) for at, name in enumerate("bcde")}}
    folder = labelled(tmp_path / "in", images)
    prepared(folder, tmp_path / "out")
    remark = "4 images use less than a tenth of the grey range (warning)"
    named = "b.dcm, c.dcm, d.dcm, ..."
    line = next(line for line in capsys.readouterr().out.splitlines() if remark in line)
    assert line.endswith(f": {named}")
    prepared(folder, tmp_path / "out")  # from the journal
    assert line in capsys.readouterr().out


def test_ids_that_differ_only_in_case_are_all_rejected(tmp_path):
    folder = labelled(tmp_path / "in", {"a": noise(1)})
    write_dicom(folder / "one" / "b.dcm", noise(2))
    write_dicom(folder / "two" / "B.dcm", noise(3))
    write_lines(folder / "train-rle.csv", ["ImageId,EncodedPixels", "a,-1", "b,-1", "B,-1"])
    assert "2 of 3 files rejected" in refused(folder, tmp_path / "out")
    assert rejected(tmp_path / "out") == {"one/b.dcm": "BAD_ID", "two/B.dcm": "BAD_ID"}
    assert list(manifest_of(tmp_path / "out").index) == ["a"]


def test_a_folder_that_cannot_be_listed_is_rejected_and_the_others_are_read(tmp_path, monkeypatch):
    folder = labelled(tmp_path / "in", {"a": noise(1)})
    write_dicom(folder / "closed" / "b.dcm", noise(2))
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):  # not by chmod: root may list everything
            raise PermissionError
        return scan(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        assert "closed: IO" in refused(folder, tmp_path / "out")
    assert rejected(tmp_path / "out") == {"closed": "IO"}
    assert list(manifest_of(tmp_path / "out").index) == ["a"]


def test_a_file_whose_name_is_not_text_is_used_and_listed(tmp_path):
    folder = labelled(tmp_path / "in", {"a": noise(1), "b": noise(2)})
    try:
        (folder / "b.dcm").rename(folder / os.fsdecode(b"\xff.dcm"))
    except OSError:
        pytest.skip("this file system accepts only names that are text")
    assert prepared(folder, tmp_path / "out").loc["b", "source"] == "\\udcff.dcm"
    shutil.copy(folder / os.fsdecode(b"\xff.dcm"), folder / "copy.dcm")
    assert list(prepared(folder, tmp_path / "out").index) == ["a", "b"]


# Labels that do not fit


def test_a_pixel_run_past_the_end_of_the_image_is_a_label_error_and_never_a_silent_resize(tmp_path):
    folder = labelled(tmp_path / "in", {"a": noise(1, 64), "b": noise(2, 128)})
    write_lines(
        folder / "train-rle.csv", ["ImageId,EncodedPixels", "a,4000 100", "b,4000 100"]
    )  # a has 4,096 pixels
    message = refused(folder, tmp_path / "out")
    assert "label of a" in message
    assert "4100" in message
    assert "4096 pixels" in message
    assert "label of b" not in message
    assert rejected(tmp_path / "out") == {"a.dcm": "SIZE_MISMATCH"}
    assert not (tmp_path / "out" / "manifest.csv").exists()


def test_label_errors_stop_later_stages_from_using_an_earlier_manifest(tiny, tmp_path):
    prepared(tiny.folder, tmp_path / "out")
    lines = (tiny.folder / "train-rle.csv").read_text().splitlines()
    write_lines(tiny.folder / "train-rle.csv", [*lines, f"{tiny.positives[0]}, 16000 1000"])
    refused(tiny.folder, tmp_path / "out")
    with pytest.raises(BadInput, match=r"00_prepare_data\.py"):
        run_stage("01_make_folds.py", "--output", tmp_path / "out", "--folds", 2)


def test_labels_without_an_image_fail_unless_allowed(tmp_path):
    folder = labelled(tmp_path / "in", {"a": noise(1)})
    write_lines(folder / "train-rle.csv", ["ImageId,EncodedPixels", "a,-1", "lost,-1"])
    message = refused(folder, tmp_path / "out")
    assert "1 listed id has no image" in message
    assert "lost" in message
    assert list(manifest_of(tmp_path / "out").index) == ["a"]
    assert list(prepared(folder, tmp_path / "out", "--allow-missing").index) == ["a"]


def test_an_id_for_training_and_for_testing_at_once_is_refused(tmp_path):
    folder = labelled(tmp_path / "in", {"a": noise(1)})
    write_lines(folder / "stage_2_sample_submission.csv", ["ImageId,EncodedPixels", "a,-1"])
    assert "has a label and is in the sample submission" in refused(folder, tmp_path / "out")


def test_images_and_labels_of_different_stages_are_noticed(tmp_path):
    folder = labelled(tmp_path / "in", {"a": noise(1)})
    write_lines(folder / "train-rle.csv", ["ImageId,EncodedPixels", "other,-1"])
    assert "no training image has a label" in refused(folder, tmp_path / "out", "--allow-missing")


def test_the_search_names_missing_and_ambiguous_files(tmp_path):
    with pytest.raises(BadInput, match="--input"):
        discovery.search(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="no DICOM, PNG or JPEG file"):
        discovery.search(tmp_path)
    folder = labelled(tmp_path / "in", {"a": noise(1)})
    shutil.copy(folder / "train-rle.csv", folder / "stage_2_train.csv")
    assert "--labels" in refused(folder, tmp_path / "out")
    assert list(prepared(folder, tmp_path / "out", "--labels", folder / "train-rle.csv").index) == [
        "a"
    ]
    (folder / "train-rle.csv").unlink()
    (folder / "stage_2_train.csv").unlink()
    assert "--labels" in refused(folder, tmp_path / "out")


def test_wrong_flags_are_usage_errors(tmp_path, capsys):
    for flags in (
        ["--size", "100"],
        ["--size", "0"],
        ["--max-bad", "few"],
        ["--workers", "-1"],
        ["--unknown"],
    ):
        with pytest.raises(SystemExit) as caught:
            run_stage(STAGE, "--input", tmp_path, *flags)
        assert caught.value.code == 2
    capsys.readouterr()


# A second run, interruptions, damage


def test_a_second_run_touches_no_cached_png_and_gives_the_same_tables(tiny, tmp_path):
    prepared(tiny.folder, tmp_path / "out")
    tables = {name: (tmp_path / "out" / name).read_bytes() for name in TABLES}
    cache = snapshot(tmp_path / "out" / "cache" / "64" / "images")
    prepared(tiny.folder, tmp_path / "out")
    assert {name: (tmp_path / "out" / name).read_bytes() for name in TABLES} == tables
    assert snapshot(tmp_path / "out" / "cache" / "64" / "images") == cache
    prepared(tiny.folder, tmp_path / "out", "--overwrite")
    assert {name: (tmp_path / "out" / name).read_bytes() for name in TABLES} == tables
    assert snapshot(tmp_path / "out" / "cache" / "64" / "images") != cache


@pytest.mark.parametrize("kind", ["images", "masks"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "delete"])
def test_a_damaged_png_in_the_cache_is_made_again(tiny, tmp_path, kind, damage):
    prepared(tiny.folder, tmp_path / "out")
    before = contents(tmp_path / "out")
    path = tmp_path / "out" / "cache" / "64" / kind / f"{tiny.positives[0]}.png"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "delete":
        path.unlink()
    else:
        path.write_bytes({"flip": bytes(data), "cut": bytes(data[:-50]), "empty": b""}[damage])
    assert contents(tmp_path / "out") != before
    prepared(tiny.folder, tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_a_changed_label_or_image_is_prepared_again_and_an_outdated_mask_is_removed(tiny, tmp_path):
    prepared(tiny.folder, tmp_path / "out", size=128)
    first, second, third = tiny.positives
    lines = (tiny.folder / "train-rle.csv").read_text().splitlines()
    new = disc(128, 64, 64, 5)
    lines = [line for line in lines if not line.startswith((f"{first},", f"{second},"))]
    write_lines(
        tiny.folder / "train-rle.csv", [*lines, f"{first}, -1", f"{second}, {plain_encode(new)}"]
    )
    (path,) = tiny.folder.rglob(f"{third}.dcm")
    write_dicom(path, np.full((128, 128), 90, np.uint8) + disc(128, 3, 3, 2))
    manifest = prepared(tiny.folder, tmp_path / "out", size=128)
    masks = tmp_path / "out" / "cache" / "128" / "masks"
    assert not (masks / f"{first}.png").exists()
    assert manifest.loc[first, "positive"] == 0
    np.testing.assert_array_equal(png.read(masks / f"{second}.png") > 0, new == 1)
    assert set(
        np.unique(png.read(tmp_path / "out" / "cache" / "128" / "images" / f"{third}.png"))
    ) == {90, 91}
    prepared(tiny.folder, tmp_path / "scratch", size=128)
    assert contents(tmp_path / "out") == contents(tmp_path / "scratch")


@pytest.mark.parametrize("then", ["changed", "gone"])
def test_a_file_that_changes_while_it_is_read_is_read_again_by_the_next_run(
    tmp_path, monkeypatch, then
):
    folder = labelled(tmp_path / "in", {"a": noise(1), "b": noise(2)})
    decode = dicom.decode

    def decode_and_change(header, dataset):
        read = decode(header, dataset)
        if header.image_id == "b" and then == "gone":
            (folder / "b.dcm").unlink()
        elif header.image_id == "b":
            write_dicom(folder / "b.dcm", noise(3))
        return read

    with monkeypatch.context() as patch:
        patch.setattr(dicom, "decode", decode_and_change)
        first = prepared(folder, tmp_path / "out")
    assert list(first.index) == ["a", "b"]
    if then == "gone":
        assert "1 listed id has no image" in refused(folder, tmp_path / "out")
    else:
        assert prepared(folder, tmp_path / "out").loc["b", "sha256"] != first.loc["b", "sha256"]


def test_without_its_sample_submission_a_second_run_has_no_test_images(tiny, tmp_path):
    prepared(tiny.folder, tmp_path / "out")
    (tiny.folder / "stage_2_sample_submission.csv").unlink()
    manifest = prepared(tiny.folder, tmp_path / "out")
    assert set(manifest["split"]) == {"train"}
    assert not (tmp_path / "out" / "sample_submission.csv").exists()


def test_an_interruption_while_the_tables_are_written_does_no_damage(tiny, tmp_path, monkeypatch):
    prepared(tiny.folder, tmp_path / "whole")
    for moment in range(1, 6):  # rejected, manifest, labels, sample submission, record
        real, calls = atomic.write_text, []

        def interrupted(path, text, real=real, calls=calls, moment=moment):
            calls.extend([path] if path.parent == tmp_path / "out" else [])
            if len(calls) == moment:
                raise KeyboardInterrupt
            real(path, text)

        with monkeypatch.context() as patch:
            patch.setattr(atomic, "write_text", interrupted)
            with pytest.raises(KeyboardInterrupt):
                prepared(tiny.folder, tmp_path / "out")
        assert len(calls) == moment
    prepared(tiny.folder, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_run_that_is_killed_five_times_gives_the_same_bytes(real_data, siim, tmp_path):
    folders = ["--input", real_data / "siim", "--output", tmp_path / "out"]
    command = [sys.executable, STAGE, *folders, "--size", "512"]
    images = tmp_path / "out" / "cache" / "512" / "images"
    # The number of cached PNGs at which a run is killed
    moments = sorted(random.Random(4).sample(range(1, 75), 5))
    killed, groups = 0, []
    for number, moment in enumerate(moments):
        process = subprocess.Popen(
            [*map(str, command), "--workers", str(1 + number % 2)],
            cwd=ROOT,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            end = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < end:
                if images.is_dir() and sum(1 for _ in images.glob("[!.]*.png")) >= moment:
                    break
        finally:
            process.kill()
            process.wait()
        killed += process.returncode == -signal.SIGKILL
        groups.append(process.pid)
    assert killed >= 3  # on a busy machine a run may end before it is noticed
    for group in groups:  # workers outlive the run that started them
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    subprocess.run(
        [*map(str, command), "--workers", "1"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=60,
    )
    assert contents(tmp_path / "out") == contents(siim)
    assert not list((tmp_path / "out" / "cache").rglob(".*.tmp"))
    assert len(journal.read(tmp_path / "out" / artifacts.Cache(512).journal)) == 90


def test_half_written_files_of_killed_runs_are_removed_from_the_cache(tiny, tmp_path):
    prepared(tiny.folder, tmp_path / "out")
    before = contents(tmp_path / "out")
    for kind in ("images", "masks"):
        (tmp_path / "out" / "cache" / "64" / kind / ".gone.png.123.tmp").write_bytes(b"half")
    prepared(tiny.folder, tmp_path / "out")
    assert contents(tmp_path / "out") == before
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_damage_to_the_journal_costs_only_time(tiny, tmp_path):
    prepared(tiny.folder, tmp_path / "out")
    before = contents(tmp_path / "out")
    path = tmp_path / "out" / artifacts.Cache(64).journal
    whole = path.read_bytes()
    at = whole.index(b'"mask_pixels": ') + 15
    for data in (
        b"",
        b"\xff\x00",
        whole[: len(whole) // 2],
        whole[:at] + b"9" + whole[at + 1 :],
        whole[::-1],
    ):
        path.write_bytes(data)
        prepared(tiny.folder, tmp_path / "out")
        assert contents(tmp_path / "out") == before


def test_rejected_files_are_tried_again(tmp_path):
    folder = labelled(tmp_path / "in", {"a": noise(1), "b": noise(2)})
    whole = (folder / "b.dcm").read_bytes()
    (folder / "b.dcm").write_bytes(whole[:-100])
    assert "TRUNCATED" in refused(folder, tmp_path / "out")
    (folder / "b.dcm").write_bytes(whole)
    assert list(prepared(folder, tmp_path / "out").index) == ["a", "b"]


def test_read_only_input_works_and_is_not_touched(tiny, tmp_path):
    before = snapshot(tiny.folder)
    for path in [tiny.folder, *tiny.folder.rglob("*")]:
        path.chmod(0o555)
    try:
        prepared(tiny.folder, tmp_path / "out")
    finally:
        for path in [tiny.folder, *tiny.folder.rglob("*")]:
            path.chmod(0o755)
    assert snapshot(tiny.folder) == before


def test_an_output_folder_that_cannot_be_made_is_reported_at_once(tiny, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    assert "cannot write to" in refused(tiny.folder, tmp_path / "file" / "out")


def test_a_disk_without_room_for_the_cache_is_reported_before_anything_is_written(
    tiny, tmp_path, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**20))
    # 8 images with a label or in the sample submission, of 512 x 513 bytes: 2.004 MiB
    assert "about 3 MiB are needed, 1 are free" in refused(tiny.folder, tmp_path / "out", size=512)
    assert not (tmp_path / "out" / "cache").exists()
    prepared(tiny.folder, tmp_path / "out", size=64)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
    prepared(tiny.folder, tmp_path / "out", size=64)  # they are in the cache


def test_an_entry_of_another_version_is_not_trusted(tiny, tmp_path, monkeypatch):
    prepared(tiny.folder, tmp_path / "out")
    monkeypatch.setattr(one_image, "VERSION", one_image.VERSION + 1)
    monkeypatch.setattr(png, "encode", lambda image: b"made again")
    assert set(prepared(tiny.folder, tmp_path / "out")["sha256"]) == {
        hashlib.sha256(b"made again").hexdigest()
    }


def test_a_rejection_is_bad_input_with_a_code():
    assert issubclass(dicom.Rejected, BadInput)
    assert dicom.Rejected("IO", "message").code == "IO"
