"""All stages, 00 to 05, on a tiny input: what a user relies on from one end to the other."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import models
from pneumothorax import png, rle
from pneumothorax.data import discovery
from pneumothorax.errors import BadConfig, BadInput, OutputLocked, Stopped
from pneumothorax.masks import postprocess, thresholds
from pneumothorax.pipeline import artifacts, locks, records
from pneumothorax.prediction import probability_maps
from pneumothorax.report import contents
from pneumothorax.training import loop
from tests.helpers.dicoms import write_dicom
from tests.helpers.images import noise
from tests.helpers.stages import ROOT, TINY, run_stage, tiny_input


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


def files_below(folder):
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and ".locks" not in path.parts
    }


def test_the_submission_has_the_samples_ids_in_order_and_legal_rows(finished):
    made, output = finished
    with open(output / artifacts.Submission("tiny").csv, newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["ImageId", "EncodedPixels"]
    assert [row[0] for row in rows] == made.test_ids
    for _, text in rows:
        assert rle.encode(rle.decode(text, (128, 128))) == text
    assert b"\r" not in (output / artifacts.Submission("tiny").csv).read_bytes()


def test_every_training_image_is_predicted_out_of_fold_by_the_network_of_its_own_fold(finished):
    made, output = finished
    folds = artifacts.read_table(output, artifacts.FOLDS).set_index("image_id")["fold"]
    table = artifacts.read_table(output, artifacts.Run("tiny").predictions)
    oof = table[table["split"] == artifacts.OOF].set_index("image_id")["fold"]
    assert set(oof.index) == set(made.masks)
    assert (oof == folds[oof.index]).all()
    for image_id in made.masks:
        assert png.read(
            output / artifacts.Run("tiny").probability_map(artifacts.OOF, image_id)
        ).shape == (64, 64)


def test_cv_csv_agrees_with_masks_counted_again(finished):
    made, output = finished
    oof = artifacts.read_table(output, artifacts.Submission("tiny").out_of_fold).set_index(
        "image_id"
    )
    expected = []
    for image_id, truth in made.masks.items():
        predicted = rle.decode(oof.at[image_id, "rle"], truth.shape)
        both, total = int((truth & predicted).sum()), int(truth.sum() + predicted.sum())
        expected.append(2 * both / total if total else 1.0)
    table = artifacts.read_table(output, artifacts.Submission("tiny").cross_validation).set_index(
        "row"
    )
    assert table.at["all", "siim_dice"] == pytest.approx(np.mean(expected), abs=1e-5)
    negatives = len(made.masks) - len(made.positives)
    assert table.at["all-empty baseline", "siim_dice"] == pytest.approx(negatives / len(made.masks))
    per_fold = table.loc[["fold 0", "fold 1"], "siim_dice"]
    assert table.at["mean", "siim_dice"] == pytest.approx(per_fold.mean(), abs=1e-5)
    assert table.at["std", "siim_dice"] == pytest.approx(per_fold.std(ddof=1), abs=1e-5)


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


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (0, "00_prepare_data"),
        (1, "01_make_folds"),
        (2, "02_train-tiny-fold0"),
        (3, "03_predict-tiny"),
        (4, "04_submit-tiny"),
        (4, "03_predict-tiny"),  # whose maps it reads
        (5, "05_report"),
    ],
)
def test_the_second_run_of_any_stage_is_refused_and_changes_nothing(finished, config, number, name):
    made, output = finished
    before = files_below(output)
    with (
        locks.lock(output, name),
        pytest.raises(OutputLocked, match=rf"in use for {name} by process {os.getpid()}"),
    ):
        run_all(made.folder, output, config, stages=[number])
    assert files_below(output) == before


def test_history_has_one_row_per_epoch_and_the_ratio_of_the_schedule(finished):
    _, output = finished
    history = pd.read_csv((output / artifacts.Run("tiny").fold(0).folder) / "history.csv")
    assert list(history.columns) == list(artifacts.HISTORY_COLUMNS)
    assert history["epoch"].tolist() == [1, 2]
    assert history["positives_per_negative"].tolist() == [
        2.0,
        1.0,
    ]  # [[0, 2], [0.33, 1]] over two epochs
    assert history["negatives"].tolist() == [
        round(n / r) for n, r in zip(history["positives"], [2, 1], strict=True)
    ]


def test_epochs_between_validations_have_no_scores_and_the_last_one_has(copied, config):
    _, output = copied
    more = [
        "--set",
        "validate_every=2",
        "--set",
        "epochs=3",
        "--set",
        "mixed_precision=true",
        "--fold",
        0,
    ]
    run_stage(
        "02_train.py",
        "--config",
        config,
        "--run",
        "rare",
        *more,
        "--output",
        output,
        "--workers",
        0,
    )
    history = pd.read_csv((output / artifacts.Run("rare").fold(0).folder) / "history.csv")
    assert history["siim_dice"].notna().tolist() == [False, True, True]
    assert history["train_loss"].notna().all()
    best = torch.load(
        (output / artifacts.Run("rare").fold(0).folder) / "best.pt", weights_only=True
    )
    assert best["epoch"] in (2, 3)


def test_the_run_knows_what_its_network_is_made_of_and_what_training_took(finished):
    _, output = finished
    facts = json.loads((output / artifacts.Run("tiny").network_facts).read_text("utf-8"))
    network = models.build("ica_resunet", **yaml.safe_load(TINY)["model_settings"])
    assert facts["parameters"] == sum(weights.numel() for weights in network.parameters())
    assert facts["size"] == 64
    record = records.read(output, artifacts.Run("tiny").fold(0).trained)
    assert record["peak_memory_mib"] > 100  # PyTorch alone takes more
    assert "CPU" in record["device"]


def test_the_report_shows_the_scores_and_every_file_it_names_is_there(finished):
    _, output = finished
    folder = output / "report"
    page = (folder / "index.html").read_text("utf-8")
    table = artifacts.read_table(output, artifacts.Submission("tiny").cross_validation).set_index(
        "row"
    )
    assert f"{table.at['all', 'siim_dice']:.4f}" in page
    assert f"{100 * table.at['all', 'pooled_iou']:.2f}" in page  # Table 1 is in percent
    assert "are positive: these scores say that the pipeline runs, not how good it is" in page
    named = set(re.findall(r'(?:src|srcset)="((?!data:)[^"]+)"', page))
    assert {
        "figures/roc.svg",
        "figures/roc~dark.svg",
        "figures/comparison.png",
        "gallery.js",
    } <= named
    assert [name for name in named if not (folder / name).is_file()] == []
    made = artifacts.read_table(output, artifacts.MANIFEST)
    train = made.loc[made["split"] == artifacts.TRAIN, "image_id"]
    assert {path.stem for path in (folder / "gallery").iterdir()} == set(train)


def test_the_per_image_table_lets_anyone_compute_the_scores_again(finished):
    _, output = finished
    rows = artifacts.read_table(output, artifacts.PER_IMAGE)
    table = artifacts.read_table(output, artifacts.Submission("tiny").cross_validation).set_index(
        "row"
    )
    for run, row in (("tiny", "all"), ("all-empty baseline", "all-empty baseline")):
        own = rows[rows["run"] == run]
        assert own["dice"].mean() == pytest.approx(table.at[row, "siim_dice"])
        assert own["iou"].mean() == pytest.approx(table.at[row, "image_iou"])
        assert own.loc[own["positive"] == 1, "dice"].mean() == pytest.approx(
            table.at[row, "positive_dice"]
        )
    folds = artifacts.read_table(output, artifacts.FOLDS).set_index("image_id")
    assert (
        rows["patient_id"].to_numpy() == folds.loc[rows["image_id"], "patient_id"].to_numpy()
    ).all()


def test_the_summary_is_strict_json_with_the_intervals_of_every_score(finished):
    _, output = finished

    def refuse(name):
        raise ValueError(name)

    text = (output / artifacts.REPORT_SUMMARY).read_text("utf-8")
    summary = json.loads(text, parse_constant=refuse)  # NaN and Infinity are no JSON
    assert summary["evaluated"]["images"] == 12
    assert summary["evaluated"]["drawn"] is False
    found = {row["score"]: row for row in summary["runs"]["tiny"]["intervals"]}
    assert set(found) == set(artifacts.SCORE_COLUMNS)
    assert found["siim_dice"]["low"] <= found["siim_dice"]["value"] <= found["siim_dice"]["high"]


def test_thresholds_fitted_on_another_grid_are_fitted_again(copied, monkeypatch):
    _, output = copied
    before = artifacts.read_table(output, artifacts.Submission("tiny").threshold_surface)
    smaller = ((0.5, 0.9), (0, 500), (0.3,), (0,), (False,), (0.0,))
    monkeypatch.setattr(thresholds.Grid.__init__, "__defaults__", smaller)
    run_stage("04_submit.py", "--run", "tiny", "--output", output, "--workers", 0)
    assert (
        len(artifacts.read_table(output, artifacts.Submission("tiny").threshold_surface))
        == 4
        < len(before)
    )


def test_another_network_under_the_name_of_a_run_that_was_killed_at_once_is_described_as_what_it_is(
    copied, config
):
    _, output = copied
    left = output / artifacts.Run("young").network_facts
    left.parent.mkdir(parents=True)
    left.write_text('{"network": "UNet"}')
    more = ["--run", "young", "--fold", 0, "--set", "epochs=1", "--output", output, "--workers", 0]
    run_stage("02_train.py", "--config", config, *more)
    assert json.loads(left.read_text("utf-8"))["network"] == "IcaResUNet"


@pytest.mark.parametrize(
    "damage",
    [lambda text: text[:-20], lambda text: text.replace('"parameters": ', '"parameters": 9')],
)
def test_damaged_facts_of_a_network_are_noticed_and_made_again(copied, config, damage):
    made, output = copied
    path = output / artifacts.Run("tiny").network_facts
    good = path.read_text("utf-8")
    path.write_text(damage(good))
    with pytest.raises(BadInput, match=r"network\.json is not what 02_train\.py"):
        run_stage("05_report.py", "--output", output)
    run_all(made.folder, output, config, stages=[2])
    assert path.read_text("utf-8") == good
    run_stage("05_report.py", "--output", output, "--workers", 0)


def test_a_swapped_cached_image_is_noticed_before_it_is_shown_under_anothers_truth(copied):
    made, output = copied
    first, second = (
        output / artifacts.Cache(64).image(image_id) for image_id in list(made.masks)[:2]
    )
    first.write_bytes(second.read_bytes())
    with pytest.raises(BadInput, match=r"damaged"):
        run_stage("05_report.py", "--output", output, "--overwrite", "--workers", 0)


def test_two_submissions_of_one_run_do_not_differ(copied):
    _, output = copied
    run_stage(
        "04_submit.py", "--run", "tiny", "--name", "again", "--output", output, "--workers", 0
    )
    run_stage("05_report.py", "--output", output, "--workers", 0)
    differences = json.loads((output / artifacts.REPORT_SUMMARY).read_text("utf-8"))["differences"]
    between = [row for row in differences if row["second"] == "tiny"]
    assert {(row["first"], row["difference"], row["p"]) for row in between} == {("again", 0.0, 1.0)}
    assert {row["score"] for row in between} == set(contents.COMPARED)
    against = {
        row["first"]: row["difference"]
        for row in differences
        if row["second"] == "all-empty baseline"
    }
    table = artifacts.read_table(output, artifacts.Submission("tiny").cross_validation).set_index(
        "row"
    )
    gain = table.at["all", "siim_dice"] - table.at["all-empty baseline", "siim_dice"]
    assert against == {"again": pytest.approx(gain), "tiny": pytest.approx(gain)}


def test_a_report_of_other_runs_keeps_no_figure_of_earlier_ones(copied):
    _, output = copied
    run_stage(
        "04_submit.py", "--run", "tiny", "--name", "again", "--output", output, "--workers", 0
    )
    run_stage("05_report.py", "--output", output, "--workers", 0)
    figures = output / artifacts.REPORT_FIGURES
    assert (figures / "surface-again.svg").is_file()
    run_stage("05_report.py", "--names", "tiny", "--output", output, "--workers", 0)
    assert not (figures / "surface-again.svg").exists()
    assert (figures / "surface-tiny.svg").is_file()


def test_the_report_says_of_the_demo_data_that_its_chests_are_drawn(copied, config, tmp_path):
    made, output = copied
    shutil.copytree(made.folder, tmp_path / "input")
    (tmp_path / "input" / discovery.PHANTOM_NOTE).touch()
    run_all(tmp_path / "input", output, config, stages=[0, 1, 2, 3, 4, 5])
    assert "drawn chests" in (output / artifacts.REPORT_PAGE).read_text("utf-8")


def test_without_a_sample_submission_the_stages_give_scores_alone(tmp_path, config):
    made = tiny_input(tmp_path / "input", test=0, unlabelled=0)
    run_all(made.folder, tmp_path / "output", config)
    assert (tmp_path / "output" / artifacts.Submission("tiny").cross_validation.path).is_file()
    assert not (tmp_path / "output" / artifacts.Submission("tiny").csv).exists()


def test_a_killed_training_goes_on_after_the_last_finished_epoch_to_the_same_weights(
    finished, config, tmp_path
):
    """As subprocess, killed with SIGKILL once the first epoch is on disk, then the same command."""
    made, whole = finished  # `made` is trained on again below
    output = tmp_path / "output"
    run_all(made.folder, output, config, stages=[0, 1])
    command = [
        sys.executable,
        "02_train.py",
        "--config",
        config,
        "--run",
        "tiny",
        "--output",
        output,
        "--workers",
        "0",
    ]
    command += ["--fold", "0"]
    history = (output / artifacts.Run("tiny").fold(0).folder) / "history.csv"
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not history.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert history.exists(), "the first epoch never finished"
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "resuming after epoch" in done.stdout or "up to date" in done.stdout
    assert same_weights(output, whole)
    times = ["seconds", "images_per_second"]
    ours, theirs = (
        pd.read_csv((place / artifacts.Run("tiny").fold(0).folder) / "history.csv")
        for place in (output, whole)
    )
    pd.testing.assert_frame_equal(ours.drop(columns=times), theirs.drop(columns=times))


def same_weights(output, other):
    ours, theirs = (
        torch.load((place / artifacts.Run("tiny").fold(0).folder) / "last.pt", weights_only=True)[
            "network"
        ]
        for place in (output, other)
    )
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_other_settings_under_the_same_run_are_refused_naming_the_difference(finished, config):
    made, output = finished
    with pytest.raises(BadInput, match=r"learning_rate: 0.001 before, 0.002 now"):
        run_all(made.folder, output, config, "--set", "learning_rate=0.002", stages=[2])
    one_fold = [
        "--set",
        "learning_rate=0.002",
        "--overwrite",
        "--fold",
        0,
    ]  # the other fold keeps its settings
    with pytest.raises(BadConfig, match="--fold all"):
        run_all(made.folder, output, config, *one_fold, stages=[2])


def test_an_unknown_setting_lists_the_known_ones(finished, config):
    made, output = finished
    with pytest.raises(BadConfig, match="known settings: model, "):
        run_all(made.folder, output, config, "--set", "leaning_rate=1", stages=[2])


def test_an_unknown_network_lists_the_known_ones(finished, config):
    _, output = finished
    with pytest.raises(BadConfig, match="ica_resunet"):
        run_stage(
            "02_train.py",
            "--config",
            config,
            "--set",
            "model=unknown",
            "--output",
            output,
            "--run",
            "other",
        )


@pytest.mark.parametrize(
    "stage, missing",
    [
        (("01_make_folds.py",), "00_prepare_data.py"),
        (("02_train.py", "--config", "configs/demo/ica_resunet.yaml"), "00_prepare_data.py"),
        (("03_predict.py",), "00_prepare_data.py"),
        (("04_submit.py",), "03_predict.py"),
        (("05_report.py",), "04_submit.py"),
    ],
)
def test_a_stage_before_its_predecessor_names_the_command_to_run(tmp_path, stage, missing):
    with pytest.raises(BadInput, match=missing):
        run_stage(stage[0], *stage[1:], "--output", tmp_path)


@pytest.fixture
def copied(finished, tmp_path):
    """(input, output) of the complete run, to be changed."""
    made, output = finished
    shutil.copytree(output, tmp_path / "output")
    return made, tmp_path / "output"


def test_new_folds_make_older_runs_unusable_until_trained_again(copied, config):
    made, output = copied
    run_stage("01_make_folds.py", "--output", output, "--folds", 2, "--seed", 7)
    for script in ("03_predict.py", "04_submit.py", "05_report.py"):
        argv = ["--run", "tiny"] if script != "05_report.py" else []
        with pytest.raises(
            BadInput, match=r"folds changed since 02_train\.py --run tiny --fold 0 ran"
        ):
            run_stage(script, *argv, "--output", output)
    with pytest.raises(BadInput, match="folds changed since"):
        run_all(made.folder, output, config, stages=[2])
    run_all(made.folder, output, config, "--overwrite", stages=[2])
    run_all(made.folder, output, config, stages=[3, 4, 5])


def test_networks_trained_again_make_older_maps_unusable(copied):
    """As on a GPU, where the same settings give weights that differ a little."""
    _, output = copied
    path, record = (
        output / artifacts.Run("tiny").fold(0).best_weights,
        artifacts.Run("tiny").fold(0).trained,
    )
    state = torch.load(path, weights_only=True)
    state["network"]["segmentation_head.0.bias"] += 0.001
    torch.save(state, path)
    body = records.read(output, record)
    records.write(
        output,
        record,
        settings=body["settings"],
        inputs=body["inputs"],
        outputs=list(body["outputs"]),
    )
    for script, argv in (("04_submit.py", ["--run", "tiny"]), ("05_report.py", [])):
        with pytest.raises(
            BadInput, match=r"runs/tiny/fold0/best\.pt changed since 03_predict\.py --run tiny ran"
        ):
            run_stage(script, *argv, "--output", output)


def test_changed_labels_of_the_same_area_are_noticed_by_every_later_stage(copied, config, tmp_path):
    """Masks moved by one column: the manifest's areas and the folds stay as they were."""
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
            run_stage(script, *argv, "--output", output)
    with pytest.raises(BadInput, match="training images changed since"):
        run_all(made.folder, output, config, stages=[2])


