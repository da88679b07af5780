"""The submission CSV: the sample's header, ids and order; read back before it is written."""

import csv

import pytest

from pneumothorax.data import labels
from pneumothorax.errors import BadInput
from pneumothorax.submission import writing
from tests.helpers.stages import write_lines


@pytest.mark.parametrize("header", ["ImageId,EncodedPixels", "ImageId, EncodedPixels"])
def test_a_submission_keeps_the_header_and_order_of_the_sample(tmp_path, header):
    sample = labels.read_sample(
        write_lines(tmp_path / "sample.csv", [header, "b,-1", "a,-1", "b,-1"])
    )
    writing.write(tmp_path / "submission.csv", sample, {"a": "-1", "b": "0 3"})
    assert (tmp_path / "submission.csv").read_bytes() == f"{header}\nb,0 3\na,-1\n".encode()


def test_a_submission_that_does_not_read_back_is_not_written(tmp_path, monkeypatch):
    sample = labels.read_sample(
        write_lines(tmp_path / "sample.csv", ["ImageId,EncodedPixels", "a,-1"])
    )
    writer = csv.writer
    monkeypatch.setattr(csv, "writer", lambda file, **how: writer(file, delimiter=";", **how))
    with pytest.raises(RuntimeError, match="do not read back"):
        writing.write(tmp_path / "submission.csv", sample, {"a": "-1"})
    assert not (tmp_path / "submission.csv").exists()


def test_a_submission_is_warned_about_only_when_all_rows_or_no_rows_are_empty():
    assert writing.warnings({"a": "-1", "b": "-1"}, 0.222) == [
        "warning: no image has a predicted pneumothorax; 22.2% of the training images have one"
    ]
    assert writing.warnings({"a": "0 1", "b": "0 2"}, 0.222) == [
        "warning: every image has a predicted pneumothorax; 22.2% of the training images have one"
    ]
    assert writing.warnings({"a": "0 1", "b": "-1"}, 0.222) == []


@pytest.mark.parametrize("rows", [{"a": "-1"}, {"a": "-1", "b": "-1", "c": "-1"}])
def test_a_submission_with_missing_or_extra_ids_is_refused(tmp_path, rows):
    sample = labels.read_sample(
        write_lines(tmp_path / "sample.csv", ["ImageId,EncodedPixels", "a,-1", "b,-1"])
    )
    with pytest.raises(BadInput, match=r"\(1 id\)"):
        writing.write(tmp_path / "submission.csv", sample, rows)
    assert not (tmp_path / "submission.csv").exists()
