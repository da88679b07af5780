"""Flags and exit codes that all scripts share."""

import errno
import os
import shutil
import subprocess
import sys
import types

import pytest

from pneumothorax import errors
from pneumothorax.errors import BadConfig, BadInput, OutputLocked, Stopped
from pneumothorax.pipeline import stage
from tests.helpers.stages import ROOT, run_stage, tiny_input


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
        (KeyboardInterrupt(), 130, "error: interrupted; to resume: python "),
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
        (Stopped(0), 0, "stopped; the state is saved. To resume: python "),
        (Stopped(143), 143, "To resume: python "),
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


def test_the_command_to_resume_does_not_overwrite_or_ignore_a_lock(monkeypatch, capsys):
    def main():
        raise Stopped(0)

    monkeypatch.setattr(sys, "argv", ["02_train.py", "--overwrite", "--no-lock", "--run", "a b"])
    stage.exit_code(main)
    assert "To resume: python 02_train.py --run 'a b'\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("filename", "free_mib", "said"),
    [
        ("/dev/shm", 0, "--shm-size"),  # of loader workers
        ("/dev/shm/joblib_memmapping_folder_1/a.pkl", 0, "--shm-size"),
        (None, 0, "--shm-size"),  # of semaphores and queues
        (None, 64, "the disk is full (output)"),
        ("output/manifest.csv", 0, "the disk is full (output/manifest.csv)"),
    ],
)
@pytest.mark.skipif(not stage.SHARED_MEMORY.is_dir(), reason="Linux only")
def test_a_full_shared_memory_is_told_apart_from_a_full_output(
    monkeypatch, capsys, filename, free_mib, said
):
    def main():
        raise OSError(errno.ENOSPC, "No space left on device", filename)

    usage = types.SimpleNamespace(free=free_mib * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert stage.exit_code(main) == 1
    printed = capsys.readouterr().err
    assert said in printed
    assert ("--workers 0" in printed) == ("--shm-size" in printed)


def test_what_the_terminal_cannot_show_is_escaped():
    text = "R\u00f6ntgen \udcff"
    code = f"from pneumothorax.pipeline import stage; stage.run(lambda: print({text!a}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.split() == [rb"R\xf6ntgen", rb"\udcff"]


def test_a_stage_with_odd_paths_prints_a_command_that_a_shell_reads(tmp_path):
    tiny = tiny_input(tmp_path / "R\u00f6ntgen bilder", train=4, test=0)
    output = tmp_path / "my output \udcff"
    flags = ["--input", tiny.folder, "--output", output, "--size", "32", "--workers", "0"]
    done = subprocess.run(
        [sys.executable, "00_prepare_data.py", *flags],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shown = f"{tmp_path}/my output \\udcff"
    assert done.stdout.splitlines()[-1] == f"next: python 01_make_folds.py --output '{shown}'"


@pytest.mark.parametrize(
    "error", [KeyError("bug"), OSError(errno.EIO, "Input/output error"), ValueError("bug")]
)
def test_a_bug_keeps_its_traceback(error):
    def main():
        raise error

    with pytest.raises(type(error)):
        stage.exit_code(main)


@pytest.mark.skipif(os.name == "nt", reason="no SIGTERM on Windows")
def test_sigterm_ends_with_143_and_says_how_to_resume():
    code = (
        "import os, signal, time; from pneumothorax.pipeline import stage\n"
        "def main(): os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)\n"
        "stage.run(main)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 143
    assert "terminated; to resume: python " in done.stderr


def test_a_long_list_of_problems_is_cut_and_counted():
    message = str(errors.bad_list("many", [f"problem {n}" for n in range(60)]))
    assert message.count("problem") == 50
    assert message.endswith("... and 10 more")


@pytest.mark.parametrize(("text", "folds"), [("all", [0, 1, 2]), ("0", [0]), ("2", [2])])
def test_folds_are_chosen_by_number_or_all(text, folds):
    assert stage.chosen_folds(text, 3) == folds


@pytest.mark.parametrize("text", ["3", "-1", "", "1.0", "ALL", "x", "\u0661", "\u00b2"])
def test_a_fold_that_does_not_exist_is_a_usage_error_that_lists_the_others(text):
    with pytest.raises(BadConfig, match="--fold must be 0 to 0 or all"):
        stage.chosen_folds(text, 1)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b", "x" * 65, "a\n", "é"])
def test_run_names_that_cannot_be_folders_are_usage_errors(name, capsys):
    with pytest.raises(SystemExit) as caught:
        stage.check_name(stage.parser("manual"), "--run", name)
    assert caught.value.code == 2
    assert "--run" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGPIPE")
@pytest.mark.parametrize(
    ("main", "code"),
    [
        ("lambda: print('x')", 0),
        (r"lambda: print('x\n' * 100_000)", 141),
        ("lambda: (print('x'), sys.exit(0))", 0),  # as --help does
    ],
)
def test_a_script_whose_reader_has_ended_says_nothing(main, code):
    """As in `| head`: what fits into the buffer is lost, more than that ends the script."""
    script = f"import sys; from pneumothorax.pipeline import stage; stage.run({main})"
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env=buffered, **pipes)
    started.stdout.close()
    assert (started.wait(timeout=60), started.stderr.read()) == (code, b"")


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
def test_a_full_disk_is_named_where_nobody_reads_and_output_may_be_closed():
    """`>&-` closes standard output, so that Python has none."""
    full = "raise OSError(28, 'No space', 'a.png')"
    script = f"from pneumothorax.pipeline import stage\ndef main(): {full}\nstage.run(main)"
    for where in ("| true", ">&-"):
        command = f'"$0" -c "$1" {where}; exit ${{PIPESTATUS[0]}}'
        done = subprocess.run(
            ["bash", "-c", command, sys.executable, script],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, "the disk is full (a.png)" in done.stderr) == (1, True)