def test_new_test_images_leave_the_trained_networks_valid(copied, config, tmp_path):
    made, output = copied
    folder = tmp_path / "input"
    shutil.copytree(made.folder, folder)
    write_dicom(folder / "stage_2_images" / "ID_new.dcm", noise(77), jpeg=True)
    with open(folder / "stage_2_sample_submission.csv", "a") as file:
        file.write("ID_new,-1\n")
    weights = ((output / artifacts.Run("tiny").fold(0).folder) / "last.pt").stat().st_mtime_ns
    run_all(folder, output, config)
    assert (
        (output / artifacts.Run("tiny").fold(0).folder) / "last.pt"
    ).stat().st_mtime_ns == weights
    assert "ID_new" in (output / artifacts.Submission("tiny").csv).read_text()


def test_a_damaged_best_checkpoint_is_noticed_and_its_fold_trained_again_on_request(copied, config):
    made, output = copied
    path = (output / artifacts.Run("tiny").fold(0).folder) / "best.pt"
    good = path.read_bytes()
    path.write_bytes(
        good[: len(good) // 2] + bytes([good[len(good) // 2] ^ 0xFF]) + good[len(good) // 2 + 1 :]
    )
    with pytest.raises(BadInput, match=r"best\.pt is not what 02_train\.py"):
        run_stage("03_predict.py", "--run", "tiny", "--output", output)
    with pytest.raises(BadInput, match="--fold 0 --overwrite trains this fold from scratch"):
        run_all(made.folder, output, config, stages=[2])
    run_all(made.folder, output, config, "--fold", 0, "--overwrite", stages=[2])
    run_all(made.folder, output, config, stages=[3])


def test_a_damaged_last_checkpoint_is_replaced_by_the_one_before_it(copied, config, capsys):
    made, output = copied
    folder = output / artifacts.Run("tiny").fold(0).folder
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
    """(exit code, what was printed) of training run "stopped", sent a signal in its first epoch; and the command."""
    command = [sys.executable, "02_train.py", "--config", config, "--run", "stopped", "--fold", "0"]
    command += ["--output", output, "--workers", "1", "--set", "epochs=200"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    path = (output / artifacts.Run("stopped").fold(0).folder) / "history.csv"
    deadline = time.monotonic() + 120
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, number)  # as a terminal or a cluster does: the workers get it too
    printed, _ = process.communicate(timeout=60)
    return process.returncode, printed, path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_saves_and_says_how_to_go_on(copied, config, number):
    _, output = copied
    code, printed, path = interrupted(output, config, number)
    assert code == 128 + number, printed
    assert re.search(
        r"to go on: python 02_train\.py --config \S+tiny\.yaml --run stopped --fold 0", printed
    )
    assert "Traceback" not in printed
    epochs = len(pd.read_csv(path))
    saved = torch.load(path.with_name("last.pt"), weights_only=True)["progress"]
    assert saved["epoch"] == epochs
    assert not (output / artifacts.Run("stopped").fold(0).trained.path).exists()
    left = ["--set", "epochs=200", "--fold", 0, "--run", "stopped", "--max-time", 0.05]
    with pytest.raises(Stopped) as stopped:  # goes on until the time is up
        run_stage("02_train.py", "--config", config, *left, "--output", output, "--workers", 0)
    assert stopped.value.code == 0
    later = torch.load(path.with_name("last.pt"), weights_only=True)["progress"]
    assert (later["epoch"], later["step"]) > (saved["epoch"], saved["step"])


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["GPU", "CPU"],
)
def test_out_of_memory_says_what_to_try_and_leaves_what_was_saved(
    copied, config, monkeypatch, error
):
    _, output = copied
    folder = output / artifacts.Run("large").fold(0).folder

    def allocate(self, epoch):
        if epoch == 1:
            raise error

    monkeypatch.setattr(loop.Optimization, "start_epoch", allocate)
    with pytest.raises(
        BadInput,
        match=r"4 images at a time at 64 x 64(.|\n)*accumulation_steps=2(.|\n)*batch_size=2(.|\n)*mixed_precision",
    ):
        run_stage(
            "02_train.py", "--config", config, "--run", "large", "--output", output, "--workers", 0
        )
    assert torch.load(folder / "last.pt", weights_only=True)["progress"]["epoch"] == 1


