"""What stages refuse: damaged or swapped files, NaN, a full disk, a locked folder."""

import errno
import os
import shutil

import pytest
import torch

from pneumothorax import rle
from pneumothorax.compute import network_cost
from pneumothorax.errors import BadConfig, BadInput, OutputLocked
from pneumothorax.pipeline import artifacts, locks
from pneumothorax.prediction import probability_maps
from pneumothorax.training import loop
from tests.helpers.memory import OUT_OF_MEMORY
from tests.helpers.stages import files_below, run_all, run_on, settings

RUN = artifacts.Run("tiny")
pytestmark = pytest.mark.usefixtures("without_pictures")


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (0, "00_prepare_data"),
        (1, "01_make_folds"),
        (2, "02_train-tiny fold0"),
        (3, "03_predict-tiny"),
        (4, "04_submit-tiny"),
        (4, "03_predict-tiny"),  # whose maps it reads
        (5, "05_report"),
    ],
)
def test_the_second_process_of_any_stage_is_refused_and_changes_nothing(
    finished, config, number, name
):
    made, output = finished
    before = files_below(output)
    with (
        locks.lock(output, name),
        pytest.raises(OutputLocked, match=rf"in use for {name} by process {os.getpid()}"),
    ):
        run_all(made.folder, output, config, stages=[number])
    assert files_below(output) == before


def test_no_lock_makes_every_stage_replace_the_locks_of_a_process_elsewhere(
    copied, config, without_locks
):
    without_locks(errno.ENOLCK)
    made, output = copied
    of_stage = {
        0: ["00_prepare_data"],
        1: ["01_make_folds"],
        2: ["02_train-tiny", "02_train-tiny fold0", "02_train-tiny fold1"],
        3: ["03_predict-tiny"],
        4: ["03_predict-tiny", "04_submit-tiny"],
        5: ["05_report"],
    }
    names_of_all = {name for names in of_stage.values() for name in names}
    markers = [output / ".locks" / f"{name}.lock.marker" for name in names_of_all]
    for number, names in of_stage.items():
        for marker in markers:
            marker.write_text("1\nelsewhere\n")
        run_all(made.folder, output, config, stages=[number], flags=["--no-lock"])
        gone = {marker.name for marker in markers if not marker.exists()}
        assert gone == {f"{name}.lock.marker" for name in names}


def test_no_lock_leaves_the_lock_of_a_fold_that_is_not_asked_for(copied, config, without_locks):
    without_locks(errno.ENOLCK)
    made, output = copied
    markers = [output / ".locks" / f"02_train-tiny fold{fold}.lock.marker" for fold in (0, 1)]
    for marker in markers:
        marker.parent.mkdir(exist_ok=True)
        marker.write_text("1\nelsewhere\n")
    run_all(made.folder, output, config, "--fold", 0, stages=[2], flags=["--no-lock"])
    assert [marker.exists() for marker in markers] == [False, True]


def test_other_settings_under_the_same_run_are_refused_naming_the_difference(finished, config):
    made, output = finished
    with pytest.raises(BadInput, match=r"learning_rate: 0\.03 before, 0\.002 now"):
        run_all(made.folder, output, config, "--set", "learning_rate=0.002", stages=[2])
    # The other fold would keep its settings.
    one_fold = ["--set", "learning_rate=0.002", "--overwrite", "--fold", 0]
    with pytest.raises(BadConfig, match="--fold all"):
        run_all(made.folder, output, config, *one_fold, stages=[2])


def test_starting_from_a_missing_run_or_from_another_network_is_refused(copied, config):
    _, output = copied
    train = [output, "02_train.py", "--config", config, "--run", "second"]
    with pytest.raises(BadInput, match=r"02_train\.py --run absent --fold 0"):
        run_on(*train, *settings("init_from=runs/absent"))
    with pytest.raises(BadInput, match="belongs to another network"):
        run_on(*train, *settings("init_from=runs/tiny", "model_settings.base_channels=4"))
    with pytest.raises(BadConfig, match="cannot start from itself"):
        run_on(*train, *settings("init_from=runs/second"))


@pytest.mark.parametrize("flags", [["--run", "second"], ["--run", "tiny", "--overwrite"]])
def test_a_network_that_cannot_take_the_image_size_is_refused_before_anything_is_written(
    finished, config, flags
):
    _, output = finished
    before = files_below(output)
    network = settings("model=smp/PAN", "model_settings={encoder: resnet18, encoder_weights: none}")
    with pytest.raises(
        BadConfig, match=r"cannot take images of 64 x 64 .* nearest .* 128: --set image_size=128"
    ):
        run_on(output, "02_train.py", "--config", config, *flags, *network)
    assert files_below(output) == before


def test_a_run_that_has_begun_is_not_tried_again_at_its_image_size(copied, config, monkeypatch):
    made, output = copied
    tried = []
    monkeypatch.setattr(network_cost, "require_size", lambda *_: tried.append(1))
    run_all(made.folder, output, config, stages=[2])
    assert tried == []


def test_a_damaged_best_checkpoint_is_noticed_and_its_fold_trained_again_on_request(copied, config):
    made, output = copied
    path = output / RUN.fold(0).best_weights
    good = path.read_bytes()
    middle = len(good) // 2
    path.write_bytes(good[:middle] + bytes([good[middle] ^ 0xFF]) + good[middle + 1 :])
    with pytest.raises(BadInput, match=r"best\.pt is not what 02_train\.py"):
        run_on(output, "03_predict.py", "--run", "tiny")
    with pytest.raises(BadInput, match="--fold 0 --overwrite trains this fold from scratch"):
        run_all(made.folder, output, config, stages=[2])
    run_all(made.folder, output, config, "--fold", 0, "--overwrite", stages=[2])
    run_all(made.folder, output, config, stages=[3])


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
        run_on(output, "03_predict.py", "--run", "tiny", "--overwrite")


