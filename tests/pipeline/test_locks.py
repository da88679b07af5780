"""Locks: one process at a time on each part of an output folder."""

import json
import os
import subprocess
import sys
import textwrap

import filelock
import pytest

from pneumothorax.errors import OutputLocked
from pneumothorax.pipeline import locks
from tests.helpers.stages import ROOT, tiny_input

HOLDER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from pneumothorax.pipeline import locks
    with locks.lock(Path(sys.argv[1]), "00_prepare_data"):
        print("held", flush=True)
        sys.stdin.read()
    """
)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of stage 00 until its input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


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
