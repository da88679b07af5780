"""All stages, 00 to 05, on a tiny input: what a user relies on from one end to the other."""

import csv
import json
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, run_stage, tiny_input

from pneumothorax import artifacts, png, records, rle
from pneumothorax.errors import BadConfig, BadInput

TINY = """
model: ica_resunet
model_settings: {encoder: resnet18, encoder_weights: none, decoder_channels: [16, 16, 8, 8, 8]}
image_size: 64
epochs: 2
batch_size: 4
learning_rate: 0.001
"""


def run_all(folder, output, config, *more, stages=range(6)):
    commands = {
        0: ("00_prepare_data.py", "--input", folder, "--size", 64),
        1: ("01_make_folds.py", "--folds", 2),
        2: ("02_train.py", "--config", config, "--run", "tiny", *more),
        3: ("03_predict.py", "--run", "tiny"),
        4: ("04_submit.py", "--run", "tiny"),
        5: ("05_report.py",),
    }
    for number in stages:
        run_stage(*commands[number], "--output", output, "--workers", 0)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, config):
    """(input, output) of one complete run; tests only read it."""
    folder = tmp_path_factory.mktemp("stages")
    made = tiny_input(folder / "input")
    run_all(made.folder, folder / "output", config)
    return made, folder / "output"


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and ".locks" not in path.parts
    }