def test_a_swapped_cached_image_is_noticed_before_it_is_shown_with_another_images_truth(copied):
    made, output = copied
    first, second = (
        output / artifacts.Cache(64).image(image_id) for image_id in list(made.masks)[:2]
    )
    first.write_bytes(second.read_bytes())
    with pytest.raises(BadInput, match=r"damaged"):
        run_on(output, "05_report.py", "--overwrite")


def test_a_probability_map_of_another_image_is_refused(copied):
    _, output = copied
    table = artifacts.read_table(output, RUN.predictions)
    first, second = (
        output / RUN.probability_map(artifacts.OOF, image_id) for image_id in table["image_id"][:2]
    )
    first.write_bytes(second.read_bytes())
    with pytest.raises(BadInput, match=r"is not the map that 03_predict\.py wrote"):
        run_on(output, "04_submit.py", "--run", "tiny", "--overwrite")


def test_a_run_whose_probability_maps_are_not_finite_is_named_with_the_number_of_maps(
    copied, monkeypatch
):
    _, output = copied
    real = probability_maps.probabilities

    def broken(networks, images):
        maps, classification = real(networks, images)
        return maps * float("nan"), classification

    monkeypatch.setattr(probability_maps, "probabilities", broken)
    before = artifacts.read_table(output, RUN.predictions)
    (output / RUN.predicted.path).unlink()
    (output / RUN.prediction_journal()).unlink()
    with pytest.raises(
        BadInput, match=r"run tiny: \d+ probability maps are not finite: train it again"
    ):
        run_on(output, "03_predict.py", "--run", "tiny")
    assert not (output / RUN.predicted.path).exists()
    assert artifacts.read_table(output, RUN.predictions).equals(before)


def test_a_run_without_finite_weights_and_scores_is_not_finished(copied, config):
    _, output = copied
    wild = settings("learning_rate=1e30", "epochs=8")
    with pytest.raises(BadInput, match="not finite"):
        run_on(output, "02_train.py", "--config", config, "--run", "wild", *wild)
    assert not (output / artifacts.Run("wild").fold(0).trained.path).exists()
    short = settings("learning_rate=1e30", "epochs=1")  # too few steps for ten in a row
    with pytest.raises(
        BadInput, match="fold 0: no epoch gave finite weights and scores: lower learning_rate"
    ):
        run_on(output, "02_train.py", "--config", config, "--run", "short", *short)
    assert not (output / artifacts.Run("short").fold(0).trained.path).exists()


def test_run_lengths_that_do_not_decode_to_their_mask_are_never_written(copied, monkeypatch):
    _, output = copied
    monkeypatch.setattr(rle, "encode", lambda mask: "0 1")
    with pytest.raises(RuntimeError, match="do not decode to the mask"):
        run_on(output, "04_submit.py", "--run", "tiny", "--overwrite")


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_out_of_memory_lists_what_to_try_and_leaves_the_checkpoint_intact(
    copied, config, monkeypatch, error
):
    _, output = copied
    folder = output / artifacts.Run("large").fold(0).folder

    def allocate(self, epoch):
        if epoch == 1:
            raise error

    monkeypatch.setattr(loop.Optimization, "start_epoch", allocate)
    with pytest.raises(BadInput, match="4 images at a time at 64 x 64") as caught:
        run_on(output, "02_train.py", "--config", config, "--run", "large")
    for advice in ("accumulation_steps=2", "batch_size=2", "precision=bf16"):
        assert advice in str(caught.value)
    assert torch.load(folder / "last.pt", weights_only=True)["progress"]["epoch"] == 1


def test_out_of_memory_before_the_first_step_is_one_sentence(copied, config, monkeypatch):
    def allocate(network, config, device):
        raise OUT_OF_MEMORY[0]

    monkeypatch.setattr(loop, "Optimization", allocate)
    with pytest.raises(BadInput, match="before the first step: end what else uses the memory of"):
        run_on(copied[1], "02_train.py", "--config", config, "--run", "large")


def test_stage_03_out_of_memory_names_a_smaller_batch_and_keeps_the_maps(copied, monkeypatch):
    _, output = copied
    before = artifacts.read_table(output, RUN.predictions)
    (output / RUN.predicted.path).unlink()
    (output / RUN.probability_map(artifacts.OOF, before["image_id"][0])).unlink()

    def too_large(networks, images):
        raise OUT_OF_MEMORY[0]

    monkeypatch.setattr(probability_maps, "probabilities", too_large)
    with pytest.raises(BadInput, match=r"with 16 images at a time; .* with --batch-size 8$"):
        run_on(output, "03_predict.py", "--run", "tiny")
    monkeypatch.undo()
    run_on(output, "03_predict.py", "--run", "tiny", "--batch-size", 8)
    assert set(artifacts.read_table(output, RUN.predictions)["sha256"]) >= set(before["sha256"][1:])


def test_a_disk_too_full_for_checkpoints_is_reported_before_training(copied, config, monkeypatch):
    _, output = copied
    usage = shutil.disk_usage(output)
    best = torch.load(output / RUN.fold(0).best_weights, weights_only=True)
    weights = sum(value.nbytes for value in best["network"].values())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5 * weights))
    # A new run needs three states, each with Adam's two moments, and the best weights.
    with pytest.raises(BadInput, match="MiB are needed"):
        run_on(output, "02_train.py", "--config", config, "--run", "roomy")
    assert not (output / artifacts.Run("roomy").fold(0).last).exists()
    (output / RUN.fold(0).trained.path).unlink()
    # An existing one needs room for one more state, while that is written.
    run_on(output, "02_train.py", "--config", config, "--run", "tiny")
