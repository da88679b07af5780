"""progress.png shows a fold's history."""

import math

import cv2
import matplotlib
import numpy as np
import pytest

from pneumothorax.pipeline import artifacts
from pneumothorax.training import history


def row(epoch, **changed):
    values = {
        "epoch": epoch,
        "learning_rate": 10.0**-epoch,
        "positives_per_negative": 2.0 if epoch < 3 else 1.0,
    }
    values |= {
        "positives": 8,
        "negatives": 4,
        "train_loss": 1 / epoch,
        "skipped_steps": 0,
        "siim_dice": 0.7,
    }
    return (
        values
        | {"positive_dice": 0.5, "all_empty": 0.6, "seconds": 9.0, "images_per_second": 5.0}
        | changed
    )


def panels(rows):
    loss, scores, rate, ratio = history.progress_figure(rows, epochs=10, title="run, fold 0").axes
    return {"loss": loss, "scores": scores, "rate": rate, "ratio": ratio}


def drawn(axes, number=0):
    x, y = axes.lines[number].get_data()
    return list(x), list(y)


def said(axes):
    return [text.get_text() for text in axes.texts]


def test_the_picture_shows_loss_scores_rate_and_ratio_with_room_for_all_epochs():
    found = panels([row(1), row(2, siim_dice=math.nan), row(3, siim_dice=0.8, positive_dice=0.6)])
    assert drawn(found["loss"]) == ([1, 2, 3], [1, 1 / 2, 1 / 3])
    assert drawn(found["scores"]) == (
        [1, 3],
        [0.7, 0.8],
    )  # an epoch without validation has no point
    assert drawn(found["scores"], 1) == ([1, 3], [0.5, 0.6])
    assert found["scores"].lines[2].get_ydata()[0] == 0.6  # the all-empty baseline
    assert drawn(found["rate"]) == ([1, 2, 3], [0.1, 0.01, 0.001])
    assert drawn(found["ratio"], 1) == ([1, 2, 3], [2, 2, 1])
    assert all(axes.get_xlim() == (0.5, 10.5) for axes in found.values())


@pytest.mark.parametrize("last, scale", [(1e-5, "log"), (2e-5, "linear"), (0.0, "linear")])
def test_a_learning_rate_that_falls_by_a_decade_is_on_a_log_axis(last, scale):
    found = panels([row(1, learning_rate=1e-4), row(2, learning_rate=last)])
    assert found["rate"].get_yscale() == scale


def test_a_panel_without_numbers_says_so_instead_of_making_up_a_scale():
    found = panels([row(1, siim_dice=math.nan, train_loss=math.nan)])
    for name in ("loss", "scores"):
        assert said(found[name])
        assert list(found[name].get_yticks()) == []
    found = panels([row(1, train_loss=math.nan), row(2)])
    assert said(found["loss"]) == said(found["scores"]) == []
    np.testing.assert_array_equal(drawn(found["loss"]), ([1, 2], [math.nan, 1 / 2]))


@pytest.mark.parametrize(
    "rows", [[row(1)], [row(1, siim_dice=math.nan, train_loss=math.nan)], [row(1, later=1.0)]]
)
def test_one_epoch_one_without_numbers_and_one_with_more_columns_can_be_drawn(rows, tmp_path):
    history.write_progress(tmp_path / "progress.png", rows, epochs=1, title="run, fold 0")
    assert cv2.imread(str(tmp_path / "progress.png")).shape == (550, 900, 3)


def test_drawing_leaves_matplotlibs_settings_alone(tmp_path):
    before = dict(matplotlib.rcParams)
    history.write_progress(tmp_path / "progress.png", [row(1)], epochs=1, title="run, fold 0")
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(("seconds", "drawn_epochs"), [(1e9, [3]), (0, [1, 2, 3])])
def test_short_epochs_share_a_picture_and_the_last_epoch_is_always_drawn(
    tmp_path, monkeypatch, seconds, drawn_epochs
):
    drawn = []
    monkeypatch.setattr(history, "PICTURE_SECONDS", seconds)
    monkeypatch.setattr(
        history, "write_progress", lambda path, rows, **_: drawn.append(rows[-1]["epoch"])
    )
    with history.Log(tmp_path, artifacts.Run("run").fold(0), epochs=3) as log:
        for epoch in (1, 2, 3):
            log.epoch([row(number) for number in range(1, epoch + 1)], [], "")
    assert drawn == drawn_epochs
