"""The data doctor: what --verify says about a data set before hours of training."""

from types import SimpleNamespace

import pytest
from pydicom.uid import JPEGLSLossless

from pneumothorax.data import doctor
from pneumothorax.errors import BadInput
from tests.helpers.dicoms import write_dicom
from tests.helpers.images import disc, noise, plain_encode
from tests.helpers.stages import run_stage, write_lines


def row(image_id, *, positive=0, pixels="", mask="", split="train", sex="F"):
    """The columns of a manifest row that the doctor looks at."""
    return {
        "image_id": image_id,
        "split": split,
        "positive": positive,
        "sha256": pixels or image_id,
        "mask_sha256": mask,
        "sex": sex,
        "height": 1024,
        "width": 1024,
        "decoder": "opencv",
    }


def verify(folder, tmp_path, *flags):
    common = ["--input", folder, "--output", tmp_path / "out", "--workers", 1]
    run_stage("00_prepare_data.py", "--verify", *common, *flags)


def test_the_same_radiograph_under_two_ids_is_listed_and_contradictory_labels_give_a_warning():
    rows = [row("a", pixels="1"), row("b", pixels="1"), row("c", pixels="2"), row("e", pixels="3")]
    rows += [row("d", pixels="2", positive=1, mask="m"), row("f", pixels="3", split="test")]
    lines = doctor.same_radiographs(rows)
    assert lines == [
        "2 groups of ids share a radiograph:",
        "  a, b",
        "  e, f",  # f is a test image, without a label to contradict
        "1 group of ids shares a radiograph but not the label (warning):",
        "  c, d",
    ]


@pytest.mark.parametrize(
    "positives, images, warned",
    [
        (44, 200, False),
        (9, 10, True),
        (3, 6, False),
        (50, 1000, True),
        (480, 1000, True),
        (0, 3, False),
    ],
)
def test_a_share_of_positives_that_chance_does_not_explain_gives_a_warning(
    positives, images, warned
):
    rows = [row(str(n), positive=int(n < positives)) for n in range(images)]
    assert bool(doctor.share_of_positives(rows)) == warned


def test_verify_reports_the_real_files_and_writes_nothing(real_data, tmp_path, capsys):
    verify(real_data / "siim", tmp_path)
    printed = capsys.readouterr().out
    assert "sizes: 90 1024 x 1024" in printed
    assert printed.endswith("90 files checked, nothing written\n")
    assert not (tmp_path / "out").exists()


def test_verify_lists_its_findings_and_fails_where_training_would_be_wrong(tmp_path, capsys):
    folder = tmp_path / "in"
    same = noise(1)
    for name in ("a", "b"):
        write_dicom(folder / f"{name}.dcm", same)
    write_dicom(folder / "c.dcm", noise(2), PatientSex="")
    write_dicom(folder / "stranger.dcm", noise(3))
    (folder / "broken.dcm").write_bytes(b"")
    text = plain_encode(disc(128, 60, 60, 9))
    write_lines(folder / "train-rle.csv", ["ImageId,EncodedPixels", "a,-1", f"b,{text}", "c,-1"])
    with pytest.raises(BadInput, match=r"1 of 5 files rejected"):
        verify(folder, tmp_path)
    printed = capsys.readouterr().out
    assert "2 files are not used:" in printed
    assert "stranger.dcm: UNLABELLED" in printed
    assert "broken.dcm: NOT_DICOM" in printed
    assert "but not the label (warning):\n  a, b\n" in printed
    assert "sizes: 3 128 x 128" in printed
    assert "sexes: 2 F, 1 unknown" in printed
    assert not (tmp_path / "out").exists()
    verify(folder, tmp_path, "--max-bad", 1)


def test_images_without_any_positive_are_refused(tmp_path):
    folder = tmp_path / "in"
    write_dicom(folder / "a.dcm", noise(1))
    write_lines(folder / "train-rle.csv", ["ImageId,EncodedPixels", "a,-1"])
    with pytest.raises(BadInput, match="no training image is positive"):
        verify(folder, tmp_path)


@pytest.mark.parametrize("missing", [[], [JPEGLSLossless]])
def test_missing_decoders_are_named_with_the_command(monkeypatch, missing):
    monkeypatch.setattr(
        doctor, "get_decoder", lambda syntax: SimpleNamespace(is_available=syntax not in missing)
    )
    lines = doctor.missing_decoders()
    assert len(lines) == len(missing)
    for line in lines:
        assert line.startswith(
            "no decoder for JPEG-LS Lossless Image Compression; to read such files: python"
        )
