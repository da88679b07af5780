"""Stages 02 and 03 under torchrun: two processes on gloo do what one does."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from pneumothorax.pipeline import artifacts, records
from tests.helpers.stages import ROOT

# Adam turns rounding into a direction where gradients are tiny: losses of one and two processes
# would part sooner at ten times the default learning rate.
CONFIG = """
model_settings: {encoder: resnet18, encoder_weights: none, decoder_channels: [16, 16, 8, 8, 8]}
image_size: 64
epochs: 10
batch_size: 12
sampling: [[0, 1]]
batch_norm: frozen
"""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def prepared(folded, tmp_path_factory):
    """(output, config): 12 images to train on in each of two folds."""
    config = tmp_path_factory.mktemp("config") / "small.yaml"
    config.write_text(CONFIG)
    return folded, config


def train(prepared, run, *more, several=False, restarts=0):
    output, config = prepared
    command = [*TORCHRUN, "--max-restarts", str(restarts), "--"] if several else [sys.executable]
    command += [
        "02_train.py",
        "--config",
        config,
        "--run",
        run,
        "--output",
        output,
        "--workers",
        "0",
        *more,
    ]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process):
    """Wait for a process; what it printed."""
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed[-3000:]
    return printed


@pytest.fixture(scope="module")
def alone(prepared):
    """The output after one process trained both folds and wrote probability maps."""
    output, _ = prepared
    finish(train(prepared, "alone"))
    predict(output, [sys.executable])
    return output


def predict(output, launcher):
    """Stage 03, whose rounding depends on batch size and threads: 4 images, 1 thread."""
    command = [
        *launcher,
        "03_predict.py",
        "--run",
        "alone",
        "--output",
        output,
        "--workers",
        "0",
        "--overwrite",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--batch-size", "4"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("next: python 04_submit.py") == 1  # for any number of processes


def history(output, run):
    return pd.read_csv((output / artifacts.Run(run).fold(0).folder) / "history.csv")


def test_two_processes_take_the_steps_of_one(prepared, alone):
    """One batch of 12 images per epoch, batch norm frozen: ten steps."""
    printed = finish(train(prepared, "two", "--fold", "0", several=True))
    ours, theirs = history(alone, "two"), history(alone, "alone")
    assert len(ours) == 10
    assert (ours["train_loss"] - theirs["train_loss"]).abs().max() <= 1e-4
    assert ours[["positives", "negatives", "learning_rate"]].equals(
        theirs[["positives", "negatives", "learning_rate"]]
    )
    assert ours["siim_dice"].notna().all()
    assert len(re.findall("epoch 10/10", printed)) == 1  # one process writes
    assert records.read(alone, artifacts.Run("two").fold(0).trained)["processes"] == 2


def test_a_batch_that_does_not_divide_counts_every_image_once(prepared, alone):
    more = [
        "--fold",
        "0",
        "--set",
        "epochs=4",
        "--set",
        "batch_size=10",
        "--set",
        "accumulation_steps=2",
    ]
    finish(train(prepared, "uneven-one", *more))
    finish(train(prepared, "uneven-two", *more, several=True))
    ours, theirs = history(alone, "uneven-two"), history(alone, "uneven-one")
    assert (ours["train_loss"] - theirs["train_loss"]).abs().max() <= 1e-4


def test_a_killed_process_is_restarted_and_the_history_is_complete(prepared):
    output, _ = prepared
    process = train(
        prepared, "killed", "--fold", "0", "--set", "epochs=15", several=True, restarts=1
    )
    path = (output / artifacts.Run("killed").fold(0).folder) / "history.csv"
    deadline = time.monotonic() + 200
    while not (path.exists() and len(pd.read_csv(path)) >= 2) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process_of_rank(process.pid, 1), signal.SIGKILL)
    printed = finish(process)
    assert "resuming after epoch" in printed
    assert history(output, "killed")["epoch"].tolist() == list(range(1, 16))
    assert (
        history(output, "killed")["train_loss"].iloc[-1]
        < history(output, "killed")["train_loss"].iloc[0]
    )


def process_of_rank(launcher, rank):
    """Process id of torchrun's child of this rank."""
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"\0RANK={rank}\0".encode() in b"\0" + Path(f"/proc/{child}/environ").read_bytes():
            return int(child)
    raise AssertionError("no such process")


def test_two_processes_predict_the_maps_of_one(prepared, alone):
    output, _ = prepared
    folder = output / artifacts.Run("alone").folder

    def maps():
        return {
            path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*.png"))
        }

    before, table = maps(), (folder / "predictions.csv").read_bytes()
    pictures = [path for path in before if path.parts[0] in ("oof", "test")]
    for path in pictures:
        (folder / path).unlink()
    predict(output, [*TORCHRUN, "--"])
    assert len(pictures) == 24 + 3
    assert maps() == before
    assert (folder / "predictions.csv").read_bytes() == table
    assert artifacts.Run("alone").prediction_journals(output) == [folder / "predictions.jsonl"]
