"""What the README promises of its two commands, seen as a user sees it. Minutes long: ./test.sh --all."""

import os
import random
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from conftest import ROOT, tiny_input

from pneumothorax import artifacts

pytestmark = pytest.mark.slow


def demo(output, **environment):
    """Run ./demo.sh; (seconds, what it printed)."""
    started = time.monotonic()
    variables = {**os.environ, "OUTPUT": str(output), **{name: str(value) for name, value in environment.items()}}
    done = subprocess.run(["./demo.sh"], cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return time.monotonic() - started, done.stdout


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "input"
    subprocess.run([sys.executable, "-m", "pneumothorax.phantom", "--to", folder], cwd=ROOT, check=True)
    return folder


def test_the_demo_learns_within_eight_minutes_and_a_second_one_has_nothing_to_do(phantoms, tmp_path):
    seconds, printed = demo(tmp_path, INPUT=phantoms)
    assert seconds < 480
    table = artifacts.read_table(tmp_path, artifacts.cross_validation("ica_resunet")).set_index("row")
    gain = table.at["all", "siim_dice"] - table.at["nothing predicted", "siim_dice"]
    assert gain >= 0.05
    assert 0.5 <= table.at["all", "positive_dice"] < 0.95
    assert "submission.csv" in printed
    assert "index.html" in printed
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.csv")}
    seconds, _ = demo(tmp_path, INPUT=phantoms)
    assert seconds < 60
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.csv")} == before


def test_the_four_networks_of_table_1_beat_predicting_nothing_within_forty_minutes(phantoms, tmp_path):
    names = ("unet", "chexlocnet", "albunet", "ica_resunet")
    seconds, printed = demo(tmp_path, INPUT=phantoms, CONFIGS=" ".join(f"configs/demo/{name}.yaml" for name in names))
    assert seconds < 2400
    for name in names:
        table = artifacts.read_table(tmp_path, artifacts.cross_validation(name)).set_index("row")
        assert table.at["all", "siim_dice"] > table.at["nothing predicted", "siim_dice"]
        assert name in printed.split("nothing predicted")[-1]


def test_the_demo_runs_on_real_files_with_a_test_set(real_data, tmp_path):
    _, printed = demo(tmp_path, INPUT=real_data / "siim", CONFIGS="configs/demo/ica_resunet.yaml")
    manifest = artifacts.read_table(tmp_path, artifacts.MANIFEST)
    train = manifest[manifest["split"] == artifacts.TRAIN]
    assert (len(train), int(train["positive"].sum())) == (30, 8)
    sample = pd.read_csv(real_data / "siim" / "stage_2_sample_submission.csv", dtype=str)
    submission = pd.read_csv(artifacts.submission(tmp_path, "ica_resunet"), dtype=str)
    assert list(submission.columns) == list(sample.columns)
    assert submission["ImageId"].tolist() == sample["ImageId"].tolist()
    assert "these scores say that the pipeline runs, not how good it is" in printed


def test_the_demo_runs_on_real_files_without_a_test_set(real_data, tmp_path):
    patients = real_data / "labels" / "nih_patients.csv"
    demo(tmp_path, INPUT=real_data / "siim_224", PATIENTS=patients)
    manifest = artifacts.read_table(tmp_path, artifacts.MANIFEST)
    assert (len(manifest), int(manifest["positive"].sum())) == (224, 80)
    assert artifacts.read_table(tmp_path, artifacts.FOLDS)["patient_id"].nunique() == 185
    assert not artifacts.submission(tmp_path, "ica_resunet").exists()
    assert (tmp_path / artifacts.REPORT_PAGE).is_file()


def test_training_killed_five_times_at_random_moments_ends_in_the_undisturbed_weights(tmp_path):
    made = tiny_input(tmp_path / "input", train=40)
    config = tmp_path / "tiny.yaml"
    config.write_text(
        "model_settings:\n  encoder: resnet18\n  encoder_weights: none\n  decoder_channels: [16, 16, 8, 8, 8]\n"
        "image_size: 64\nepochs: 12\nbatch_size: 4\n"
    )
    outputs = tmp_path / "undisturbed", tmp_path / "killed"
    commands = {}
    for output in outputs:
        common = ["--output", output, "--workers", "1"]
        subprocess.run(
            [sys.executable, "00_prepare_data.py", "--input", made.folder, "--size", "64", *common],
            cwd=ROOT,
            check=True,
        )
        subprocess.run([sys.executable, "01_make_folds.py", "--folds", "2", *common], cwd=ROOT, check=True)
        commands[output] = [sys.executable, "02_train.py", "--config", config, "--fold", "0", *common]
    started = time.monotonic()
    subprocess.run(commands[outputs[0]], cwd=ROOT, check=True)
    whole = time.monotonic() - started
    moments = random.Random(5)
    epochs_before = []
    for _ in range(5):
        process = subprocess.Popen(commands[outputs[1]], cwd=ROOT, start_new_session=True)
        time.sleep(moments.uniform(0.3, 0.7) * whole)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        history = artifacts.fold_folder(outputs[1], "tiny", 0) / "history.csv"
        epochs_before.append(len(pd.read_csv(history)) if history.exists() else 0)
    subprocess.run(commands[outputs[1]], cwd=ROOT, check=True)
    assert epochs_before == sorted(epochs_before)  # no finished epoch is ever lost
    assert epochs_before[-1] > 0
    states = [torch.load(artifacts.fold_folder(o, "tiny", 0) / "last.pt", weights_only=True) for o in outputs]
    assert all(torch.equal(states[0]["network"][name], states[1]["network"][name]) for name in states[0]["network"])
    times = ["seconds", "images_per_second"]
    first, second = (
        pd.read_csv(artifacts.fold_folder(o, "tiny", 0) / "history.csv").drop(columns=times) for o in outputs
    )
    pd.testing.assert_frame_equal(first, second)
