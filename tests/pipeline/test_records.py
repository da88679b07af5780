"""Whole files or none, journals that survive a kill, records that notice changes."""

import errno
import hashlib
import os

import pandas as pd
import pytest

from pneumothorax.errors import BadInput
from pneumothorax.inference import results
from pneumothorax.pipeline import artifacts, atomic, journal, records

RECORD = records.Record("made.json", "00_made.py")


# Atomic files


def test_a_file_that_cannot_be_filled_leaves_the_old_one_and_no_temporary_file(tmp_path):
    path = tmp_path / "a.txt"
    atomic.write_text(path, "old")
    for error in (OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), ValueError()):

        def fill(file, error=error):
            file.write(b"half of the n")
            file.flush()
            assert path.read_text() == "old"
            raise error

        with pytest.raises(type(error)):
            atomic.write(path, fill)
        assert path.read_text() == "old"
        assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_a_failed_rename_leaves_the_old_file_and_no_temporary_file(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    atomic.write_text(path, "old")

    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError):
        atomic.write_text(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_the_new_content_is_on_disk_before_it_takes_the_name(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("replace"), replace(a, b)))
    atomic.write_text(tmp_path / "new" / "folder" / "a.txt", "one\ntwo\n")
    assert order == ["fsync", "replace"]
    assert (tmp_path / "new" / "folder" / "a.txt").read_bytes() == b"one\ntwo\n"


def failing_fsync(monkeypatch, number):
    def fsync(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    atomic.say_once.cache_clear()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM])
def test_a_disk_without_fsync_is_mentioned_once_and_used(tmp_path, monkeypatch, capsys, number):
    failing_fsync(monkeypatch, number)
    for name in ("a", "b"):
        atomic.write_text(tmp_path / name, name)
        assert (tmp_path / name).read_text() == name
    said = capsys.readouterr().err
    assert said.startswith(f"note: this disk has no fsync ({os.strerror(number)}): ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_an_fsync_that_lost_data_is_an_error_that_names_the_file(tmp_path, monkeypatch, number):
    failing_fsync(monkeypatch, number)
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        atomic.write_text(tmp_path / "a", "a")
    assert caught.value.filename == str(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_an_error_without_a_number_keeps_its_message(tmp_path):
    def fill(_):
        raise OSError("8 requested and 4 written")  # as numpy says it

    with pytest.raises(OSError, match="8 requested and 4 written"):
        atomic.write(tmp_path / "a", fill)


def test_sweeping_removes_only_temporary_files(tmp_path):
    for name in (".a.png.123.tmp", "a.png", ".hidden", "b.tmp"):
        (tmp_path / name).write_text("x")
    atomic.sweep(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".hidden", "a.png", "b.tmp"]


def test_the_next_writer_of_a_file_removes_what_a_killed_run_left_of_it(tmp_path):
    for name in (".a.txt.123.tmp", ".b.txt.123.tmp"):
        (tmp_path / name).write_text("half")
    atomic.write_text(tmp_path / "a.txt", "whole")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".b.txt.123.tmp", "a.txt"]


def test_equal_values_give_equal_json_bytes(tmp_path):
    atomic.write_json(tmp_path / "a.json", {"b": 1, "a": {"d": "é", "c": None}})
    atomic.write_json(tmp_path / "b.json", {"a": {"c": None, "d": "é"}, "b": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


# Journals


def test_a_journal_returns_the_last_entry_of_each_name(tmp_path):
    path = tmp_path / "journal.jsonl"
    with journal.Journal(path) as first:
        assert first.entries == {}
        first.append("a", {"key": 1})
        first.append("b", {"key": 2})
        first.append("a", {"key": 3})
    with journal.Journal(path) as second:
        assert second.entries == {"a": {"key": 3}, "b": {"key": 2}}
    assert len(path.read_text().splitlines()) == 2


def test_a_journal_drops_a_last_line_torn_anywhere_and_continues_after_it(tmp_path):
    path = tmp_path / "journal.jsonl"
    with journal.Journal(path) as whole:
        whole.append("a", {"key": 1})
        whole.append("b", {"key": "ü{}"})
    data = path.read_bytes()
    first = data.index(b"\n") + 1
    for length in range(first, len(data) - 1):
        path.write_bytes(data[:length])
        with journal.Journal(path) as torn:
            assert torn.entries == {"a": {"key": 1}}, length
            torn.append("c", {"key": 4})
        assert journal.read(path) == {"a": {"key": 1}, "c": {"key": 4}}


def test_a_journal_line_can_be_read_as_soon_as_it_is_appended(tmp_path):
    with journal.Journal(tmp_path / "journal.jsonl") as open_one:
        open_one.append("a", {"key": 1})
        assert journal.read(tmp_path / "journal.jsonl") == {"a": {"key": 1}}


def test_a_journal_line_with_a_flipped_byte_is_dropped(tmp_path):
    path = tmp_path / "journal.jsonl"
    with journal.Journal(path) as whole:
        whole.append("a", {"row": {"mask_pixels": 797, "sha256": "abc"}})
        whole.append("b", {"row": {"mask_pixels": 5}})
    data = path.read_bytes()
    for at in range(data.index(b"\n")):
        for bit in (1, 2, 64):
            path.write_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
            assert journal.read(path) == {"b": {"row": {"mask_pixels": 5}}}, (at, bit)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"null",
        b"[1]",
        b"3",
        b'"text"',
        b"{}",
        b'{"key": 1}',
        b"\xff\xfe\x00",
        b'{"name": ["a"]}',
        b"{" * 20000,
        b"[" * 99999,
    ],
)
def test_lines_that_are_not_entries_are_skipped(tmp_path, line):
    with journal.Journal(tmp_path / "j") as whole:
        whole.append("a", {"key": 1})
    (tmp_path / "j").write_bytes(line + b"\n" + (tmp_path / "j").read_bytes())
    assert journal.read(tmp_path / "j") == {"a": {"key": 1}}


# Records


@pytest.fixture
def sealed(tmp_path):
    """An output folder with an input table, an output table and their record."""
    (tmp_path / "in.csv").write_text("in")
    (tmp_path / "out.csv").write_text("out")
    inputs = records.hashes(tmp_path, ["in.csv"]) | {"label file": "abc"}
    records.write(
        tmp_path, RECORD, settings={"size": 1}, inputs=inputs, outputs=["out.csv"], leaks=0
    )
    return tmp_path


def test_a_record_of_unchanged_files_is_accepted(sealed):
    body = records.require(sealed, RECORD)
    assert body["settings"] == {"size": 1}
    assert body["leaks"] == 0
    assert records.is_current(sealed, RECORD, settings={"size": 1}, inputs=body["inputs"])
    assert body["inputs"]["in.csv"] == hashlib.sha256(b"in").hexdigest()


def test_a_missing_record_names_the_command(tmp_path):
    with pytest.raises(BadInput, match=r"run 00_made\.py first"):
        records.require(tmp_path, RECORD)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", "null", '{"settings": {}, "inputs": {}}', "\x00", "[" * 99999]
)
def test_a_damaged_record_names_the_command(sealed, text):
    (sealed / "made.json").write_text(text)
    with pytest.raises(BadInput, match=r"damaged: run 00_made\.py again"):
        records.require(sealed, RECORD)
    assert not records.is_current(sealed, RECORD, settings={"size": 1}, inputs={})


def test_a_record_that_is_not_text_names_the_command(sealed):
    (sealed / "made.json").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(BadInput, match=r"damaged: run 00_made\.py again"):
        records.require(sealed, RECORD)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda folder: (folder / "out.csv").write_text("ouT"),
            "out.csv is not what 00_made.py wrote",
        ),
        (lambda folder: (folder / "out.csv").unlink(), "out.csv is missing"),
        (
            lambda folder: (folder / "in.csv").write_text("iN"),
            "in.csv changed since 00_made.py ran",
        ),
    ],
)
def test_changed_outputs_and_inputs_are_noticed_and_the_command_named(sealed, change, message):
    change(sealed)
    with pytest.raises(BadInput, match=message.replace(".", r"\.")) as caught:
        records.require(sealed, RECORD, {"in.csv": records.sha256(sealed / "in.csv")})
    assert "run 00_made.py again" in str(caught.value)


