"""TensorBoard's own reader finds a fold's history and pictures, each epoch once."""

import math
import time

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pneumothorax.pipeline import artifacts
from pneumothorax.plotting import PREDICTION_RGB, TRUTH_RGB
from pneumothorax.training.history import GROUPS, TensorBoardLog, overlay
from tests.helpers.images import disc

SIZE = 32
IMAGE = np.full((SIZE, SIZE), 50, np.uint8)
ALL_EMPTY = np.zeros((SIZE, SIZE), np.uint8)


def row(epoch, **changed):
    return dict.fromkeys(artifacts.HISTORY_COLUMNS, 0.5) | {"epoch": epoch} | changed


def log_epoch(log, epoch, *, train_loss, p_pixel=0.0):
    """The numbers, and two pictures whose every pixel has probability `p_pixel`."""
    log.scalars(row(epoch, train_loss=train_loss))
    log.overlays(
        [IMAGE] * 2, [ALL_EMPTY] * 2, [np.full((SIZE, SIZE), p_pixel, np.float32)] * 2, epoch=epoch
    )


def events(folder):
    return EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0}).Reload()


def losses(found):
    return [(one.step, one.value) for one in found.Scalars("loss/train_loss")]


def pictures(found):
    (tag,) = found.Tags()["images"]
    return found.Images(tag)


def marked(picture, colour):
    """(S, S) bool: the pixels that have the colour."""
    return (picture == colour).all(axis=2)


def test_the_reader_finds_every_number_before_the_log_is_closed(tmp_path):
    log = TensorBoardLog(tmp_path, finished_epochs=0)
    log.scalars(row(1, train_loss=1.0))
    log.scalars(row(2, train_loss=0.5, siim_dice=math.nan, later=7.0))
    found = events(tmp_path)  # what a kill leaves
    assert losses(found) == [(1, 1.0), (2, 0.5)]
    assert [one.step for one in found.Scalars("score/siim_dice")] == [1]
    log.close()


def test_every_column_of_the_history_is_logged():
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(
        artifacts.HISTORY_COLUMNS[1:]
    )


def test_the_reader_finds_the_pictures_side_by_side_at_their_epoch(tmp_path):
    log = TensorBoardLog(tmp_path, finished_epochs=0)
    log_epoch(log, 2, train_loss=1.0)
    (picture,) = pictures(events(tmp_path))
    assert (picture.step, picture.width, picture.height) == (2, 2 * SIZE, SIZE)
    log.close()


@pytest.mark.parametrize("finished", [0, 2, 3])
def test_a_log_resumed_after_a_kill_shows_each_epoch_once_with_its_last_numbers(finished, tmp_path):
    killed = TensorBoardLog(tmp_path, finished_epochs=0)
    for epoch in (1, 2, 3):
        log_epoch(killed, epoch, train_loss=9.0)
    old = {one.step: one.encoded_image_string for one in pictures(events(tmp_path))}
    time.sleep(1)  # files are read in the order of their names, which begin with the second
    log = TensorBoardLog(tmp_path, finished_epochs=finished)
    for epoch in range(finished + 1, 5):
        log_epoch(log, epoch, train_loss=1.0, p_pixel=1.0)
    found = events(tmp_path)
    assert losses(found) == [(epoch, 9.0 if epoch <= finished else 1.0) for epoch in (1, 2, 3, 4)]
    assert [one.step for one in pictures(found)] == [1, 2, 3, 4]
    for one in pictures(found):
        assert (one.encoded_image_string == old.get(one.step)) == (one.step <= finished)
    killed.close()
    log.close()


def test_a_file_cut_off_in_the_middle_of_a_number_costs_only_that_number(tmp_path):
    killed = TensorBoardLog(tmp_path, finished_epochs=0)
    for epoch in (1, 2):
        killed.scalars(row(epoch, train_loss=9.0))
    killed.close()
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    log = TensorBoardLog(tmp_path, finished_epochs=1)
    log.scalars(row(2, train_loss=1.0))
    assert losses(events(tmp_path)) == [(1, 9.0), (2, 1.0)]
    log.close()


def test_truth_and_prediction_are_outlined_in_the_reports_colours_and_the_inside_stays_visible():
    truth, predicted = disc(SIZE, 8, 8, 6), disc(SIZE, 22, 22, 6)
    picture = overlay(IMAGE, truth, predicted == 1)
    assert marked(picture, TRUTH_RGB)[2, 8] and marked(picture, PREDICTION_RGB)[16, 22]
    assert (picture[8, 8] == 50).all() and (picture[22, 22] == 50).all()


def test_where_truth_and_prediction_agree_both_are_visible():
    mask = disc(SIZE, 16, 16, 8)
    picture = overlay(IMAGE, mask, mask)
    assert marked(picture, TRUTH_RGB)[16, 7] and marked(picture, PREDICTION_RGB)[16, 8]


def test_a_probability_map_is_outlined_where_it_is_at_least_one_half(tmp_path, monkeypatch):
    log = TensorBoardLog(tmp_path, finished_epochs=0)
    written = []
    monkeypatch.setattr(
        log.writer, "add_image", lambda tag, picture, *args, **kwargs: written.append(picture)
    )
    for p_pixel in (0.49, 0.5):
        log_epoch(log, 1, train_loss=1.0, p_pixel=p_pixel)
    assert [bool(marked(picture, PREDICTION_RGB).any()) for picture in written] == [False, True]
    log.close()
