"""The three tables a user brings: every usual spelling is read, all errors listed."""

import gzip
import os
import shlex
import subprocess
import sys
import tracemalloc
import zipfile

import pytest

from pneumothorax.data import labels
from pneumothorax.errors import BadInput

KAGGLE = "ImageId, EncodedPixels\na, 1 4 5 2\na, 10 3\nb, -1\n"
SAME = {"a": ("1 4 5 2", "10 3"), "b": ()}


def written(tmp_path, data, name="train-rle.csv"):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def read(tmp_path, data):
    return labels.read(written(tmp_path, data))


def refusal(tmp_path, data, reader=labels.read):
    """The message of the BadInput for this table."""
    with pytest.raises(BadInput) as caught:
        reader(written(tmp_path, data))
    return str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        KAGGLE,
        KAGGLE.replace(", ", ","),
        "\ufeff" + KAGGLE,
        KAGGLE.replace("\n", "\r\n"),
        KAGGLE.replace("\n", "\n\n"),
        KAGGLE.replace("\n", "\n , \n").replace(" , \n", "", 1),
        KAGGLE.rstrip("\n"),
        KAGGLE.replace("b, -1", "b, "),
        KAGGLE.replace("a, 10 3", '"a"," 10 3 "'),
    ],
    ids=(
        "Kaggle's; no spaces; BOM; CRLF; blank lines; empty cells; no last newline; "
        "empty for -1; quoted".split("; ")
    ),
)
def test_the_same_table_written_differently_gives_the_same_labels(tmp_path, data):
    found = read(tmp_path, data)
    assert found.rows == SAME
    assert sum(map(bool, found.rows.values())) == 1
    assert found.repeated == 0


def test_ids_that_look_like_numbers_or_missing_values_stay_text(tmp_path):
    assert set(read(tmp_path, "ImageId,EncodedPixels\n1.20,-1\nNA,-1\n007,-1\n1e5,-1\n").rows) == {
        "1.20",
        "NA",
        "007",
        "1e5",
    }


def test_a_row_that_is_listed_twice_counts_once_and_is_reported(tmp_path):
    found = read(tmp_path, "ImageId,EncodedPixels\na,1 2\na,1 2\nb,-1\nb,-1\n")
    assert found.rows == {"a": ("1 2",), "b": ()}
    assert found.repeated == 2


def test_the_real_label_file_has_the_known_counts(real_data):
    found = labels.read(real_data / "labels" / "stage_2_train.csv.gz")
    # FACTS.md
    assert len(found.rows) == 12047
    assert sum(map(bool, found.rows.values())) == 2669
    assert sum(len(rows) for rows in found.rows.values()) == 3576
    assert sum(1 for rows in found.rows.values() if len(rows) > 1) == 624
    assert max(len(rows) for rows in found.rows.values()) == 10


@pytest.mark.parametrize(
    "header",
    [
        "",
        "ImageId",
        "EncodedPixels,ImageId",
        "ImageId;EncodedPixels",
        "id,rle",
        "ImageId,EncodedPixels,Extra",
        "a,-1",
    ],
)
def test_wrong_columns_are_refused_and_the_found_ones_named(tmp_path, header):
    message = refusal(tmp_path, f"{header}\na,-1\n")
    assert "ImageId, EncodedPixels" in message
    assert header.split(",")[0] in message


@pytest.mark.parametrize(
    "cell",
    [
        "1",
        "1 2 3",
        "-1 2",
        "1 -2",
        "1.5 2",
        "NaN",
        "nan",
        "None",
        "1  2",
        "1\t2",
        "\u0661 \u0662",
        "\uff11 \uff12",
        "1 2;3 4",
        "-2",
        "0x1 1",
        "1 0",
        "0 00 1 2",
        "1 2 3 0",
    ],
)
def test_each_malformed_cell_is_refused_with_line_and_id(tmp_path, cell):
    message = refusal(tmp_path, f"ImageId,EncodedPixels\ngood,1 2\nbad,{cell}\n")
    assert "line 3" in message
    assert "'bad'" in message
    assert "good" not in message


def test_all_errors_are_listed_at_once(tmp_path):
    message = refusal(
        tmp_path,
        "ImageId,EncodedPixels\na,1\nb,x y\n../evil,-1\nc,-1\nc,1 2\nd,1 2\nd,-1\n=cmd,-1\n",
    )
    assert "6 errors" in message
    for line in (2, 3, 4, 6, 8, 9):  # the header is line 1
        assert f"line {line}," in message
    assert message.count("both '-1' and a mask") == 2


