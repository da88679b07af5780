"""Folds on several devices: each in a process, and what it prints last is not lost."""

import os
import sys
import time

import pytest
import torch

from pneumothorax.compute import distributed, per_device
from pneumothorax.compute.interruption import StopRequest
from pneumothorax.errors import BadConfig, Stopped

CPU = torch.device("cpu")


def process_of(monkeypatch, code):
    """Let every fold's process run this code; its arguments are those of a stage."""
    monkeypatch.setattr(sys, "argv", ["-c", code, "--overwrite", "--no-lock"])


MEET = """
import sys, time
from pathlib import Path

print(sys.argv[1:])
fold = sys.argv[sys.argv.index("--fold") + 1]
Path(fold).touch()
end = time.monotonic() + 60
while not Path({"3": "5", "5": "3"}[fold]).exists():
    assert time.monotonic() < end, "the other fold did not start"
    time.sleep(0.01)
"""


@pytest.mark.parametrize("names", [["cpu", "cuda:1"], ["cuda:0", "cuda:0"]])
def test_folds_are_trained_at_the_same_time_with_a_share_of_the_workers(
    names, monkeypatch, tmp_path, capfd
):
    monkeypatch.chdir(tmp_path)
    process_of(monkeypatch, MEET)
    assert per_device.train([3, 5], names, workers=5, stop=StopRequest()) == 0
    printed = capfd.readouterr().out
    for fold, device in zip(("3", "5"), names, strict=True):
        flags = ["--fold", fold, "--device", device, "--workers", "2"]
        # Without --overwrite and --no-lock, which are for this process alone.
        assert f"fold {fold}: {flags}" in printed


def test_windows_is_refused_as_nothing_could_tell_the_processes_to_save(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(BadConfig, match="one command for each card, with its --fold"):
        per_device.first_lines(["cpu", "cpu"], CPU, "fp32")


def test_after_a_failure_no_further_fold_starts_and_its_last_words_are_printed(monkeypatch, capfd):
    """They are read slowly here."""
    pass_on = per_device._pass_on

    def slowly(*arguments):
        time.sleep(1)
        pass_on(*arguments)

    monkeypatch.setattr(per_device, "_pass_on", slowly)
    process_of(monkeypatch, "import sys; sys.exit(f'last words {sys.argv[-1]}')")
    assert per_device.train([0, 1], ["cpu"], workers=0, stop=StopRequest()) == 1
    printed, errors = capfd.readouterr()
    assert "fold 0: last words 0" in printed  # no loader workers, as asked
    assert "fold 1" not in printed
    assert errors == "fold 0 failed with exit code 1\n"


@pytest.mark.skipif(os.name == "nt", reason="no signals on Windows")
def test_the_fold_that_a_signal_ends_is_named(monkeypatch, capfd):
    """SIGKILL is what the kernel sends when memory is used up."""
    process_of(monkeypatch, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert per_device.train([0, 1], ["cpu"], workers=0, stop=StopRequest()) == 137
    assert capfd.readouterr().err == "fold 0 was ended by SIGKILL\n"


FAIL_FIRST = """
import sys, time
from pathlib import Path

if sys.argv[sys.argv.index("--fold") + 1] == "0":
    Path("failing").touch()
    sys.exit(3)
end = time.monotonic() + 60
while not Path("failing").exists():
    assert time.monotonic() < end, "the other fold did not start"
    time.sleep(0.01)
time.sleep(2)
"""


def test_a_fold_that_succeeds_later_does_not_hide_a_failure(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    process_of(monkeypatch, FAIL_FIRST)
    assert per_device.train([0, 1], ["cpu", "cpu"], workers=0, stop=StopRequest()) == 3


def test_of_a_progress_bar_only_the_last_version_is_printed(monkeypatch, capfd):
    bar = "fold 4 epoch 1:   0%\rfold 4 epoch 1: 100%\rfold 4 epoch 1/9\nsaved\n\n"
    process_of(monkeypatch, f"print({bar!r})")
    assert per_device.train([4], ["cpu"], workers=0, stop=StopRequest()) == 0
    assert capfd.readouterr().out == "fold 4 on cpu\nfold 4 epoch 1/9\nfold 4: saved\n"


FAIL_WHEN_STOPPED = """
import signal, sys, time
from pathlib import Path

fold = sys.argv[sys.argv.index("--fold") + 1]
if fold == "0":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(4))
    Path(fold).touch()
end = time.monotonic() + 60
while not Path("0").exists():
    assert time.monotonic() < end, "the other fold did not start"
    time.sleep(0.01)
Path(fold).touch()
time.sleep(60)
"""


class DueOnce(StopRequest):
    """Due as soon as the file is there."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def is_due(self):
        return self.path.exists()


def test_a_stop_ends_the_processes_and_starts_no_further_one(monkeypatch, tmp_path, capfd):
    started = tmp_path / "started"
    code = f"import pathlib, time; pathlib.Path({str(started)!r}).touch(); time.sleep(60)"
    process_of(monkeypatch, f"{code}; print('not stopped')")
    with pytest.raises(Stopped):
        per_device.train([0, 1], ["cpu"], workers=0, stop=DueOnce(started))
    printed = capfd.readouterr().out
    assert printed == "fold 0 on cpu\n"


def test_a_stop_does_not_hide_that_a_process_failed(monkeypatch, tmp_path):
    """One cannot save, the other ends by the signal."""
    monkeypatch.chdir(tmp_path)
    process_of(monkeypatch, FAIL_WHEN_STOPPED)
    stop = DueOnce(tmp_path / "1")
    assert per_device.train([0, 1], ["cpu", "cpu"], workers=0, stop=stop) == 4


def test_nothing_starts_when_time_is_up(capfd):
    with pytest.raises(Stopped) as stopped:
        per_device.train([0], ["cpu"], workers=0, stop=StopRequest(0))
    assert stopped.value.code == 0
    assert capfd.readouterr().out == ""


def test_a_device_that_cannot_be_used_is_named_before_any_process_starts():
    with pytest.raises(BadConfig, match="--device teapot is unknown"):
        per_device.first_lines(["cpu", "teapot"], CPU, "fp32")


def test_several_devices_are_refused_under_torchrun(monkeypatch):
    monkeypatch.setattr(distributed, "is_launched", lambda: True)
    assert per_device.first_lines(["cpu"], CPU, "fp32").startswith("device cpu: ")
    with pytest.raises(BadConfig, match="under torchrun give one device"):
        per_device.first_lines(["cpu", "cpu"], CPU, "fp32")
