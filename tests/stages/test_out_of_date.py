"""A change anywhere is noticed by every later stage, which names the command to run."""

import shutil

import pytest
import torch

from pneumothorax.errors import BadInput
from pneumothorax.pipeline import artifacts, records
from pneumothorax.report import page
from tests.helpers.dicoms import write_dicom
from tests.helpers.images import noise
from tests.helpers.stages import run_all, run_on, train_from_tiny

RUN = artifacts.Run("tiny")
SUBMISSION = artifacts.Submission("tiny")
pytestmark = pytest.mark.usefixtures("without_pictures")


def test_thresholds_are_fitted_again_on_another_grid(copied, capsys):
    _, output = copied
    run_on(output, "04_submit.py", "--run", "tiny", "--min-component", "0,77")
    assert "up to date" not in capsys.readouterr().out
    assert records.read(output, SUBMISSION.record)["settings"]["min_component"] == [0, 77]
    run_on(output, "04_submit.py", "--run", "tiny", "--min-component", "77,0")
    assert "up to date" in capsys.readouterr().out


def test_new_folds_make_older_runs_unusable_until_trained_again(copied, config):
    made, output = copied
    run_on(output, "01_make_folds.py", "--folds", 2, "--seed", 7)
    for script in ("03_predict.py", "04_submit.py", "05_report.py"):
        argv = ["--run", "tiny"] if script != "05_report.py" else []
        with pytest.raises(
            BadInput, match=r"folds changed since 02_train\.py --run tiny --fold 0 ran"
        ):
            run_on(output, script, *argv)
    with pytest.raises(BadInput, match="folds changed since"):
        run_all(made.folder, output, config, stages=[2])
    run_all(made.folder, output, config, "--overwrite", stages=[2])
    run_all(made.folder, output, config, stages=[3, 4, 5])


def test_networks_trained_again_make_older_probability_maps_unusable(copied):
    """On a GPU the same settings give slightly different weights."""
    _, output = copied
    path, record = output / RUN.fold(0).best_weights, RUN.fold(0).trained
    state = torch.load(path, weights_only=True)
    state["network"]["mask_head.bias"] += 0.001
    torch.save(state, path)
    body = records.read(output, record)
    made_from = {"settings": body["settings"], "inputs": body["inputs"]}
    records.write(output, record, outputs=list(body["outputs"]), **made_from)
    for script, argv in (("04_submit.py", ["--run", "tiny"]), ("05_report.py", [])):
        with pytest.raises(
            BadInput, match=r"runs/tiny/fold0/best\.pt changed since 03_predict\.py --run tiny ran"
        ):
            run_on(output, script, *argv)


def test_changed_labels_of_the_same_area_are_noticed_by_every_later_stage(copied, config, tmp_path):
    """Masks moved by one column: areas and folds do not change."""
    made, output = copied
    shutil.copytree(made.folder, tmp_path / "input")
    path = tmp_path / "input" / "train-rle.csv"
    lines = [line.split(", ") for line in path.read_text().splitlines()]
    moved = [
        f"{i}, {int(t.split()[0]) - 64} {t.partition(' ')[2]}" if t[0].isdecimal() else f"{i}, {t}"
        for i, t in lines
    ]
    path.write_text("\n".join(moved) + "\n")
    folds = (output / "folds.csv").read_bytes()
    run_all(tmp_path / "input", output, config, stages=[0])
    with pytest.raises(BadInput, match=r"training images changed since 01_make_folds\.py ran"):
        run_all(made.folder, output, config, stages=[2])
    run_all(made.folder, output, config, stages=[1])
    assert (output / "folds.csv").read_bytes() == folds
    for script, argv in (
        ("03_predict.py", ["--run", "tiny"]),
        ("04_submit.py", ["--run", "tiny"]),
        ("05_report.py", []),
    ):
        with pytest.raises(BadInput, match=r"training images changed since 02_train\.py"):
            run_on(output, script, *argv)
    with pytest.raises(BadInput, match="training images changed since"):
        run_all(made.folder, output, config, stages=[2])