def test_ragged_rows_are_refused_not_shifted(tmp_path):
    message = refusal(tmp_path, "ImageId,EncodedPixels\na,1 2,3\nb\nc,-1\n")
    assert "line 2: 3 cells" in message
    assert "line 3: 1 cell " in message


@pytest.mark.parametrize(
    "data",
    [
        KAGGLE.encode("utf-16"),
        b"ImageId,EncodedPixels\n\xff\xfe,-1\n",
        KAGGLE.replace(",", ";").encode(),
        KAGGLE.replace(",", "\t").encode(),
    ],
    ids=["UTF-16", "Latin-1", "semicolons", "tabs"],
)
def test_other_encodings_and_separators_are_refused(tmp_path, data):
    assert "train-rle.csv" in refusal(tmp_path, data)


@pytest.mark.parametrize(
    "image_id", ["", "../evil", "/etc/x", "=cmd", "a" * 300, ".hidden", "a b", "a\0b", "ä"]
)
def test_ids_that_cannot_name_a_file_are_refused(tmp_path, image_id):
    assert "not an image id" in refusal(tmp_path, f"ImageId,EncodedPixels\n{image_id},-1\n")


def test_a_cell_of_many_megabytes_is_refused(tmp_path):
    assert refusal(tmp_path, "ImageId,EncodedPixels\na," + "1 1 " * 1_100_000 + "1 1\n")
    assert "larger than field limit" in refusal(
        tmp_path, "ImageId,EncodedPixels\na," + "1" * 9_000_000 + "\n"
    )


def test_an_empty_or_missing_or_damaged_file_is_refused(tmp_path):
    assert "no rows" in refusal(tmp_path, "ImageId,EncodedPixels\n")
    with pytest.raises(BadInput, match="does not exist"):
        labels.read(tmp_path / "missing.csv")
    packed = gzip.compress(KAGGLE.encode() * 1000)
    assert (
        labels.read(written(tmp_path, gzip.compress(KAGGLE.encode()), "whole.csv.gz")).rows == SAME
    )
    for name, data in {
        "cut": packed[:-20],
        "text": KAGGLE.encode(),
        "flipped": packed[:15] + b"\xff\xff\xff" + packed[18:],
    }.items():
        with pytest.raises(BadInput, match="cannot be read"):
            labels.read(written(tmp_path, data, f"{name}.csv.gz"))


def zipped(path, text=KAGGLE):
    with zipfile.ZipFile(path, "w") as archive:
        if text:
            archive.writestr("train-rle.csv", text)
    return path


@pytest.mark.parametrize("name", ["train-rle.csv", "train-rle.csv.gz"])
@pytest.mark.parametrize("text", [KAGGLE, ""])
def test_a_zip_file_under_the_name_of_a_table_is_named(tmp_path, name, text):
    found = (
        rf"{name} is a zip archive \(or a spreadsheet\), not a CSV file: rename it to {name}.zip"
    )
    with pytest.raises(BadInput, match=found):
        labels.read(zipped(tmp_path / name, text))


def test_the_command_for_a_zip_file_unpacks_the_table(tmp_path):
    path = zipped(tmp_path / "train-rle.csv.zip")
    with pytest.raises(BadInput, match="unpack it with python -m zipfile -e ") as caught:
        labels.read(path)
    _, _, arguments = str(caught.value).partition("unpack it with python ")
    subprocess.run([sys.executable, *shlex.split(arguments)], check=True)
    assert labels.read(tmp_path / "train-rle.csv").rows == SAME


def test_a_gzip_file_under_the_name_of_a_table_is_named(tmp_path):
    message = refusal(tmp_path, gzip.compress(KAGGLE.encode()))
    assert message.endswith("is a gzip file, not a CSV file: rename it to train-rle.csv.gz")


@pytest.mark.parametrize(
    "reader",
    [labels.read, labels.read_sample, labels.read_patients, labels.read_ids, labels.header],
)
def test_a_folder_in_place_of_a_table_is_named(tmp_path, reader):
    (tmp_path / "train-rle.csv").mkdir()
    with pytest.raises(BadInput, match=r"train-rle\.csv is a folder, not a CSV file"):
        reader(tmp_path / "train-rle.csv")