def test_the_submission_has_the_samples_ids_in_order_and_legal_rows(finished):
    made, output = finished
    with open(artifacts.submission(output, "tiny"), newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["ImageId", "EncodedPixels"]
    assert [row[0] for row in rows] == made.test_ids
    for _, text in rows:
        assert rle.encode(rle.decode(text, (128, 128))) == text
    assert b"\r" not in artifacts.submission(output, "tiny").read_bytes()


def test_every_training_image_is_predicted_out_of_fold_by_the_network_of_its_own_fold(finished):
    made, output = finished
    folds = artifacts.read_table(output, artifacts.FOLDS).set_index("image_id")["fold"]
    table = artifacts.read_table(output, artifacts.predictions("tiny"))
    oof = table[table["split"] == artifacts.OOF].set_index("image_id")["fold"]
    assert set(oof.index) == set(made.masks)
    assert (oof == folds[oof.index]).all()
    for image_id in made.masks:
        assert png.read(artifacts.probability_map(output, "tiny", artifacts.OOF, image_id)).shape == (64, 64)


def test_cv_csv_agrees_with_masks_counted_again(finished):
    made, output = finished
    oof = artifacts.read_table(output, artifacts.out_of_fold("tiny")).set_index("image_id")
    expected = []
    for image_id, truth in made.masks.items():
        predicted = rle.decode(oof.at[image_id, "rle"], truth.shape)
        both, total = int((truth & predicted).sum()), int(truth.sum() + predicted.sum())
        expected.append(2 * both / total if total else 1.0)
    table = artifacts.read_table(output, artifacts.cross_validation("tiny")).set_index("row")
    assert table.at["all", "siim_dice"] == pytest.approx(np.mean(expected), abs=1e-5)
    negatives = len(made.masks) - len(made.positives)
    assert table.at["nothing predicted", "siim_dice"] == pytest.approx(negatives / len(made.masks))
    per_fold = table.loc[["fold 0", "fold 1"], "siim_dice"]
    assert table.at["mean", "siim_dice"] == pytest.approx(per_fold.mean(), abs=1e-5)
    assert table.at["std", "siim_dice"] == pytest.approx(per_fold.std(ddof=1), abs=1e-5)


def test_a_second_run_writes_nothing(finished, config):
    made, output = finished
    before = contents(output)
    run_all(made.folder, output, config)
    rewritten = {name for name, value in contents(output).items() if value != before.get(name)}
    # Stage 00 checks its cache and writes its small tables again, with the same bytes.
    assert {name for name in rewritten if contents(output)[name][0] != before[name][0]} == set()
    assert not [name for name in rewritten if name.startswith(("runs/", "submissions/", "report/", "folds"))]


def test_history_has_one_row_per_epoch_and_the_ratio_of_the_schedule(finished):
    _, output = finished
    history = pd.read_csv(artifacts.fold_folder(output, "tiny", 0) / "history.csv")
    assert list(history.columns) == list(artifacts.HISTORY_COLUMNS)
    assert history["epoch"].tolist() == [1, 2]
    assert history["positives_per_negative"].tolist() == [2.0, 1.0]  # [[0, 2], [0.33, 1]] over two epochs
    assert history["negatives"].tolist() == [round(n / r) for n, r in zip(history["positives"], [2, 1], strict=True)]


def test_the_report_shows_the_table_and_overlays_and_escapes_names(finished):
    _, output = finished
    page = (output / artifacts.REPORT_PAGE).read_text("utf-8")
    table = artifacts.read_table(output, artifacts.cross_validation("tiny")).set_index("row")
    assert f"{table.at['all', 'siim_dice']:.4f}" in page
    assert "are positive: these scores say that the pipeline runs, not how good it is" in page
    for name in [line.split('"')[0] for line in page.split('src="')[1:]]:
        assert (output / "report" / name).is_file()


def test_without_a_sample_submission_the_stages_give_scores_alone(tmp_path, config):
    made = tiny_input(tmp_path / "input", test=0, unlabelled=0)
    run_all(made.folder, tmp_path / "output", config)
    assert (tmp_path / "output" / artifacts.cross_validation("tiny").path).is_file()
    assert not artifacts.submission(tmp_path / "output", "tiny").exists()


def test_a_killed_training_goes_on_after_the_last_finished_epoch_to_the_same_weights(finished, config, tmp_path):
    """As subprocess, killed with SIGKILL once the first epoch is on disk, then the same command."""
    made, whole = finished  # `made` is trained on again below
    output = tmp_path / "output"
    run_all(made.folder, output, config, stages=[0, 1])
    command = [sys.executable, "02_train.py", "--config", config, "--run", "tiny", "--output", output, "--workers", "0"]
    command += ["--fold", "0"]
    history = artifacts.fold_folder(output, "tiny", 0) / "history.csv"
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not history.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert history.exists(), "the first epoch never finished"
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "going on after epoch" in done.stdout or "is finished" in done.stdout
    assert same_weights(output, whole)
    times = ["seconds", "images_per_second"]
    ours, theirs = (pd.read_csv(artifacts.fold_folder(place, "tiny", 0) / "history.csv") for place in (output, whole))
    pd.testing.assert_frame_equal(ours.drop(columns=times), theirs.drop(columns=times))


def same_weights(output, other):
    import torch

    ours, theirs = (
        torch.load(artifacts.fold_folder(place, "tiny", 0) / "last.pt", weights_only=True)["network"]
        for place in (output, other)
    )
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_other_settings_under_the_same_run_are_refused_naming_the_difference(finished, config):
    made, output = finished
    with pytest.raises(BadInput, match=r"learning_rate: 0.001 there, 0.002 now"):
        run_all(made.folder, output, config, "--set", "learning_rate=0.002", stages=[2])


def test_an_unknown_setting_lists_the_known_ones(finished, config):
    made, output = finished
    with pytest.raises(BadConfig, match="known settings: model, "):
        run_all(made.folder, output, config, "--set", "leaning_rate=1", stages=[2])


def test_an_unknown_network_lists_the_known_ones(finished, config):
    _, output = finished
    with pytest.raises(BadConfig, match="ica_resunet"):
        run_stage("02_train.py", "--config", config, "--set", "model=unknown", "--output", output, "--run", "other")


@pytest.mark.parametrize(
    "stage, missing",
    [
        (("01_make_folds.py",), "00_prepare_data.py"),
        (("02_train.py", "--config", "configs/demo.yaml"), "00_prepare_data.py"),
        (("03_predict.py",), "01_make_folds.py"),
        (("04_submit.py",), "01_make_folds.py"),
        (("05_report.py",), "04_submit.py"),
    ],
)
def test_a_stage_before_its_predecessor_names_the_command_to_run(tmp_path, stage, missing):
    with pytest.raises(BadInput, match=missing):
        run_stage(stage[0], *stage[1:], "--output", tmp_path)


def test_new_folds_make_older_runs_unusable_until_trained_again(tmp_path, config):
    made = tiny_input(tmp_path / "input", test=0, unlabelled=0)
    output = tmp_path / "output"
    run_all(made.folder, output, config, "--set", "epochs=1", stages=range(5))
    run_stage("01_make_folds.py", "--output", output, "--folds", 2, "--seed", 7)
    for script, make_first in (("03_predict.py", "02_train.py"), ("04_submit.py", "03_predict.py")):
        with pytest.raises(BadInput, match=make_first):
            run_stage(script, "--run", "tiny", "--output", output)
    with pytest.raises(BadInput, match="folds"):
        run_all(made.folder, output, config, "--set", "epochs=1", stages=[2])


def test_a_damaged_checkpoint_is_noticed(finished, tmp_path, config):
    made = tiny_input(tmp_path / "input", test=0, unlabelled=0)
    output = tmp_path / "output"
    run_all(made.folder, output, config, "--set", "epochs=1", stages=range(3))
    path = artifacts.fold_folder(output, "tiny", 0) / "best.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(BadInput, match=r"best.pt is not what 02_train.py"):
        run_stage("03_predict.py", "--run", "tiny", "--output", output)


def test_runs_on_other_folds_are_not_compared(finished, tmp_path):
    _, output = finished
    for name, digest in (("a", "1" * 64), ("b", "2" * 64)):
        record = artifacts.submitted(name)
        facts = json.loads((output / artifacts.submitted("tiny").path).read_text())
        (tmp_path / record.path).parent.mkdir(parents=True)
        (tmp_path / record.path).write_text(json.dumps({**facts, "inputs": {}, "outputs": {}, "folds_hash": digest}))
    with pytest.raises(BadInput, match="different folds: a 11111111, b 22222222"):
        run_stage("05_report.py", "--output", tmp_path)


def test_a_map_that_was_changed_is_predicted_again(finished):
    _, output = finished
    table = artifacts.read_table(output, artifacts.predictions("tiny"))
    path = artifacts.probability_map(output, "tiny", artifacts.OOF, table.at[0, "image_id"])
    good = path.read_bytes()
    path.write_bytes(good[:-20])
    run_stage("03_predict.py", "--run", "tiny", "--output", output, "--workers", 0)
    assert path.read_bytes() == good
    assert records.sha256(path) == table.at[0, "sha256"]


@pytest.mark.parametrize("script", ["00_prepare_data.py", "01_make_folds.py", "04_submit.py", "05_report.py"])
def test_stages_that_need_no_network_import_no_torch(finished, script):
    made, output = finished
    argv = {"00_prepare_data.py": ["--input", str(made.folder), "--size", "64"], "01_make_folds.py": ["--folds", "2"]}
    argv |= {"04_submit.py": ["--run", "tiny"], "05_report.py": []}
    code = (
        "import runpy, sys\n"
        f"runpy.run_path({script!r}, run_name='stage')['main']({[*argv[script], '--output', str(output)]!r})\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_the_command_line_gives_exit_code_3_and_no_traceback_for_bad_input(tmp_path):
    command = [sys.executable, "01_make_folds.py", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "run 00_prepare_data.py first" in done.stderr
    assert "Traceback" not in done.stderr