def test_new_test_images_leave_the_trained_networks_valid(copied, config, tmp_path):
    made, output = copied
    folder = tmp_path / "input"
    shutil.copytree(made.folder, folder)
    write_dicom(folder / "stage_2_images" / "ID_new.dcm", noise(77), jpeg=True)
    with open(folder / "stage_2_sample_submission.csv", "a") as file:
        file.write("ID_new,-1\n")
    weights = (output / RUN.fold(0).last).stat().st_mtime_ns
    run_all(folder, output, config)
    assert (output / RUN.fold(0).last).stat().st_mtime_ns == weights
    assert "ID_new" in (output / SUBMISSION.csv).read_text()


@pytest.mark.slow
def test_a_run_is_out_of_date_when_the_run_it_started_from_changes(copied, config):
    made, output = copied
    train_from_tiny(output, config)
    run_all(made.folder, output, config, "--set", "learning_rate=0.002", "--overwrite", stages=[2])
    with pytest.raises(
        BadInput, match=r"runs/tiny/fold0/best\.pt changed since 02_train\.py --run second"
    ):
        run_on(output, "03_predict.py", "--run", "second")
    with pytest.raises(BadInput, match=r"runs/tiny/fold0/best\.pt changed since"):
        train_from_tiny(output, config)
    train_from_tiny(output, config, "--overwrite")
    run_on(output, "03_predict.py", "--run", "second")


@pytest.mark.slow
def test_a_run_is_out_of_date_when_a_run_two_steps_before_it_changes(copied, config):
    made, output = copied
    train_from_tiny(output, config)
    third = ["--run", "third", "--set", "init_from=runs/second"]
    run_on(output, "02_train.py", "--config", config, *third)
    run_all(made.folder, output, config, "--set", "learning_rate=0.002", "--overwrite", stages=[2])
    with pytest.raises(
        BadInput, match=r"runs/tiny/fold0/best\.pt changed since 02_train\.py --run second"
    ):
        run_on(output, "03_predict.py", "--run", "third")


def test_a_finished_run_outlives_the_one_it_started_from(copied, config, capsys):
    _, output = copied
    train_from_tiny(output, config)
    shutil.rmtree(output / RUN.folder)
    train_from_tiny(output, config)
    assert "fold 1 is up to date" in capsys.readouterr().out
    run_on(output, "03_predict.py", "--run", "second")


def test_a_fold_may_start_from_a_run_whose_other_folds_are_not_trained(copied, config, capsys):
    _, output = copied
    shutil.rmtree(output / RUN.fold(1).folder)
    for _ in range(2):
        train_from_tiny(output, config, "--fold", "0")
        assert "folds that are not trained yet: 1" in capsys.readouterr().out
    with pytest.raises(BadInput, match=r"02_train\.py --run tiny --fold 1"):
        train_from_tiny(output, config)


def test_a_finished_fold_does_not_ask_for_folds_of_its_start_that_it_does_not_need(
    copied, config, capsys
):
    _, output = copied
    train_from_tiny(output, config)
    (output / RUN.fold(1).trained.path).unlink()  # as while fold 1 is trained again
    train_from_tiny(output, config, "--fold", "0")
    out = capsys.readouterr().out
    assert "fold 0 is up to date" in out
    assert "folds that are not trained yet: 1" in out


def test_a_report_of_an_older_version_is_made_again(copied, monkeypatch, capsys):
    _, output = copied
    run_on(output, "05_report.py")
    capsys.readouterr()
    run_on(output, "05_report.py")
    assert "up to date" in capsys.readouterr().out
    monkeypatch.setattr(page, "VERSION", page.VERSION + 1)
    run_on(output, "05_report.py")
    assert "up to date" not in capsys.readouterr().out


def test_a_stale_submission_is_not_offered_once_the_test_maps_are_gone(copied, capsys):
    _, output = copied
    run_on(output, "03_predict.py", "--run", "tiny", "--split", "oof")
    run_on(output, "04_submit.py", "--run", "tiny")
    run_on(output, "05_report.py")
    assert not (output / SUBMISSION.csv).exists()
    assert "submission.csv" not in capsys.readouterr().out
