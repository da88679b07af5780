"""What is sent to somebody else has no private ids, and equal content gives equal files."""

import csv
import gzip
import os
import zipfile

import pytest

from pneumothorax.pipeline import sharing

PUBLISHED = "1.2.276.0.7230010.3.1.4.8323329.6904.1517875201.850819"  # of SIIM-ACR


def test_every_id_of_the_competition_is_published(real_data):
    tables = ["stage_2_train.csv.gz", "stage_2_sample_submission.csv", "stage_1_test_images.csv.gz"]
    ids = set()
    for name in tables:
        path = real_data / "labels" / name
        with (gzip.open if name.endswith(".gz") else open)(path, "rt") as file:
            ids |= {row["ImageId"] for row in csv.DictReader(file, skipinitialspace=True)}
    assert len(ids) > 12000
    assert sharing.public_ids(ids) == {image_id: image_id for image_id in ids}


@pytest.mark.parametrize(
    "image_id",
    [
        "1.2.840.113619.2.55.3.604688119.971.1517875201.1",  # of a scanner
        "1.2.276.0.7230010.3.1.4.8323329.6904.1617875201.850819",  # same software, other year
        "MUELLER_HANS_1957",
        "ID_12345678",  # stage 2 has nine digits
        f"{PUBLISHED}.1",
        f"ID_b6d3a9ee1{chr(10)}",
    ],
)
def test_any_other_id_becomes_the_images_number(image_id):
    ids = sharing.public_ids([PUBLISHED, image_id, "ID_b6d3a9ee1"])
    assert list(ids.values()) == [PUBLISHED, "image-2", "ID_b6d3a9ee1"]


def test_a_patient_has_the_same_number_in_all_tables_and_nothing_else_changes(tmp_path):
    (tmp_path / "a.csv").write_text(
        'run,image_id,patient_id,dice\n"x, y",scan1,8f3a,0.50\nz,scan2,,1.0\nz,scan3,77b0,\n'
    )
    (tmp_path / "b.csv").write_text("image_id,patient_id\nscan3,77b0\nscan4,c001\n")
    (tmp_path / "c.csv").write_text("run,dice\nx,0.5000\n")
    (tmp_path / "d.json").write_text("{}")
    ids = {f"scan{number}": f"image-{number}" for number in range(1, 5)}
    paths = ["a.csv", "b.csv", "c.csv", "d.json"]
    assert sharing.public_files(tmp_path, paths, ids) == {
        "a.csv": b'run,image_id,patient_id,dice\n"x, y",image-1,patient-1,0.50\n'
        b"z,image-2,,1.0\nz,image-3,patient-2,\n",
        "b.csv": b"image_id,patient_id\nimage-3,patient-2\nimage-4,patient-3\n",
        "c.csv": b"run,dice\nx,0.5000\n",
        "d.json": tmp_path / "d.json",
    }


def test_equal_content_gives_equal_bytes_whenever_and_in_whatever_order_it_was_written(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).write_bytes(b"content")
    os.utime(tmp_path / "old", (10**9, 10**9))
    sharing.write_zip(tmp_path / "1.zip", {"a": tmp_path / "old", "b/c": b"more"})
    sharing.write_zip(tmp_path / "2.zip", {"b/c": b"more", "a": tmp_path / "new"})
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "1.zip") as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            "a": b"content",
            "b/c": b"more",
        }
