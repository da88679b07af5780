"""The same command again: it resumes, repairs what it can, and does nothing twice."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch

from pneumothorax.compute import per_device
from pneumothorax.compute.interruption import StopRequest
from pneumothorax.errors import BadInput, Stopped
from pneumothorax.pipeline import artifacts, records
from tests.helpers.processes import run_at_once
from tests.helpers.stages import ROOT, files_below, run_all, run_on, run_stage

RUN = artifacts.Run("tiny")


def training(output, config, *flags):
    """The command that trains on an output folder."""
    return [sys.executable, "02_train.py", "--config", config, "--output", output, *flags]


def test_a_second_run_writes_nothing(finished, config):
    made, output = finished
    before = files_below(output)
    run_all(made.folder, output, config)
    rewritten = {name for name, value in files_below(output).items() if value != before.get(name)}
    # Stage 00 checks its cache and writes its small tables again, with the same bytes.
    assert {name for name in rewritten if files_below(output)[name][0] != before[name][0]} == set()
    assert not [
        name for name in rewritten if name.startswith(("runs/", "submissions/", "report/", "folds"))
    ]


def test_a_killed_training_resumes_after_the_last_finished_epoch_and_ends_in_the_same_weights(
    finished, config, tmp_path, capsys
):
    """Killed with SIGKILL once the first epoch is on disk; then the same command."""
    output, whole = tmp_path / "output", tmp_path / "whole"
    for folder in (output, whole):
        ignore = shutil.ignore_patterns("runs", "submissions", "report")
        shutil.copytree(finished[1], folder, ignore=ignore)
    flags = ["--run", "tiny", "--fold", "0", "--workers", "0", "--set", "epochs=12"]
    run_stage("02_train.py", "--config", config, "--output", whole, *flags)
    command = training(output, config, *flags)
    state = output / RUN.fold(0).last
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=ROOT, **quiet)
    wait_until_it_exists(state, process)
    process.kill()
    process.wait()
    assert state.exists(), "the first epoch never finished"
    run_stage("02_train.py", "--config", config, "--output", output, *flags)
    assert "resuming after epoch" in capsys.readouterr().out
    assert same_weights(output, whole)
    times = ["seconds", "images_per_second"]
    ours, theirs = (pd.read_csv(place / RUN.fold(0).history.path) for place in (output, whole))
    pd.testing.assert_frame_equal(ours.drop(columns=times), theirs.drop(columns=times))


def test_several_devices_train_a_fold_each_and_one_command_stops_and_resumes_them(
    finished, config, tmp_path, monkeypatch, capsys
):
    """Two CPUs in place of two GPUs."""
    _, whole = finished
    output = tmp_path / "output"
    shutil.copytree(whole, output, ignore=shutil.ignore_patterns("runs", "submissions", "report"))
    flags = ["--run", "tiny", "--workers", "0", "--device", "cpu,cpu", "--save-minutes", "1e-4"]
    command = [str(word) for word in training(output, config, *flags)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for fold in (0, 1):
        wait_until_it_exists(output / RUN.fold(fold).last, process)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    # What each of them computes with comes first.
    assert sum(line.startswith("device cpu: ") for line in printed.splitlines()) == 2

    # The same command twice more, here: only the folds are trained in processes.
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", command[1:])
    monkeypatch.setattr(per_device, "first_lines", lambda *_: "devices")

    def again():
        run_stage(*command[1:])
        return capsys.readouterr().out

    resumed = again()
    for fold in (0, 1):
        assert f"fold {fold} on cpu" in printed
        assert f"fold {fold}: best SIIM Dice" in printed + resumed
    assert "\r" not in resumed
    assert same_weights(output, whole)
    written = f"wrote {output / RUN.folder}"
    following = f"next: python 03_predict.py --run tiny --output {output}"
    assert resumed.endswith(f"{written}\n{following}\n")
    assert again() == f"devices\n{written}\n{following}\n"


@pytest.mark.slow
def test_a_fold_that_fails_ends_the_command_with_its_code(finished, config, tmp_path):
    _, whole = finished
    output = tmp_path / "output"
    shutil.copytree(whole, output, ignore=shutil.ignore_patterns("submissions", "report"))
    shutil.rmtree(output / RUN.fold(0).folder)
    (output / RUN.fold(1).trained.path).unlink()
    for path in (RUN.fold(1).last, RUN.fold(1).previous):
        (output / path).write_bytes(b"damaged")
    flags = ["--run", "tiny", "--workers", "0", "--device", "cpu,cpu"]
    command = training(output, config, *flags)
    failed = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert failed.returncode == 3
    assert "fold 1: error: " in failed.stdout
    assert failed.stderr.splitlines()[-1] == "fold 1 failed with exit code 3"
    assert (output / RUN.fold(0).trained.path).exists()  # the other device finished its fold


def wait_until_it_exists(path, process):
    """Or until the process ends; two minutes at most."""
    deadline = time.monotonic() + 120
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)


def same_weights(output, other):
    ours, theirs = (
        torch.load(place / RUN.fold(0).last, weights_only=True)["network"]
        for place in (output, other)
    )
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_training_resumes_from_the_previous_checkpoint_if_the_last_one_is_damaged(
    copied, config, capsys
):
    made, output = copied
    folder = output / RUN.fold(0).folder
    (folder / "finished.json").unlink()
    weights = torch.load(folder / "last.pt", weights_only=True)["network"]
    (folder / "last.pt").write_bytes((folder / "last.pt").read_bytes()[:-1000])
    run_all(made.folder, output, config, stages=[2])
    printed = capsys.readouterr().out
    assert "resuming from" in printed
    assert "previous.pt" in printed
    assert "resuming after epoch 1" in printed
    again = torch.load(folder / "last.pt", weights_only=True)["network"]
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def interrupted(output, config, number):
    """Train the run "stopped", and send signal `number` after the first epoch.

    Returns the exit code, what was printed, and the path of the run's history.
    """
    flags = ["--run", "stopped", "--fold", "0", "--workers", "1", "--set", "epochs=200"]
    command = training(output, config, *flags)
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    path = output / artifacts.Run("stopped").fold(0).history.path
    wait_until_it_exists(path, process)
    os.killpg(process.pid, number)  # as a terminal or a cluster does: loader workers get it too
    printed, _ = process.communicate(timeout=60)
    return process.returncode, printed, path


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_ends_the_step_saves_and_prints_the_command_to_resume(
    copied, config, number, monkeypatch
):
    _, output = copied
    code, printed, path = interrupted(output, config, number)
    assert code == 128 + number, printed
    assert re.search(
        r"To resume: python 02_train\.py --config \S+tiny\.yaml .*--run stopped --fold 0", printed
    )
    assert "Traceback" not in printed
    epochs = len(pd.read_csv(path))
    saved = torch.load(path.with_name("last.pt"), weights_only=True)["progress"]
    assert saved["epoch"] == epochs
    assert not (output / artifacts.Run("stopped").fold(0).trained.path).exists()
    questions = iter(range(10))  # the time is up when it has been asked for ten times
    monkeypatch.setattr(StopRequest, "is_due", lambda _: next(questions, None) is None)
    left = ["--set", "epochs=200", "--fold", 0, "--run", "stopped", "--max-time", 60]
    with pytest.raises(Stopped) as stopped:  # it resumes, until the time is up
        run_on(output, "02_train.py", "--config", config, *left)
    assert stopped.value.code == 0
    later = torch.load(path.with_name("last.pt"), weights_only=True)["progress"]
    assert (later["epoch"], later["step"]) > (saved["epoch"], saved["step"])


@pytest.mark.parametrize("workers", [pytest.param("1", marks=pytest.mark.slow), "2"])
def test_with_loader_workers_the_process_ends_when_its_work_is_done(copied, config, workers):
    _, output = copied
    flags = ["--run", "ends", "--fold", "0", "--workers", workers]
    command = training(output, config, *flags)
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)


@pytest.mark.slow
def test_folds_started_at_the_same_moment_do_not_disturb_each_other(
    finished, copied, config, tmp_path
):
    _, output = copied
    flags = ["--config", config, "--output", output, "--run", "both", "--workers", 0]
    run_at_once(tmp_path, *(({}, "02_train.py", *flags, "--fold", fold) for fold in "01"))
    for fold in (0, 1):
        one, alone = (
            torch.load(place / artifacts.Run(run).fold(fold).last, weights_only=True)["network"]
            for place, run in ((output, "both"), (finished[1], "tiny"))
        )
        assert all(torch.equal(one[name], alone[name]) for name in alone)


def test_half_written_probability_maps_of_a_killed_run_are_removed(copied):
    made, output = copied
    path = output / RUN.probability_map(artifacts.TEST, made.test_ids[0])
    path.unlink()
    path.with_name(".gone.png.123.tmp").write_bytes(b"half")
    run_on(output, "03_predict.py", "--run", "tiny")
    assert path.exists()
    assert not list(path.parent.glob("*.tmp"))


def test_a_changed_probability_map_is_predicted_again(copied):
    _, output = copied
    table = artifacts.read_table(output, RUN.predictions)
    path = output / RUN.probability_map(artifacts.OOF, table.at[0, "image_id"])
    good = path.read_bytes()
    path.write_bytes(good[:-20])
    run_on(output, "03_predict.py", "--run", "tiny")
    assert path.read_bytes() == good
    assert records.sha256(path) == table.at[0, "sha256"]


@pytest.mark.parametrize(
    "damage",
    [lambda text: text[:-20], lambda text: text.replace('"parameters": ', '"parameters": 9')],
)
def test_damaged_network_facts_are_noticed_and_made_again(copied, config, damage):
    made, output = copied
    path = output / RUN.network_facts
    good = path.read_text("utf-8")
    path.write_text(damage(good))
    with pytest.raises(BadInput, match=r"network\.json is not what 02_train\.py"):
        run_on(output, "05_report.py")
    run_all(made.folder, output, config, stages=[2])
    assert path.read_text("utf-8") == good
    run_on(output, "05_report.py")


def test_the_network_facts_that_a_killed_run_left_are_replaced(copied, config):
    _, output = copied
    left = output / artifacts.Run("young").network_facts
    left.parent.mkdir(parents=True)
    left.write_text('{"network": "IcaResUNet"}')
    flags = ["--run", "young", "--fold", 0, "--set", "epochs=1"]
    run_on(output, "02_train.py", "--config", config, *flags)
    assert json.loads(left.read_text("utf-8"))["network"] == "UNet"
