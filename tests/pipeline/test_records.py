"""Whole files or none, journals that survive a kill, records that notice every change, one run at a time."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import textwrap

import filelock
import pandas as pd
import pytest

from pneumothorax import errors
from pneumothorax.errors import BadConfig, BadInput, OutputLocked, Stopped
from pneumothorax.inference import results
from pneumothorax.pipeline import artifacts, atomic, journal, locks, records, stage
from tests.helpers.stages import ROOT, run_stage, tiny_input

RECORD = records.Record("made.json", "00_made.py")


# Atomic files


def test_a_file_that_cannot_be_filled_leaves_the_old_one_and_no_litter(tmp_path):
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


def test_a_failed_rename_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
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


def test_sweeping_takes_the_leftovers_of_killed_runs_alone(tmp_path):
    for name in (".a.png.123.tmp", "a.png", ".hidden", "b.tmp"):
        (tmp_path / name).write_text("x")
    atomic.sweep(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".hidden", "a.png", "b.tmp"]


def test_the_next_writer_of_a_file_takes_what_a_killed_run_left_of_it(tmp_path):
    for name in (".a.txt.123.tmp", ".b.txt.123.tmp"):
        (tmp_path / name).write_text("half")
    atomic.write_text(tmp_path / "a.txt", "whole")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".b.txt.123.tmp", "a.txt"]


def test_equal_values_give_equal_json_bytes(tmp_path):
    atomic.write_json(tmp_path / "a.json", {"b": 1, "a": {"d": "é", "c": None}})
    atomic.write_json(tmp_path / "b.json", {"a": {"c": None, "d": "é"}, "b": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


# Journals


def test_a_journal_gives_back_what_was_appended_the_last_of_each_name(tmp_path):
    path = tmp_path / "journal.jsonl"
    with journal.Journal(path) as first:
        assert first.entries == {}
        first.append("a", {"key": 1})
        first.append("b", {"key": 2})
        first.append("a", {"key": 3})
    with journal.Journal(path) as second:
        assert second.entries == {"a": {"key": 3}, "b": {"key": 2}}
    assert len(path.read_text().splitlines()) == 2


def test_a_journal_drops_a_last_line_torn_anywhere_and_goes_on_after_it(tmp_path):
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


def test_a_journal_line_is_on_its_way_as_soon_as_it_is_appended(tmp_path):
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
def test_lines_that_are_no_entries_are_skipped(tmp_path, line):
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


def test_a_record_of_untouched_files_is_accepted(sealed):
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


def test_a_record_that_is_no_text_names_the_command(sealed):
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
        *(
            "",
            "image_id\n",
            "image_id,n,p\na,x,1\n",
            "image_id,n,p\na,,1\n",
            "image_id,n,p\na,1,x\n",
        ),
        *("image_id,n\na,1\n", "image_id,n,p\na,1,2,3\n"),
    ],
)
def test_a_table_that_is_not_the_one_expected_names_the_command(tmp_path, text):
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


# Locks and exit codes


HOLDER = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from pneumothorax.pipeline import locks
    with locks.lock(Path(sys.argv[1]), "00_prepare_data"):
        print("held", flush=True)
        time.sleep(60)
    """
)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of stage 00."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_the_second_run_on_one_output_is_told_who_holds_it(tmp_path, holder):
    with (
        pytest.raises(OutputLocked, match=rf"process {holder.pid} on "),
        locks.lock(tmp_path, "00_prepare_data"),
    ):
        pass
    with locks.lock(tmp_path, "01_make_folds"):  # another part of the output is free
        pass


def test_the_second_run_of_a_stage_exits_4_and_names_the_holder(tmp_path, holder):
    command = [sys.executable, "01_make_folds.py", "--output", tmp_path]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 3  # not locked, but there is no manifest
    tiny = tiny_input(tmp_path / "input", train=2, test=0)
    command = [
        sys.executable,
        "00_prepare_data.py",
        "--input",
        tiny.folder,
        "--output",
        tmp_path,
        "--size",
        "32",
    ]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 4
    assert f"process {holder.pid}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_holder_that_has_not_written_its_name_yet_is_another_process(tmp_path, holder):
    for text in ("", "{", "[]", "{}"):
        (tmp_path / ".locks" / "00_prepare_data.holder.json").write_text(text)
        with (
            pytest.raises(OutputLocked, match="by another process"),
            locks.lock(tmp_path, "00_prepare_data"),
        ):
            pass