def test_a_disk_without_room_for_checkpoints_is_said_before_training(copied, config, monkeypatch):
    _, output = copied
    usage = shutil.disk_usage(output)
    weights = sum(
        value.nbytes
        for value in torch.load(
            output / artifacts.Run("tiny").fold(0).best_weights, weights_only=True
        )["network"].values()
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5 * weights))
    settings = ["--config", config, "--output", output, "--workers", 0]
    with pytest.raises(
        BadInput, match="MiB are needed"
    ):  # three states with Adam's two moments, and the best weights
        run_stage("02_train.py", *settings, "--run", "roomy")
    assert not ((output / artifacts.Run("roomy").fold(0).folder) / "last.pt").exists()
    (output / artifacts.Run("tiny").fold(0).trained.path).unlink()
    run_stage(
        "02_train.py", *settings, "--run", "tiny"
    )  # what is there needs one state more, while it is written


def test_with_workers_the_process_ends_when_its_work_is_done(copied, config):
    _, output = copied
    command = [
        sys.executable,
        "02_train.py",
        "--config",
        config,
        "--run",
        "ends",
        "--fold",
        "0",
        "--output",
        output,
    ]
    for workers in ("1", "2"):
        subprocess.run(
            [*command, "--workers", workers, "--overwrite"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            timeout=60,
        )


def second_part(output, config, *more):
    settings = [
        "--set",
        "init_from=runs/tiny",
        "--set",
        "image_size=32",
        "--set",
        "learning_rate=1.0e-9",
        *more,
    ]
    run_stage(
        "02_train.py",
        "--config",
        config,
        "--run",
        "second",
        *settings,
        "--output",
        output,
        "--workers",
        0,
    )


def test_a_run_can_start_from_the_weights_of_another_at_another_resolution(copied, config):
    _, output = copied
    second_part(output, config)
    for fold in (0, 1):
        first, second = (
            torch.load(output / artifacts.Run(run).fold(fold).best_weights, weights_only=True)[
                "network"
            ]
            for run in ("tiny", "second")
        )
        torch.testing.assert_close(
            first["segmentation_head.0.weight"], second["segmentation_head.0.weight"]
        )
        record = records.read(output, artifacts.Run("second").fold(fold).trained)
        path = artifacts.Run("tiny").fold(fold).best_weights
        assert record["inputs"][path] == records.sha256(output / path)


def test_when_the_run_it_started_from_changes_a_run_is_out_of_date(copied, config):
    made, output = copied
    second_part(output, config)
    run_all(made.folder, output, config, "--set", "learning_rate=0.002", "--overwrite", stages=[2])
    with pytest.raises(
        BadInput, match=r"runs/tiny/fold0/best\.pt changed since 02_train\.py --run second"
    ):
        run_stage("03_predict.py", "--run", "second", "--output", output)
    with pytest.raises(BadInput, match=r"runs/tiny/fold0/best\.pt changed since"):
        second_part(output, config)
    second_part(output, config, "--overwrite")
    run_stage("03_predict.py", "--run", "second", "--output", output, "--workers", 0)


def test_when_the_run_before_the_run_it_started_from_changes_a_run_is_out_of_date(copied, config):
    made, output = copied
    second_part(output, config)
    third = ["--run", "third", "--set", "init_from=runs/second", "--output", output, "--workers", 0]
    run_stage("02_train.py", "--config", config, *third)
    run_all(made.folder, output, config, "--set", "learning_rate=0.002", "--overwrite", stages=[2])
    with pytest.raises(
        BadInput, match=r"runs/tiny/fold0/best\.pt changed since 02_train\.py --run second"
    ):
        run_stage("03_predict.py", "--run", "third", "--output", output)


def test_a_finished_run_outlives_the_one_it_started_from(copied, config, capsys):
    _, output = copied
    second_part(output, config)
    shutil.rmtree(output / artifacts.Run("tiny").folder)
    second_part(output, config)
    assert "fold 1 is up to date" in capsys.readouterr().out
    run_stage("03_predict.py", "--run", "second", "--output", output, "--workers", 0)


def test_folds_started_at_the_same_moment_do_not_get_in_each_others_way(copied, config):
    _, output = copied
    command = [
        sys.executable,
        "02_train.py",
        "--config",
        config,
        "--run",
        "both",
        "--output",
        output,
        "--workers",
        "0",
    ]
    both = [
        subprocess.Popen(
            [*command, "--fold", fold], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for fold in "01"
    ]
    printed = [process.communicate(timeout=200)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], printed


def test_a_frozen_encoder_where_there_is_none_is_refused(copied, config):
    _, output = copied
    unet = [
        "--set",
        "model=unet",
        "--set",
        "model_settings={base_channels: 4}",
        "--set",
        "frozen_encoder_epochs=1",
    ]
    with pytest.raises(BadConfig, match="unet has no encoder"):
        run_stage("02_train.py", "--config", config, *unet, "--run", "frozen", "--output", output)


def test_starting_from_a_run_that_is_missing_or_of_another_network_is_refused(copied, config):
    _, output = copied
    start = ["--run", "second", "--output", output, "--workers", 0, "--set"]
    with pytest.raises(BadInput, match=r"02_train\.py --run absent --fold 0"):
        run_stage("02_train.py", "--config", config, *start, "init_from=runs/absent")
    with pytest.raises(BadInput, match="belongs to another network"):
        run_stage(
            "02_train.py",
            "--config",
            config,
            *start,
            "init_from=runs/tiny",
            "--set",
            "model_settings.attention=false",
        )
    with pytest.raises(BadConfig, match="cannot start from itself"):
        run_stage("02_train.py", "--config", config, *start, "init_from=runs/second")


def test_a_swapped_cached_mask_is_noticed_before_training(copied, config):
    made, output = copied
    first, second = (output / artifacts.Cache(64).mask(image_id) for image_id in made.positives[:2])
    first.write_bytes(second.read_bytes())
    with pytest.raises(BadInput, match=rf"{made.positives[0]}\.png: damaged"):
        run_all(made.folder, output, config, "--overwrite", stages=[2])


def test_a_swapped_cached_image_is_noticed_before_its_map_is_made(copied):
    made, output = copied
    first, second = (output / artifacts.Cache(64).image(image_id) for image_id in made.test_ids[:2])
    first.write_bytes(second.read_bytes())
    with pytest.raises(BadInput, match=rf"{made.test_ids[0]}\.png: damaged"):
        run_stage(
            "03_predict.py", "--run", "tiny", "--overwrite", "--output", output, "--workers", 0
        )


def test_a_network_whose_maps_are_no_numbers_is_named_with_the_images(copied, monkeypatch):
    _, output = copied
    real = probability_maps.probabilities

    def broken(networks, images):
        maps, classification = real(networks, images)
        return maps * float("nan"), classification

    monkeypatch.setattr(probability_maps, "probabilities", broken)
    before = artifacts.read_table(output, artifacts.Run("tiny").predictions)
    (output / artifacts.Run("tiny").predicted.path).unlink()
    (output / artifacts.Run("tiny").prediction_journal()).unlink()
    with pytest.raises(
        BadInput, match=r"run tiny: \d+ maps are not finite numbers: train the run again"
    ):
        run_stage("03_predict.py", "--run", "tiny", "--output", output, "--workers", 0)
    assert not (output / artifacts.Run("tiny").predicted.path).exists()
    assert artifacts.read_table(output, artifacts.Run("tiny").predictions).equals(before)


def test_what_a_killed_run_left_half_written_among_the_maps_goes(copied):
    made, output = copied
    path = output / artifacts.Run("tiny").probability_map(artifacts.TEST, made.test_ids[0])
    path.unlink()
    path.with_name(".gone.png.123.tmp").write_bytes(b"half")
    run_stage("03_predict.py", "--run", "tiny", "--output", output, "--workers", 0)
    assert path.exists()
    assert not list(path.parent.glob("*.tmp"))


def test_run_lengths_that_do_not_decode_to_their_mask_are_never_written(copied, monkeypatch):
    _, output = copied
    monkeypatch.setattr(rle, "encode", lambda mask: "0 1")
    with pytest.raises(RuntimeError, match="do not decode to the mask"):
        run_stage(
            "04_submit.py", "--run", "tiny", "--overwrite", "--output", output, "--workers", 1
        )


def test_a_submission_of_empty_masks_is_a_warning_and_the_command_to_hand_it_in_is_printed(
    copied, capsys, monkeypatch
):
    _, output = copied
    monkeypatch.setattr(
        postprocess, "mask", lambda stored, triplet, shape, *_: np.zeros(shape, np.uint8)
    )
    run_stage("04_submit.py", "--run", "tiny", "--overwrite", "--output", output, "--workers", 1)
    printed = capsys.readouterr().out
    assert (
        "warning: no image has a predicted pneumothorax; 50.0% of the training images have one"
        in printed
    )
    path = output / artifacts.Submission("tiny").csv
    assert (
        f"kaggle competitions submit -c siim-acr-pneumothorax-segmentation -f {path} -m tiny"
        in printed
    )


def test_a_run_that_never_gives_finite_numbers_is_not_finished(copied, config):
    _, output = copied
    settings = ["--set", "learning_rate=1e30", "--set", "epochs=8", "--run", "wild"]
    with pytest.raises(BadInput, match="not finite"):
        run_stage("02_train.py", "--config", config, *settings, "--output", output, "--workers", 0)
    assert not (output / artifacts.Run("wild").fold(0).trained.path).exists()
    settings = [
        "--set",
        "learning_rate=1e30",
        "--set",
        "epochs=1",
        "--run",
        "short",
    ]  # too few steps for ten in a row
    with pytest.raises(
        BadInput, match="fold 0: no epoch gave finite weights and scores: lower learning_rate"
    ):
        run_stage("02_train.py", "--config", config, *settings, "--output", output, "--workers", 0)
    assert not (output / artifacts.Run("short").fold(0).trained.path).exists()


def test_a_typo_in_the_settings_leaves_no_run_behind(copied, config):
    _, output = copied
    wrong = ["--config", config, "--run", "typo", "--output", output, "--set"]
    with pytest.raises(BadConfig, match="resnet999"):
        run_stage("02_train.py", *wrong, "model_settings.encoder=resnet999")
    assert not (output / artifacts.Run("typo").config).exists()


def test_no_network_is_trained_on_an_image_or_patient_of_the_fold_that_scores_it(
    finished, config, tmp_path, monkeypatch
):
    made, _ = finished
    seen = []

    class Watched(loop.Training):
        def __init__(self, network, data, *args, **kwargs):
            seen.append(data)
            super().__init__(network, data, *args, **kwargs)

    monkeypatch.setattr(loop, "Training", Watched)
    run_all(made.folder, tmp_path / "output", config, "--set", "epochs=1", stages=range(3))
    assert len(seen) == 2
    for data in seen:
        for column in ("image_id", "patient_id"):
            assert not set(data.train[column]) & set(data.validation[column])
        assert {*data.train["image_id"], *data.validation["image_id"]} == set(made.masks)
        assert set(data.validation["fold"]) == {data.fold}


def test_an_out_of_fold_map_comes_from_the_network_of_its_own_fold_and_no_other(copied):
    _, output = copied
    run_stage(
        "03_predict.py", "--run", "tiny", "--precision", "fp32", "--output", output, "--workers", 0
    )
    rows = artifacts.training_rows(output)
    for fold in (0, 1):
        image_id = rows.loc[rows["fold"] == fold, "image_id"].iloc[0]
        image = (
            torch.from_numpy(png.read(output / artifacts.Cache(64).image(image_id)))[None, None]
            / 255
        )
        stored = png.read(output / artifacts.Run("tiny").probability_map(artifacts.OOF, image_id))
        maps = []
        for number in (fold, 1 - fold):
            state = torch.load(
                output / artifacts.Run("tiny").fold(number).best_weights, weights_only=True
            )
            network = models.build_untrained(
                "ica_resunet", **state["config"]["model_settings"]
            ).eval()
            network.load_state_dict(state["network"])
            maps.append(probability_maps.probabilities([network], image)[0][0, 0].numpy() * 255)
        assert np.abs(stored - maps[0]).max() <= 0.51
        assert np.abs(stored - maps[1]).max() > 1


def test_maps_in_16_bits_are_those_in_32_but_for_rounding_and_never_taken_for_them(copied):
    _, output = copied
    table, stored = artifacts.Run("tiny").predictions, {}
    for name in ("bf16", "fp32"):
        run_stage(
            "03_predict.py",
            "--run",
            "tiny",
            "--precision",
            name,
            "--output",
            output,
            "--workers",
            0,
        )
        assert records.read(output, artifacts.Run("tiny").predicted)["settings"]["bf16"] == (
            name == "bf16"
        )
        paths = [
            output / artifacts.Run("tiny").probability_map(row.split, row.image_id)
            for row in artifacts.read_table(output, table).itertuples()
        ]
        stored[name] = np.stack([png.read(path).astype(int) for path in paths])
    difference = np.abs(stored["bf16"] - stored["fp32"])
    assert (
        0 < difference.max() <= 8
    )  # bf16 keeps 8 bits of each activation: 1/256 of a logit below 8
    assert difference.mean() < 0.5


def test_out_of_fold_masks_are_made_with_the_thresholds_of_the_other_folds(copied, monkeypatch):
    """The fitted triplets are replaced by very different ones, so that each fold's masks show which was used."""
    _, output = copied
    by_fold = {0: postprocess.Triplet(0.1, 0, 0.05), 1: postprocess.Triplet(0.6, 0, 0.55)}
    final = postprocess.Triplet(0.9, 0, 0.9)
    surface = np.zeros((len(thresholds.TOPS), len(thresholds.MIN_AREAS), len(thresholds.BOTTOMS)))
    fitted = thresholds.Fitted(
        by_fold, final, {0: 0.0, 1: 0.0}, 0.0, surface, {"triplet": (0.0, 0.0)}
    )
    monkeypatch.setattr(thresholds, "fit", lambda *_: fitted)
    run_stage("04_submit.py", "--run", "tiny", "--output", output, "--overwrite", "--workers", 0)
    oof = artifacts.read_table(output, artifacts.Submission("tiny").out_of_fold)
    for image_id, fold, text in zip(oof["image_id"], oof["fold"], oof["rle"], strict=True):
        stored = png.read(output / artifacts.Run("tiny").probability_map(artifacts.OOF, image_id))
        shape = (64, 64) if image_id.endswith(".0.3") else (128, 128)
        assert rle.encode(postprocess.mask(stored, by_fold[fold], shape)) == text
    other = [
        postprocess.mask(
            png.read(output / artifacts.Run("tiny").probability_map(artifacts.OOF, i)),
            final,
            (128, 128),
        )
        for i in oof["image_id"]
    ]
    assert sum(int(mask.sum()) for mask in other) != oof["predicted_px"].sum()


def test_a_stale_submission_is_not_offered_once_the_test_maps_are_gone(copied, capsys):
    _, output = copied
    run_stage(
        "03_predict.py", "--run", "tiny", "--split", "oof", "--output", output, "--workers", 0
    )
    run_stage("04_submit.py", "--run", "tiny", "--output", output, "--workers", 0)
    run_stage("05_report.py", "--output", output)
    assert not (output / artifacts.Submission("tiny").csv).exists()
    assert "submission.csv" not in capsys.readouterr().out


def test_a_map_of_another_image_is_refused(copied):
    _, output = copied
    table = artifacts.read_table(output, artifacts.Run("tiny").predictions)
    first, second = (
        output / artifacts.Run("tiny").probability_map(artifacts.OOF, image_id)
        for image_id in table["image_id"][:2]
    )
    first.write_bytes(second.read_bytes())
    with pytest.raises(BadInput, match=r"is not the map that 03_predict\.py wrote"):
        run_stage(
            "04_submit.py", "--run", "tiny", "--output", output, "--overwrite", "--workers", 0
        )


def test_a_map_that_was_changed_is_predicted_again(finished):
    _, output = finished
    table = artifacts.read_table(output, artifacts.Run("tiny").predictions)
    path = output / artifacts.Run("tiny").probability_map(artifacts.OOF, table.at[0, "image_id"])
    good = path.read_bytes()
    path.write_bytes(good[:-20])
    run_stage("03_predict.py", "--run", "tiny", "--output", output, "--workers", 0)
    assert path.read_bytes() == good
    assert records.sha256(path) == table.at[0, "sha256"]


@pytest.mark.parametrize("script", ["00_prepare_data.py", "01_make_folds.py", "04_submit.py"])
def test_stages_that_need_no_network_import_no_torch(finished, script):
    made, output = finished
    argv = {
        "00_prepare_data.py": ["--input", str(made.folder), "--size", "64"],
        "01_make_folds.py": ["--folds", "2"],
    }
    argv |= {"04_submit.py": ["--run", "tiny"]}
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
