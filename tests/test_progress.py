"""What is drawn from a fold's history: progress.png and TensorBoard's event files."""

import math

import cv2
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pneumothorax import progress
from pneumothorax.tensorboard_log import PREDICTION, TRUTH, TensorBoardLog, overlay


def row(epoch, **changed):
    values = {"epoch": epoch, "learning_rate": 10.0**-epoch, "positives_per_negative": 2.0 if epoch < 3 else 1.0}
    values |= {"positives": 8, "negatives": 4, "train_loss": 1 / epoch, "skipped_steps": 0, "siim_dice": 0.7}
    return values | {"positive_dice": 0.5, "nothing_predicted": 0.6, "seconds": 9.0, "images_per_second": 5.0} | changed


def panels(rows):
    loss, scores, rate, ratio = progress.figure(rows, epochs=10, title="run, fold 0").axes
    return {"loss": loss, "scores": scores, "rate": rate, "ratio": ratio}


def drawn(axes, number=0):
    x, y = axes.lines[number].get_data()
    return list(x), list(y)


def test_the_picture_shows_loss_scores_rate_and_ratio_over_all_epochs_to_come():
    found = panels([row(1), row(2, siim_dice=math.nan), row(3, siim_dice=0.8, positive_dice=0.6)])
    assert drawn(found["loss"]) == ([1, 2, 3], [1, 1 / 2, 1 / 3])
    assert drawn(found["scores"]) == ([1, 3], [0.7, 0.8])  # an epoch without validation has no point
    assert drawn(found["scores"], 1) == ([1, 3], [0.5, 0.6])
    assert found["scores"].lines[2].get_ydata()[0] == 0.6  # predicting nothing
    assert drawn(found["ratio"], 1) == ([1, 2, 3], [2, 2, 1])
    assert found["rate"].get_yscale() == "log"
    assert all(axes.get_xlim() == (0.5, 10.5) for axes in found.values())


@pytest.mark.parametrize("rows", [[row(1)], [row(1, siim_dice=math.nan, train_loss=math.nan)]])
def test_one_epoch_and_one_without_numbers_can_be_drawn(rows, tmp_path):
    progress.draw(tmp_path / "progress.png", rows, epochs=1, title="run, fold 0")
    assert cv2.imread(str(tmp_path / "progress.png")).shape == (550, 900, 3)


def events(folder):
    """What TensorBoard itself reads."""
    return EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0}).Reload()


def test_tensorboards_reader_finds_every_number_and_picture(tmp_path):
    log = TensorBoardLog(tmp_path, finished_epochs=0)
    log.scalars(row(1))
    log.scalars(row(2, siim_dice=math.nan))
    image = np.full((32, 32), 100, np.uint8)
    log.overlays([image, image], [image > 200] * 2, [np.zeros((32, 32), np.float32)] * 2, epoch=2)
    found = events(tmp_path)  # before it is closed: a kill loses nothing
    assert [(one.step, one.value) for one in found.Scalars("loss/train_loss")] == [(1, 1.0), (2, 0.5)]
    assert [one.step for one in found.Scalars("score/siim_dice")] == [1]
    (picture,) = found.Images(found.Tags()["images"][0])
    assert (picture.step, picture.width, picture.height) == (2, 64, 32)
    log.close()


def test_a_log_that_goes_on_shows_each_epoch_once_with_its_last_value(tmp_path):
    first = TensorBoardLog(tmp_path, finished_epochs=0)
    for epoch in (1, 2, 3):
        first.scalars(row(epoch, train_loss=9.0))
    second = TensorBoardLog(tmp_path, finished_epochs=2)  # epoch 3 was not in the state that was saved
    second.scalars(row(3, train_loss=1.0))
    found = events(tmp_path).Scalars("loss/train_loss")
    assert [(one.step, one.value) for one in found] == [(1, 9.0), (2, 9.0), (3, 1.0)]
    first.close()
    second.close()


def test_truth_and_prediction_are_outlined_in_their_colours():
    image = np.full((16, 16), 50, np.uint8)
    truth, predicted = np.zeros((16, 16), bool), np.zeros((16, 16), bool)
    truth[2:6, 2:6] = True
    predicted[9:14, 9:14] = True
    picture = overlay(image, truth, predicted)
    assert tuple(picture[2, 3]) == TRUTH
    assert tuple(picture[9, 10]) == PREDICTION
    assert (picture[11, 11] == 50).all()  # the inside stays visible