def test_a_dead_holder_blocks_nobody(tmp_path, holder):
    holder.kill()
    holder.wait()
    with locks.lock(tmp_path, "00_prepare_data"):
        assert (
            json.loads((tmp_path / ".locks" / "00_prepare_data.holder.json").read_text())["pid"]
            == os.getpid()
        )


def test_the_lock_is_free_again_after_an_error(tmp_path, monkeypatch):
    made, real = [], filelock.FileLock
    monkeypatch.setattr(
        filelock, "FileLock", lambda *args, **how: made.append(real(*args, **how)) or made[-1]
    )
    for _ in range(2):
        with pytest.raises(KeyError), locks.lock(tmp_path, "x"):
            raise KeyError
    assert [lock.is_locked for lock in made] == [False, False]


@pytest.mark.parametrize("flag", ["--input", "--output"])
def test_an_empty_path_is_a_usage_error_and_not_the_current_folder(flag, capsys):
    with pytest.raises(SystemExit) as caught:
        run_stage("00_prepare_data.py", flag, "")
    assert caught.value.code == 2
    assert f"{flag}: is empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (None, 0, ""),
        (BadConfig("wrong setting"), 2, "error: wrong setting"),
        (BadInput("wrong file"), 3, "error: wrong file"),
        (errors.bad_list("2 errors", ["one", "two"]), 3, "error: 2 errors\n  one\n  two"),
        (OutputLocked("held"), 4, "error: held"),
        (KeyboardInterrupt(), 130, "same command again"),
        (OSError(errno.ENOSPC, "No space", "a.png"), 1, "the disk is full (a.png)"),
        (OSError(errno.EFBIG, "File too large", "a.png"), 1, "a file grew too large (a.png)"),
        (
            OSError(errno.EROFS, "Read-only file system", "a.png"),
            3,
            "error: a.png: Read-only file system",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "a.png"),
            3,
            "error: a.png: Permission denied",
        ),
        (Stopped(0), 0, "to go on"),
        (Stopped(143), 143, "to go on"),
        (
            OSError(errno.EISDIR, "Is a directory", ".a.tmp", None, "a.csv"),
            3,
            "error: a.csv: Is a directory",
        ),
        (OSError(errno.EEXIST, "File exists", "overlays"), 3, "error: overlays: File exists"),
    ],
)
def test_exit_codes(error, code, said, capsys):
    def main():
        if error:
            raise error

    assert stage.exit_code(main) == code
    assert said in capsys.readouterr().err


def test_the_command_to_go_on_with_does_not_begin_anew(monkeypatch, capsys):
    def main():
        raise Stopped(0)

    monkeypatch.setattr(sys, "argv", ["02_train.py", "--overwrite", "--run", "a b"])
    stage.exit_code(main)
    assert "to go on: python 02_train.py --run 'a b'\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [KeyError("bug"), OSError(errno.EIO, "Input/output error"), ValueError("bug")]
)
def test_a_bug_keeps_its_traceback(error):
    def main():
        raise error

    with pytest.raises(type(error)):
        stage.exit_code(main)


@pytest.mark.skipif(os.name == "nt", reason="no SIGTERM on Windows")
def test_sigterm_ends_with_143_and_says_how_to_go_on():
    code = (
        "import os, signal, time; from pneumothorax.pipeline import stage\n"
        "def main(): os.kill(os.getpid(), signal.SIGTERM); time.sleep(5)\n"
        "stage.run(main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 143
    assert "same command again" in done.stderr


def test_a_long_list_of_problems_is_cut_and_counted():
    message = str(errors.bad_list("many", [f"problem {n}" for n in range(60)]))
    assert message.count("problem") == 50
    assert message.endswith("... and 10 more")


@pytest.mark.parametrize(("text", "folds"), [("all", [0, 1, 2]), ("0", [0]), ("2", [2])])
def test_folds_are_chosen_by_number_or_all(text, folds):
    assert stage.chosen_folds(text, 3) == folds


@pytest.mark.parametrize("text", ["3", "-1", "", "1.0", "ALL", "x", "\u0661", "\u00b2"])
def test_a_fold_that_does_not_exist_is_a_usage_error_that_lists_those_that_do(text):
    with pytest.raises(BadConfig, match="folds 0 to 0"):
        stage.chosen_folds(text, 1)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b", "x" * 65, "a\n", "é"])
def test_names_of_runs_that_are_no_folder_names_are_usage_errors(name, capsys):
    with pytest.raises(SystemExit) as caught:
        stage.check_name(stage.parser("manual"), "--run", name)
    assert caught.value.code == 2
    assert "--run" in capsys.readouterr().err
