"""Locks: one process at a time on each part of an output folder."""

import errno
import json
import os
import platform
import subprocess
import sys
import textwrap

import filelock
import pytest

from pneumothorax.errors import BadInput, OutputLocked
from pneumothorax.pipeline import locks
from tests.helpers.stages import ROOT, run_stage, tiny_input

HOLDER = textwrap.dedent(
    """
    import errno, sys
    from pathlib import Path
    from pneumothorax.pipeline import locks

    def no_lock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    if "without" in sys.argv:
        import fcntl
        fcntl.flock = no_lock
    with locks.lock(Path(sys.argv[1]), "00_prepare_data"):
        print("held", flush=True)
        sys.stdin.read()
    """
)


@pytest.fixture
def started():
    """Starts other processes that hold the lock of stage 00 until they are killed."""
    processes = []

    def start(folder, *words):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, folder, *words],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        processes.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


@pytest.fixture
def holder(started, tmp_path):
    return started(tmp_path)


def test_the_second_process_on_an_output_folder_learns_who_holds_it(tmp_path, holder):
    with (
        pytest.raises(OutputLocked, match=rf"process {holder.pid} on "),
        locks.lock(tmp_path, "00_prepare_data"),
    ):
        pass
    with locks.lock(tmp_path, "01_make_folds"):  # another part of the output is free
        pass


def test_the_second_process_of_a_stage_exits_4_and_names_the_holder(tmp_path, holder):
    def run(script, *flags):
        command = [sys.executable, script, "--output", tmp_path, *flags]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert run("01_make_folds.py").returncode == 3  # not locked, but without a manifest
    tiny = tiny_input(tmp_path / "input", train=2, test=0)
    done = run("00_prepare_data.py", "--input", tiny.folder, "--size", "32")
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
        holder_file = tmp_path / ".locks" / "00_prepare_data.holder.json"
        assert json.loads(holder_file.read_text())["pid"] == os.getpid()


def test_the_lock_is_free_again_after_an_error(tmp_path, monkeypatch):
    made, real = [], filelock.FileLock
    monkeypatch.setattr(
        filelock, "FileLock", lambda *args, **how: made.append(real(*args, **how)) or made[-1]
    )
    for _ in range(2):
        with pytest.raises(KeyError), locks.lock(tmp_path, "x"):
            raise KeyError
    assert [lock.is_locked for lock in made] == [False, False]


# Disks without locks


@pytest.mark.parametrize("number", ["ENOLCK", "ENOSYS", "EIO"])
def test_a_disk_without_locks_is_mentioned_once_and_a_file_is_the_lock(
    tmp_path, without_locks, capsys, number
):
    without_locks(getattr(errno, number))
    for _ in range(2):
        with locks.lock(tmp_path, "01_make_folds") as path:
            assert json.loads(path.read_text("utf-8"))["pid"] == os.getpid()
            assert locks.is_held(tmp_path, "01_make_folds")
        assert not path.exists()
    reason = os.strerror(getattr(errno, number))
    assert capsys.readouterr().err.splitlines() == [
        f"note: this disk has no locks ({reason}): files in {tmp_path / '.locks'} keep other "
        "processes out"
    ]


def test_a_stage_works_on_a_disk_without_locks_and_fsync(
    tmp_path, without_locks, monkeypatch, capsys
):
    without_locks(errno.ENOLCK)

    def fsync(_):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fsync)
    tiny = tiny_input(tmp_path / "input", train=4, test=0)
    command = ("00_prepare_data.py", "--input", tiny.folder, "--output", tmp_path / "output")
    run_stage(*command, "--size", 32, "--workers", 0)
    run_stage(*command, "--size", 32, "--workers", 0)
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert [note.partition(" (")[0] for note in notes] == [
        "note: this disk has no locks",
        "note: this disk has no fsync",
    ]


def test_on_a_disk_without_locks_a_live_holder_is_named_and_a_dead_one_blocks_nobody(
    tmp_path, without_locks, started
):
    other = started(tmp_path, "without")
    without_locks(errno.ENOLCK)
    with (
        pytest.raises(OutputLocked, match=rf"process {other.pid} on .*--no-lock"),
        locks.lock(tmp_path, "00_prepare_data"),
    ):
        pass
    other.kill()
    other.wait()
    with locks.lock(tmp_path, "00_prepare_data") as path:
        assert json.loads(path.read_text("utf-8"))["pid"] == os.getpid()


def test_on_a_disk_without_locks_only_the_user_knows_of_processes_elsewhere(
    tmp_path, without_locks
):
    without_locks(errno.ENOLCK)
    folder = tmp_path / ".locks"
    folder.mkdir()
    (folder / "05_report.lock.marker").write_text("1\nelsewhere\n")
    holder = folder / "05_report.holder.json"
    holder.write_text('{"pid": 1, "host": "elsewhere", "started": "today"}')
    with (
        pytest.raises(OutputLocked, match=r"process 1 on elsewhere.*--no-lock"),
        locks.lock(tmp_path, "05_report"),
    ):
        pass
    with locks.lock(tmp_path, "05_report", alone=True):
        assert json.loads(holder.read_text("utf-8"))["host"] == platform.node()
    with locks.lock(tmp_path, "05_report"):
        pass


def test_no_lock_lets_nobody_in_where_the_disk_has_locks(tmp_path, holder):
    with (
        pytest.raises(OutputLocked, match=f"process {holder.pid}"),
        locks.lock(tmp_path, "00_prepare_data", alone=True),
    ):
        pass


def test_an_output_that_cannot_be_written_is_not_taken_for_a_disk_without_locks(tmp_path):
    (tmp_path / ".locks" / "x.lock").mkdir(parents=True)
    with pytest.raises(BadInput, match="cannot write to"), locks.lock(tmp_path, "x"):
        pass
