"""What the README promises of ./demo.sh. Takes minutes: ./test.sh --all."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch

from pneumothorax.inference import results
from pneumothorax.pipeline import artifacts, records
from tests.helpers.stages import ROOT, scores, tiny_input

pytestmark = pytest.mark.slow
EXACT_RESUME = """
model_settings: {encoder: resnet18, encoder_weights: none, decoder_channels: [16, 16, 8, 8, 8]}
image_size: 64
epochs: 6
batch_size: 4
ema_decay: 0.9
precision: fp32
"""


def demo(output, **environment):
    """Run ./demo.sh; returns its standard output."""
    variables = os.environ | {"OUTPUT": str(output)}
    variables |= {name: str(value) for name, value in environment.items()}
    done = subprocess.run(
        ["./demo.sh"], cwd=ROOT, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "input"
    subprocess.run(
        [sys.executable, "-m", "pneumothorax.phantom", "--to", folder], cwd=ROOT, check=True
    )
    return folder


def test_the_demo_learns_and_a_second_one_has_nothing_to_do(phantoms, tmp_path):
    output = tmp_path / "output"
    printed = demo(output, INPUT=phantoms)
    table = scores(output, "ica_resunet")
    gain = table.at["all", "siim_dice"] - table.at["all-empty baseline", "siim_dice"]
    assert gain >= 0.05
    assert 0.5 <= table.at["all", "positive_dice"] < 0.95
    assert "submission.csv" in printed
    assert "index.html" in printed
    assert (output / "ica_resunet.zip").is_file()
    findings = artifacts.read_table(tmp_path / "output-findings", results.PREDICTIONS)
    assert len(findings) == len(list((phantoms / "stage_2_images").iterdir()))
    assert (findings["area_px"] > 0).any()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.csv")}
    printed = demo(output, INPUT=phantoms)
    for fold in range(3):
        assert f"fold {fold} is up to date" in printed
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.csv")} == before


def test_the_four_networks_of_table_1_beat_the_all_empty_baseline(phantoms, tmp_path):
    names = ("unet", "chexlocnet", "albunet", "ica_resunet")
    configs = " ".join(f"configs/demo/{name}.yaml" for name in names)
    printed = demo(tmp_path, INPUT=phantoms, CONFIGS=configs, FOLDS="2")
    for name in names:
        table = scores(tmp_path, name)
        assert table.at["all", "siim_dice"] > table.at["all-empty baseline", "siim_dice"]
        assert name in printed.split("all-empty baseline")[-1]


def test_the_demo_runs_on_real_files_with_a_test_set(real_data, tmp_path):
    printed = demo(tmp_path, INPUT=real_data / "siim", SETTINGS="epochs=4")
    manifest = artifacts.read_table(tmp_path, artifacts.MANIFEST)
    train = manifest[manifest["split"] == artifacts.TRAIN]
    assert (len(train), int(train["positive"].sum())) == (30, 8)
    sample = pd.read_csv(real_data / "siim" / "stage_2_sample_submission.csv", dtype=str)
    submission = pd.read_csv(tmp_path / artifacts.Submission("ica_resunet").csv, dtype=str)
    assert list(submission.columns) == list(sample.columns)
    assert submission["ImageId"].tolist() == sample["ImageId"].tolist()
    assert "these scores say that the pipeline runs, not how good it is" in printed


def test_the_demo_runs_on_real_files_without_a_test_set(real_data, tmp_path):
    patients = real_data / "labels" / "nih_patients.csv"
    demo(tmp_path, INPUT=real_data / "siim_502", PATIENTS=patients, SETTINGS="epochs=4")
    manifest = artifacts.read_table(tmp_path, artifacts.MANIFEST)
    assert (len(manifest), int(manifest["positive"].sum())) == (502, 160)
    assert artifacts.read_table(tmp_path, artifacts.FOLDS)["patient_id"].nunique() == 404
    assert not (tmp_path / artifacts.Submission("ica_resunet").csv).exists()
    assert (tmp_path / artifacts.REPORT_PAGE).is_file()


@pytest.mark.parametrize("workers", [0, 3])
def test_six_epochs_killed_five_times_within_and_between_epochs_end_in_the_undisturbed_weights(
    tmp_path, workers
):
    made = tiny_input(tmp_path / "input", train=80)
    config = tmp_path / "tiny.yaml"
    config.write_text(EXACT_RESUME)
    prepared = tmp_path / "undisturbed"
    for script, *more in (
        ("00_prepare_data.py", "--input", made.folder, "--size", "64"),
        ("01_make_folds.py", "--folds", "2"),
    ):
        subprocess.run([sys.executable, script, *more, "--output", prepared], cwd=ROOT, check=True)
    killed = shutil.copytree(prepared, tmp_path / "killed")

    def command(output):
        flags = ["--fold", "0", "--output", output, "--workers", str(workers)]
        flags += ["--save-minutes", "0.001"]
        return [sys.executable, "02_train.py", "--config", config, *flags]

    subprocess.run(command(prepared), cwd=ROOT, check=True)
    moments = random.Random(5)
    fold = artifacts.Run("tiny").fold(0)
    positions = []
    for _ in range(5):
        process = subprocess.Popen(command(killed), cwd=ROOT, start_new_session=True)
        wait_for_saves(killed / fold.last, moments.randint(2, 14), process)
        time.sleep(moments.uniform(0, 0.1))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        progress = torch.load(killed / fold.last, weights_only=True)["progress"]
        positions.append((progress["epoch"], progress["step"]))
    subprocess.run(command(killed), cwd=ROOT, check=True)
    assert positions == sorted(positions)  # nothing that was saved is ever lost
    assert sum(step > 0 for _, step in positions) >= 2
    assert positions[-1][0] < 6
    states = [torch.load(o / fold.last, weights_only=True) for o in (prepared, killed)]
    for first, second in (
        [state["network"] for state in states],
        [state["optimization"]["average"]["network"] for state in states],
    ):
        assert all(torch.equal(first[name], second[name]) for name in first)
    times = ["seconds", "images_per_second"]
    first, second = (
        pd.read_csv(o / fold.history.path).drop(columns=times) for o in (prepared, killed)
    )
    pd.testing.assert_frame_equal(first, second)


def wait_for_saves(path, n, process):
    """Wait until the file was written `n` times, or the process ended."""
    seen = set()
    deadline = time.monotonic() + 300
    while len(seen) < n and process.poll() is None and time.monotonic() < deadline:
        if path.exists():
            seen.add(path.stat().st_mtime_ns)
        time.sleep(0.005)


def test_the_first_place_recipe_runs_in_one_command_and_beats_the_all_empty_baseline(
    phantoms, tmp_path
):
    names = [f"first_place_{part}" for part in (1, 2, 3)]
    configs = " ".join(f"configs/demo/{name}.yaml" for name in names)
    demo(tmp_path, INPUT=phantoms, CONFIGS=configs, FOLDS="2")
    for fold in range(2):
        record = records.read(tmp_path, artifacts.Run("first_place_3").fold(fold).trained)
        assert artifacts.Run("first_place_2").fold(fold).best_weights in record["inputs"]
    table = scores(tmp_path, "first_place_3")
    assert table.at["all", "siim_dice"] > table.at["all-empty baseline", "siim_dice"]