def test_a_record_is_current_only_for_the_same_settings_inputs_and_outputs(sealed):
    inputs = records.require(sealed, RECORD)["inputs"]
    assert not records.is_current(sealed, RECORD, settings={"size": 2}, inputs=inputs)
    assert not records.is_current(
        sealed, RECORD, settings={"size": 1}, inputs=inputs | {"label file": "abd"}
    )
    assert not records.is_current(
        sealed, RECORD, settings={"size": 1}, inputs={"in.csv": inputs["in.csv"]}
    )
    (sealed / "out.csv").write_text("changed")
    assert not records.is_current(sealed, RECORD, settings={"size": 1}, inputs=inputs)
    (sealed / "out.csv").unlink()
    assert not records.is_current(sealed, RECORD, settings={"size": 1}, inputs=inputs)


# Tables


def test_tables_keep_text_as_text_and_numbers_as_numbers(tmp_path):
    table = artifacts.Table(
        "t.csv", ("image_id", "n", "p"), "00_made.py", integers=("n",), numbers=("p",)
    )
    frame = pd.DataFrame(
        {
            "image_id": ["1.20", "NA", ""],
            "n": [1, 2, 3],
            "p": [0.1, float("nan"), 1 / 3],
            "extra": 0,
        }
    )
    artifacts.write_table(tmp_path, table, frame)
    assert (
        tmp_path / "t.csv"
    ).read_bytes() == b"image_id,n,p\n1.20,1,0.1\nNA,2,\n,3,0.3333333333333333\n"
    back = artifacts.read_table(tmp_path, table)
    assert back["image_id"].tolist() == ["1.20", "NA", ""]
    assert back["n"].tolist() == [1, 2, 3]
    assert back["p"].isna().tolist() == [False, True, False]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "image_id\n",
        "image_id,n,p\na,x,1\n",
        "image_id,n,p\na,,1\n",
        "image_id,n,p\na,1,x\n",
        "image_id,n\na,1\n",
        "image_id,n,p\na,1,2,3\n",
    ],
)
def test_a_table_with_wrong_columns_or_cells_names_the_command(tmp_path, text):
    table = artifacts.Table(
        "t.csv", ("image_id", "n", "p"), "00_made.py", integers=("n",), numbers=("p",)
    )
    with pytest.raises(BadInput, match=r"run 00_made\.py first"):
        artifacts.read_table(tmp_path, table)
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(BadInput, match=r"run 00_made\.py again"):
        artifacts.read_table(tmp_path, table)


@pytest.mark.parametrize("image_id", ["../../evil", "/etc/x", "a/b", "./a"])
def test_no_id_leads_out_of_the_folder_of_its_files(tmp_path, image_id):
    for path_of in (
        lambda name: tmp_path / artifacts.Cache(64).image(name),
        lambda name: tmp_path / artifacts.Cache(64).mask(name),
        lambda name: tmp_path / artifacts.Run("run").probability_map(artifacts.OOF, name),
        results.overlay,
        results.mask,
        results.segmentation,
    ):
        with pytest.raises(BadInput, match="outside its folder"):
            path_of(image_id)
        assert "1.2.3." in str(path_of("1.2.3"))
