"""Stages 00 to 05 on a tiny input: what a user relies on from one end to the other."""

import csv
import json

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import models
from pneumothorax import png, rle
from pneumothorax.masks import nested, postprocess, thresholds
from pneumothorax.pipeline import artifacts, records
from pneumothorax.prediction import probability_maps
from pneumothorax.training import loop
from tests.helpers.networks import SMALL
from tests.helpers.stages import (
    TINY,
    run_all,
    run_on,
    scores,
    settings,
    tiny_input,
    train_from_tiny,
)

RUN = artifacts.Run("tiny")
SUBMISSION = artifacts.Submission("tiny")


def test_the_submission_has_the_samples_ids_in_order_and_legal_rows(finished):
    made, output = finished
    with open(output / SUBMISSION.csv, newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["ImageId", "EncodedPixels"]
    assert [row[0] for row in rows] == made.test_ids
    for _, text in rows:
        assert rle.encode(rle.decode(text, (128, 128))) == text
    assert b"\r" not in (output / SUBMISSION.csv).read_bytes()


def test_every_training_image_is_predicted_out_of_fold_by_the_network_of_its_own_fold(finished):
    made, output = finished
    folds = artifacts.read_table(output, artifacts.FOLDS).set_index("image_id")["fold"]
    table = artifacts.read_table(output, RUN.predictions)
    oof = table[table["split"] == artifacts.OOF].set_index("image_id")["fold"]
    assert set(oof.index) == set(made.masks)
    assert (oof == folds[oof.index]).all()
    for image_id in made.masks:
        assert png.read(output / RUN.probability_map(artifacts.OOF, image_id)).shape == (64, 64)


def test_no_network_is_trained_on_an_image_or_patient_of_the_fold_that_scores_it(
    copied, config, monkeypatch, without_pictures
):
    made, output = copied
    seen = []

    class Watched(loop.Training):
        def __init__(self, network, data, *args, **kwargs):
            seen.append(data)
            super().__init__(network, data, *args, **kwargs)

    monkeypatch.setattr(loop, "Training", Watched)
    changes = settings("epochs=1")
    run_on(output, "02_train.py", "--config", config, "--run", "watched", *changes)
    assert len(seen) == 2
    for data in seen:
        for column in ("image_id", "patient_id"):
            assert not set(data.train[column]) & set(data.validation[column])
        assert {*data.train["image_id"], *data.validation["image_id"]} == set(made.masks)
        assert set(data.validation["fold"]) == {data.fold}


def test_an_out_of_fold_map_comes_from_the_network_of_its_own_fold_and_no_other(copied):
    _, output = copied
    run_on(output, "03_predict.py", "--run", "tiny", "--precision", "fp32")
    rows = artifacts.training_rows(output)
    for fold in (0, 1):
        image_id = rows.loc[rows["fold"] == fold, "image_id"].iloc[0]
        pixels = png.read(output / artifacts.Cache(64).image(image_id))
        image = torch.from_numpy(pixels)[None, None] / 255
        stored = png.read(output / RUN.probability_map(artifacts.OOF, image_id))
        maps = []
        for number in (fold, 1 - fold):
            state = torch.load(output / RUN.fold(number).best_weights, weights_only=True)
            network = models.build_untrained("unet", **state["config"]["model_settings"])
            network.load_state_dict(state["network"])
            found, _ = probability_maps.probabilities([network.eval()], image)
            maps.append(found[0, 0].numpy() * 255)
        assert np.abs(stored - maps[0]).max() <= 0.51
        assert np.abs(stored - maps[1]).max() > 1


def test_out_of_fold_masks_are_made_with_the_thresholds_of_the_other_folds(copied, monkeypatch):
    """Very different triplets are planted: the masks show which one was used."""
    _, output = copied
    by_fold = {0: postprocess.Triplet(0.1, 0, 0.05), 1: postprocess.Triplet(0.6, 0, 0.55)}
    final = postprocess.Triplet(0.9, 0, 0.9)
    grid = thresholds.Grid()
    surface = np.zeros((len(grid.tops), len(grid.min_areas), len(grid.bottoms), 1))
    fitted = nested.NestedThresholds(
        by_fold, final, 0.0, {0: 0.0, 1: 0.0}, surface, {"triplet": nested.Step(0.0, 0.0)}
    )
    monkeypatch.setattr(nested, "fit", lambda *_: fitted)
    run_on(output, "04_submit.py", "--run", "tiny", "--overwrite")
    oof = artifacts.read_table(output, SUBMISSION.out_of_fold)
    for image_id, fold, text in zip(oof["image_id"], oof["fold"], oof["rle"], strict=True):
        stored = png.read(output / RUN.probability_map(artifacts.OOF, image_id))
        shape = (64, 64) if image_id.endswith(".0.3") else (128, 128)
        assert rle.encode(postprocess.mask(stored, by_fold[fold], shape)) == text
    other = [
        postprocess.mask(
            png.read(output / RUN.probability_map(artifacts.OOF, i)), final, (128, 128)
        )
        for i in oof["image_id"]
    ]
    assert sum(int(mask.sum()) for mask in other) != oof["predicted_px"].sum()


def test_maps_in_16_bits_differ_from_those_in_32_by_rounding_and_are_recorded_as_such(copied):
    _, output = copied
    table, stored = RUN.predictions, {}
    for name in ("bf16", "fp32"):
        run_on(output, "03_predict.py", "--run", "tiny", "--precision", name)
        assert records.read(output, RUN.predicted)["settings"]["precision"] == name
        paths = [
            output / RUN.probability_map(row.split, row.image_id)
            for row in artifacts.read_table(output, table).itertuples()
        ]
        stored[name] = np.stack([png.read(path).astype(int) for path in paths])
    difference = np.abs(stored["bf16"] - stored["fp32"])
    # bf16 keeps 8 bits of each activation: 1/256 of a logit below 8
    assert 0 < difference.max() <= 8
    assert difference.mean() < 0.5


def test_cv_csv_agrees_with_masks_counted_again(finished):
    made, output = finished
    oof = artifacts.read_table(output, SUBMISSION.out_of_fold).set_index("image_id")
    expected = []
    for image_id, truth in made.masks.items():
        predicted = rle.decode(oof.at[image_id, "rle"], truth.shape)
        both, total = int((truth & predicted).sum()), int(truth.sum() + predicted.sum())
        expected.append(2 * both / total if total else 1.0)
    table = scores(output)
    assert table.at["all", "siim_dice"] == pytest.approx(np.mean(expected), abs=1e-5)
    negatives = len(made.masks) - len(made.positives)
    assert table.at["all-empty baseline", "siim_dice"] == pytest.approx(negatives / len(made.masks))
    per_fold = table.loc[["fold 0", "fold 1"], "siim_dice"]
    assert table.at["mean", "siim_dice"] == pytest.approx(per_fold.mean(), abs=1e-5)
    assert table.at["std", "siim_dice"] == pytest.approx(per_fold.std(ddof=1), abs=1e-5)


def test_history_has_one_row_per_epoch_and_the_ratio_of_the_schedule(finished):
    _, output = finished
    history = pd.read_csv(output / RUN.fold(0).history.path)
    assert list(history.columns) == [*artifacts.HISTORY_COLUMNS, artifacts.HISTORY_COMPUTED]
    assert history["epoch"].tolist() == [1, 2]
    # [[0, 2], [0.33, 1]] over two epochs
    assert history["positives_per_negative"].tolist() == [2.0, 1.0]
    assert history["negatives"].tolist() == [
        round(n / r) for n, r in zip(history["positives"], [2, 1], strict=True)
    ]


def test_epochs_without_validation_have_no_scores_and_the_last_epoch_has_them(copied, config):
    _, output = copied
    changes = settings("validate_every=2", "epochs=3", "precision=bf16")
    run_on(output, "02_train.py", "--config", config, "--run", "rare", "--fold", 0, *changes)
    fold = artifacts.Run("rare").fold(0)
    history = pd.read_csv(output / fold.history.path)
    assert history["siim_dice"].notna().tolist() == [False, True, True]
    assert history["train_loss"].notna().all()
    best = torch.load(output / fold.best_weights, weights_only=True)
    assert best["epoch"] in (2, 3)


def test_a_run_records_the_size_of_its_network_and_the_cost_of_training(finished):
    _, output = finished
    facts = json.loads((output / RUN.network_facts).read_text("utf-8"))
    network = models.build("unet", **yaml.safe_load(TINY)["model_settings"])
    assert facts["parameters"] == sum(weights.numel() for weights in network.parameters())
    assert facts["size"] == 64
    record = records.read(output, RUN.fold(0).trained)
    assert record["peak_memory_mib"] > 100  # PyTorch alone takes more
    assert "CPU" in record["device"]
    assert record["precision"] == "fp32"


def test_a_run_can_start_from_the_weights_of_another_at_another_resolution(
    copied, config, without_pictures
):
    _, output = copied
    train_from_tiny(output, config)
    for fold in (0, 1):
        first, second = (
            torch.load(output / artifacts.Run(run).fold(fold).best_weights, weights_only=True)
            for run in ("tiny", "second")
        )
        name = "mask_head.weight"
        torch.testing.assert_close(first["network"][name], second["network"][name])
        record = records.read(output, artifacts.Run("second").fold(fold).trained)
        path = RUN.fold(fold).best_weights
        assert record["inputs"][path] == records.sha256(output / path)


def test_the_default_network_goes_through_the_stages(copied, config, without_pictures):
    """ICA-ResUNet, in its smallest form; all other tests here train a U-Net."""
    _, output = copied
    smallest = ["model=ica_resunet", f"model_settings={json.dumps(SMALL['ica_resunet'])}"]
    flags = ["--run", "default", "--fold", 0, *settings(*smallest, "epochs=1")]
    run_on(output, "02_train.py", "--config", config, *flags)
    run_on(output, "03_predict.py", "--run", "default", "--fold", 0)
    run = artifacts.Run("default")
    assert json.loads((output / run.network_facts).read_text("utf-8"))["network"] == "IcaResUNet"
    assert len(artifacts.read_table(output, run.predictions)) == 6 + 3  # fold 0, and the test set


def test_without_a_sample_submission_the_stages_give_scores_only(
    tmp_path, config, without_pictures
):
    made = tiny_input(tmp_path / "input", test=0, unlabelled=0)
    run_all(made.folder, tmp_path / "output", config)
    assert (tmp_path / "output" / SUBMISSION.cross_validation.path).is_file()
    assert not (tmp_path / "output" / SUBMISSION.csv).exists()


def test_an_all_empty_submission_is_a_warning_and_the_command_to_submit_is_printed(
    copied, capsys, monkeypatch
):
    _, output = copied
    monkeypatch.setattr(
        postprocess, "mask", lambda stored, triplet, shape, *_: np.zeros(shape, np.uint8)
    )
    run_on(output, "04_submit.py", "--run", "tiny", "--overwrite")
    printed = capsys.readouterr().out
    assert (
        "warning: no image has a predicted pneumothorax; 50.0% of the training images have one"
        in printed
    )
    path = output / SUBMISSION.csv
    assert (
        f"kaggle competitions submit -c siim-acr-pneumothorax-segmentation -f {path} -m tiny"
        in printed
    )
