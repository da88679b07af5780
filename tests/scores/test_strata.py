"""Scores by mask size, view and sex, counted by hand."""

import numpy as np
import pytest

from pneumothorax.scores import bootstrap, strata
from tests.helpers.frames import frame, random_frame


def ten_images():
    """Masks of 0.1, 0.2, ..., 0.8 % of 100 x 100 pixels; two negatives, one with a false alarm."""
    true_px = [80, 70, 60, 50, 40, 30, 20, 10, 0, 0]
    overlap_px = [80, 70, 30, 25, 0, 15, 5, 0, 0, 0]  # Dice 1, 1, 0.5, 0.5, 0, 0.5, 0.25, 0, 1, 0
    predicted_px = [80, 70, 60, 50, 0, 30, 20, 0, 0, 9]
    views = ["PA", "AP", "PA", "AP", "", "LL", "PA", "AP", "PA", ""]
    sexes = ["F", "M", "M", "M", "M", "M", "M", "M", "F", "O"]
    return frame(true_px, predicted_px, overlap_px, view=views, sex=sexes)


def by_level(stratum):
    table = strata.table(ten_images(), repeats=100)
    assert list(table.columns) == list(strata.COLUMNS)
    return table[table["stratum"] == stratum].set_index("level")


def test_quarters_of_the_mask_area_by_hand():
    # Quartiles of 0.1 .. 0.8: 0.275, 0.45, 0.625, so two positives in each quarter.
    table = by_level("mask size")
    assert table.index.tolist() == [
        "negative",
        "mask 1st quarter (0.1-0.2 %)",
        "mask 2nd quarter (0.3-0.4 %)",
        "mask 3rd quarter (0.5-0.6 %)",
        "mask 4th quarter (0.7-0.8 %)",
    ]
    assert table["images"].tolist() == [2] * 5
    assert table["positives"].tolist() == [0, 2, 2, 2, 2]
    assert table["siim_dice"].tolist() == pytest.approx([0.5, 0.125, 0.25, 0.5, 1])
    assert table["positive_dice"].tolist() == pytest.approx(
        [np.nan, 0.125, 0.25, 0.5, 1], nan_ok=True
    )
    assert table["sensitivity"].tolist() == pytest.approx([np.nan, 0.5, 0.5, 1, 1], nan_ok=True)
    assert table["specificity"].tolist() == pytest.approx([0.5, *[np.nan] * 4], nan_ok=True)
    assert table["all_empty"].tolist() == [1, 0, 0, 0, 0]


def test_mask_sizes_are_shares_of_the_image_itself():
    table = strata.table(
        frame([50, 50], [50, 50], [50, 50], height=[100, 1000], width=[100, 10]), repeats=10
    )
    assert table["level"].tolist()[0] == "mask 1st quarter (0.5-0.5 %)"


def test_views_and_sexes_by_hand_with_missing_ones_as_unknown():
    views = by_level("view")
    assert views["images"].to_dict() == {"PA": 4, "AP": 3, "LL": 1, "unknown": 2}
    assert views["positives"].to_dict() == {"PA": 3, "AP": 3, "LL": 1, "unknown": 1}
    assert views.loc["PA", "siim_dice"] == pytest.approx((1 + 0.5 + 0.25 + 1) / 4)
    assert views.loc["PA", "positive_dice"] == pytest.approx((1 + 0.5 + 0.25) / 3)
    assert views.loc["PA", "all_empty"] == 0.25
    assert views.loc["unknown", ["sensitivity", "specificity", "all_empty"]].tolist() == [
        0,
        0,
        0.5,
    ]
    assert by_level("sex")["images"].to_dict() == {"F": 2, "M": 7, "O": 1}


def test_the_intervals_of_a_level_are_over_its_own_patients():
    table = random_frame(np.random.default_rng(0), patients=80)
    table["sex"] = np.where(table.index % 2, "F", "M")
    row = strata.table(table, repeats=100, seed=3).set_index("level").loc["F"]
    alone = bootstrap.intervals(
        table[table["sex"] == "F"], ["siim_dice", "positive_dice"], repeats=100, seed=3
    )
    assert row[["siim_dice_low", "positive_dice_low"]].tolist() == alone["low"].tolist()
    assert row[["siim_dice_high", "positive_dice_high"]].tolist() == alone["high"].tolist()
    assert row["siim_dice_low"] < row["siim_dice"] < row["siim_dice_high"]


def test_levels_without_images_are_left_out():
    table = strata.table(frame([0, 0], [0, 0], [0, 0]), repeats=10)
    assert table["level"].tolist() == ["negative", "PA", "F"]
