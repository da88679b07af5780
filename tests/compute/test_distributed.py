"""Stages 02 and 03 in two processes on gloo: they do what one does, also under torchrun."""

import os
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import torch

from pneumothorax.pipeline import artifacts, records
from tests.helpers.processes import run_together
from tests.helpers.stages import ROOT, run_on, settings

# At this learning rate the losses show wrong gradients: those of one process alone change the
# losses of the third epoch by 0.02.
CONFIG = """
model: unet
model_settings: {base_channels: 4}
image_size: 64
epochs: 3
batch_size: 4
sampling: [[0, 1]]
batch_norm: frozen
learning_rate: 0.01
average_best: 2
precision: fp32
"""
UNEVEN = settings("batch_size=10", "accumulation_steps=2", "epochs=4")
# A network that interpolates. Steps are small: bf16 rounds otherwise where a batch is shared.
HALF = settings(
    "model=ica_resunet",
    "model_settings={encoder: resnet18, encoder_weights: none, decoder_channels: [16, 8, 8, 4, 4]}",
    "precision=bf16",
    "learning_rate=1.0e-4",
    "epochs=1",
)
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
# Stage 02, in which the process of rank 1 dies at the end of its second epoch, once.
DYING = """
import os, runpy, signal
from pneumothorax.training import loop

finish_epoch = loop.Training.finish_epoch

def finish_or_die(training, *args):
    first_try = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if first_try and os.environ["RANK"] == "1" and training.state.progress.epoch == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    finish_epoch(training, *args)

loop.Training.finish_epoch = finish_or_die
runpy.run_path("02_train.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def alone(folded, config, tmp_path_factory):
    """The output after one process trained both folds and wrote probability maps.

    12 images to train on in each fold. The rounding of stage 03 depends on batch size and
    threads: 4 images, 1 thread.
    """
    output = shutil.copytree(folded, tmp_path_factory.mktemp("alone") / "output")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run_on(output, "02_train.py", "--config", config, "--run", "alone")
        run_on(output, "03_predict.py", "--run", "alone", "--batch-size", 4)
    finally:
        torch.set_num_threads(threads)
    return output


def torchrun(*command):
    """What two processes print, each with one thread. They may be restarted once."""
    done = subprocess.run(
        [*TORCHRUN, "--max-restarts", "1", "--", *map(str, command)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def fold_0(output, config, run):
    """The flags of stage 02."""
    return ["--config", config, "--run", run, "--output", output, "--fold", 0, "--workers", 0]


def history(output, run):
    return pd.read_csv(output / artifacts.Run(run).fold(0).history.path)


def assert_same_steps(output, run, other, *, epochs):
    """The losses of `run` are those of `other`, up to rounding."""
    ours, theirs = history(output, run), history(output, other)
    assert ours["epoch"].tolist() == list(range(1, epochs + 1))
    assert (ours["train_loss"] - theirs["train_loss"]).abs().max() <= 1e-4
    assert ours[["positives", "negatives", "learning_rate"]].equals(
        theirs[["positives", "negatives", "learning_rate"]]
    )
    assert ours["siim_dice"].notna().all()
    assert records.read(output, artifacts.Run(run).fold(0).trained)["processes"] == 2


def test_two_processes_take_the_steps_of_one(alone, config, tmp_path):
    """Three batches of 4 images per epoch, batch norm frozen: nine steps."""
    printed = run_together(tmp_path, "02_train.py", *fold_0(alone, config, "two"))
    assert_same_steps(alone, "two", "alone", epochs=3)
    assert len(re.findall("epoch 3/3", printed)) == 1  # one process writes
    ours, theirs = (
        torch.load(alone / artifacts.Run(run).fold(0).best_weights, weights_only=True)
        for run in ("two", "alone")
    )
    assert ours["averaged"] == theirs["averaged"]
    assert len(ours["averaged"]) == 2
    torch.testing.assert_close(ours["network"], theirs["network"], rtol=0, atol=1e-3)


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one_in_16_bits(alone, config, tmp_path):
    run_on(alone, "02_train.py", *fold_0(alone, config, "half-one"), *HALF)
    run_together(tmp_path, "02_train.py", *fold_0(alone, config, "half-two"), *HALF)
    one, two = (history(alone, run).iloc[0] for run in ("half-one", "half-two"))
    assert two["train_loss"] == pytest.approx(one["train_loss"], rel=0.01)
    assert two["skipped_steps"] == 0
    assert two["computed"].endswith("bf16")


@pytest.mark.slow
def test_a_batch_that_does_not_divide_counts_every_image_once(alone, config, tmp_path):
    run_on(alone, "02_train.py", *fold_0(alone, config, "uneven-one"), *UNEVEN)
    run_together(tmp_path, "02_train.py", *fold_0(alone, config, "uneven-two"), *UNEVEN)
    assert_same_steps(alone, "uneven-two", "uneven-one", epochs=4)


@pytest.mark.slow
def test_a_killed_process_is_restarted_and_the_history_is_complete(alone, config, tmp_path):
    """With all its numbers: those of a single process that nobody killed."""
    script = tmp_path / "dying.py"
    script.write_text(DYING)
    printed = torchrun(script, *fold_0(alone, config, "killed"))
    assert "resuming after epoch 1" in printed
    assert_same_steps(alone, "killed", "alone", epochs=3)


def test_two_processes_predict_the_maps_of_one(alone, tmp_path):
    folder = alone / artifacts.Run("alone").folder

    def maps():
        return {
            path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*.png"))
        }

    before, table = maps(), (folder / "predictions.csv").read_bytes()
    pictures = [path for path in before if path.parts[0] in ("oof", "test")]
    for path in pictures:
        (folder / path).unlink()
    flags = ["--run", "alone", "--output", alone, "--batch-size", 4, "--workers", 0]
    printed = run_together(tmp_path, "03_predict.py", *flags, "--overwrite")
    assert printed.count("next: python 04_submit.py") == 1
    assert len(pictures) == 24 + 3
    assert maps() == before
    assert (folder / "predictions.csv").read_bytes() == table
    assert artifacts.Run("alone").prediction_journals(alone) == [folder / "predictions.jsonl"]
