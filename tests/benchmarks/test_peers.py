"""Other pipelines on our folds: what goes to them, what comes back. nnU-Net is not needed."""

import json
import shutil
import zipfile

import cv2
import numpy as np
import pandas as pd
import pytest

from benchmarks.peers import __main__ as peers
from benchmarks.peers import nnunet, peer_run
from benchmarks.peers.budget import epochs_within
from pneumothorax.errors import BadInput
from pneumothorax.pipeline import artifacts, atomic
from tests.helpers.stages import run_on, scores


@pytest.fixture
def output(folded, tmp_path):
    """After stage 01: 24 images of 64 x 64, 12 positive, two folds; tests may change it."""
    return shutil.copytree(folded, tmp_path / "output")


def train_smp(output, *more):
    flags = ["--output", output, "--peer", "smp", "--minutes", "0.001", "--size", "64"]
    peers.main([str(flag) for flag in [*flags, "--encoder-weights", "none", *more]])


@pytest.mark.parametrize(
    ("seconds", "done", "elapsed", "epochs"),
    [
        (100, 1, 30.0, 3),  # the fourth would end after 120
        (100, 2, 70.0, 2),  # slower by now: the third would end after 105
        (100, 4, 80.0, 5),  # the fifth ends after exactly 100
        (100, 1, 250.0, 1),  # the first took too long already
    ],
)
def test_as_many_epochs_as_end_within_the_time(seconds, done, elapsed, epochs):
    assert epochs_within(seconds, done=done, elapsed=elapsed) == epochs


def test_nnu_net_trains_on_the_other_folds_and_predicts_the_held_out_one():
    rows = pd.DataFrame({"image_id": ["a", "b", "c", "d"], "fold": [1, 0, 2, 1]})
    assert nnunet.as_splits(rows) == [
        {"train": ["a", "c", "d"], "val": ["b"]},
        {"train": ["b", "c"], "val": ["a", "d"]},
        {"train": ["a", "b", "d"], "val": ["c"]},
    ]


def test_nnu_net_gets_every_training_image_with_a_label_of_0_and_1(output, tmp_path):
    radiographs = peer_run.load_radiographs(output, 32)
    nnunet.export(radiographs, tmp_path / "peer")
    raw = tmp_path / "peer" / "nnUNet_raw" / nnunet.DATASET
    ids = sorted(radiographs.rows["image_id"])
    names = {path.name for path in (raw / "imagesTr").iterdir()}
    assert names == {f"{image_id}_0000.png" for image_id in ids}
    labels = {path.stem: cv2.imread(str(path), -1) for path in (raw / "labelsTr").iterdir()}
    assert sorted(labels) == ids
    assert {label.shape for label in labels.values()} == {(32, 32)}
    assert {value for label in labels.values() for value in np.unique(label).tolist()} == {0, 1}
    positive = dict(zip(radiographs.rows["image_id"], radiographs.rows["positive"], strict=True))
    assert {image_id: int(label.any()) for image_id, label in labels.items()} == positive
    splits = tmp_path / "peer" / "nnUNet_preprocessed" / nnunet.DATASET / "splits_final.json"
    assert [len(split["val"]) for split in json.loads(splits.read_text())] == [12, 12]
    assert json.loads((raw / "dataset.json").read_text())["numTraining"] == 24


def test_a_lesion_comes_back_from_nnu_net_where_it_was(tmp_path):
    lesion = np.zeros((1, 4, 6), dtype=np.float32)
    lesion[0, 1, 5] = 0.75
    np.savez_compressed(tmp_path / "1.2.3.npz", probabilities=np.stack([1 - lesion, lesion]))
    ((image_id, probabilities),) = nnunet.read_maps(tmp_path)
    assert image_id == "1.2.3"
    assert probabilities.shape == (4, 6)
    assert probabilities[1, 5] == 0.75
    assert probabilities.sum() == 0.75


@pytest.mark.parametrize(
    ("probability", "called", "siim_dice"),
    [(0.45, 0.0, 0.5), (0.55, 1.0, None)],  # nothing called: the 12 negatives of 24 score 1
)
def test_by_its_own_rule_a_peer_calls_what_is_likelier_than_not(
    output, probability, called, siim_dice
):
    run = peer_run.PeerRun(output, "other", {"peer": "other"})
    radiographs = peer_run.load_radiographs(output, 64)
    for fold in radiographs.folds:
        run.weights(fold).write_bytes(b"weights")
        ids = radiographs.rows.loc[radiographs.rows["fold"] == fold, "image_id"]
        maps = [(image_id, np.full((64, 64), probability)) for image_id in ids]
        run.add(fold, peer_run.Trained([{"epoch": 1, "seconds": 1.0}], maps, {}))
    run.seal(radiographs.folds)
    value = run.scores_by_own_rule(seed=0).set_index("score")["value"]
    assert value["called_positive"] == called
    if siim_dice is None:
        assert value["siim_dice"] < 0.5  # every negative is lost
        assert value["gain"] < 0
    else:
        assert value["siim_dice"] == siim_dice
        assert value["gain"] == 0


def test_stages_04_and_05_take_a_peer_for_one_of_our_runs(output, without_pictures, capsys):
    train_smp(output)
    table = artifacts.read_table(output, artifacts.Run("smp").predictions)
    folds = artifacts.read_table(output, artifacts.FOLDS)
    fold_of = dict(zip(folds["image_id"], folds["fold"], strict=True))
    assert dict(zip(table["image_id"], table["fold"], strict=True)) == fold_of
    assert set(table["split"]) == {"oof"}

    run_on(output, "04_submit.py", "--run", "smp")
    assert scores(output, "smp").loc["all", "images"] == 24
    run_on(output, "05_report.py", "--names", "smp", "--zip")
    assert "no model card for smp, which other software trained" in capsys.readouterr().out
    with zipfile.ZipFile(output / artifacts.REPORT_ZIP) as packed:
        names = packed.namelist()
    assert artifacts.REPORT_SUMMARY in names
    assert not [name for name in names if name.endswith("MODEL_CARD.md")]

    train_smp(output)
    assert "fold 1 is up to date" in capsys.readouterr().out


def test_a_peer_never_replaces_a_run_of_ours(output):
    atomic.write_text(output / artifacts.Run("smp").config, "model: unet\n")
    with pytest.raises(BadInput, match="run smp is one of ours"):
        train_smp(output)