def test_reading_neither_waits_for_a_pipe_nor_inflates_a_bomb(tmp_path, monkeypatch):
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.csv")
        with pytest.raises(BadInput, match="not a regular file"):
            labels.read(tmp_path / "pipe.csv")
    monkeypatch.setattr(labels, "MAX_BYTES", 1 << 20)
    bomb = written(
        tmp_path, gzip.compress(b"ImageId,EncodedPixels\n" + bytes(2 << 20)), "bomb.csv.gz"
    )
    with pytest.raises(BadInput, match="more than 1 MiB"):
        labels.read(bomb)
    bomb = written(tmp_path, gzip.compress(bytes(64 << 20)), "large.csv.gz")
    tracemalloc.start()
    with pytest.raises(BadInput, match="more than 1 MiB"):
        labels.read(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 << 20


def test_a_sample_submission_keeps_its_order_and_each_id_once(tmp_path):
    path = written(tmp_path, "ImageId,EncodedPixels\nb,-1\na,1 2\nb,3 4\n")
    sample = labels.read_sample(path)
    assert sample.image_ids == ("b", "a")
    assert sample.columns == ("ImageId", "EncodedPixels")
    assert "line 2" in refusal(tmp_path, "ImageId,EncodedPixels\n../b,-1\n", labels.read_sample)
    assert "no rows" in refusal(tmp_path, "ImageId,EncodedPixels\n", labels.read_sample)


def test_the_real_sample_submission_has_3205_ids(real_data):
    sample = labels.read_sample(real_data / "labels" / "stage_2_sample_submission.csv")
    assert len(sample.image_ids) == 3205
    assert all(image_id.startswith("ID_") for image_id in sample.image_ids)


def test_a_patients_file_gives_each_image_one_patient(tmp_path):
    assert labels.read_patients(written(tmp_path, "ImageId,PatientId\na,1\nb,01\na,1\n")) == {
        "a": "1",
        "b": "01",
    }
    assert "two patients" in refusal(
        tmp_path, "ImageId,PatientId\na,1\na,2\n", labels.read_patients
    )
    assert "line 2" in refusal(tmp_path, "ImageId,PatientId\na,\n", labels.read_patients)
    assert "PatientId" in refusal(tmp_path, "ImageId,EncodedPixels\na,1\n", labels.read_patients)


def test_patients_as_published_are_those_of_the_file_names(tmp_path):
    published = "Kaggle_ID,NIH_ID\na,00028864_007.png\nb,00028864_012.png\nc,00000001_000.png\n"
    plain = "ImageId,PatientId\na,00028864\nb,00028864\nc,00000001\n"
    assert labels.read_patients(written(tmp_path, published)) == labels.read_patients(
        written(tmp_path, plain, "plain.csv")
    )
    # A file name is an ordinary patient id under the other header.
    other = written(tmp_path, "ImageId,PatientId\na,00028864_007.png\n")
    assert labels.read_patients(other) == {"a": "00028864_007.png"}


def test_all_errors_in_patients_as_published_are_listed_with_their_lines(tmp_path):
    rows = "a,00028864\nb,00028864_007\nc,\nd,x_007.png\ne,00000001_000.png\ne,00000002_000.png"
    message = refusal(tmp_path, f"Kaggle_ID,NIH_ID\n{rows}\n", labels.read_patients)
    for line, problem in {
        2: ", 'a': not a file name like '00028864_007.png': '00028864'",
        3: ", 'b': not a file name like '00028864_007.png': '00028864_007'",
        4: ": needs an image id and a patient id",
        5: ", 'd': not a file name like '00028864_007.png': 'x_007.png'",
        7: ", 'e': listed for two patients",
    }.items():
        assert f"line {line}{problem}" in message
    assert "5 errors" in message


@pytest.mark.parametrize(
    "header", ["NIH_ID,Kaggle_ID", "Kaggle_ID,PatientId", "Kaggle_ID,NIH_ID,x", ""]
)
def test_a_patients_file_with_other_columns_is_refused_naming_both_forms(tmp_path, header):
    message = refusal(tmp_path, f"{header}\na,00028864_007.png\n", labels.read_patients)
    assert "expected the columns ImageId, PatientId or Kaggle_ID, NIH_ID; found" in message


def test_the_real_patients_file_has_6171_people_in_either_form(real_data, tmp_path):
    path = real_data / "labels" / "nih_patients.csv"
    patients = labels.read_patients(path)
    assert len(patients) == 12047
    assert len(set(patients.values())) == 6171  # FACTS.md
    rows = [f"{image_id},{patient}_000.png" for image_id, patient in patients.items()]
    published = written(tmp_path, "\n".join(["Kaggle_ID,NIH_ID", *rows]))
    assert labels.read_patients(published) == patients
