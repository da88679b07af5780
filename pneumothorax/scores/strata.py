"""Scores where they differ: by size of the pneumothorax, by view and by sex."""

from typing import Any

import numpy as np
import pandas as pd

from pneumothorax.data import folds
from pneumothorax.scores import bootstrap

COLUMNS = (
    *("stratum", "level", "images", "positives", "siim_dice", "siim_dice_low", "siim_dice_high"),
    *(
        "positive_dice",
        "positive_dice_low",
        "positive_dice_high",
        "sensitivity",
        "specificity",
        "all_empty",
    ),
)
UNKNOWN = "unknown"
USUAL = {"view": ("PA", "AP"), "sex": ("F", "M")}  # listed first
ORDINALS = ("1st", "2nd", "3rd", "4th")


def table(frame: pd.DataFrame, *, repeats: int = bootstrap.REPEATS, seed: int = 0) -> pd.DataFrame:
    """COLUMNS, one row per level that has images; 95 % intervals over the patients of the level.

    `all_empty` is the SIIM Dice of an empty prediction there, the share of negatives: levels with more
    negatives score higher for that alone, so compare levels by their positives-only Dice, or by the distance to it.

    Args:
        frame: rows of one run (artifacts.PER_IMAGE).
    """
    strata = {
        "mask size": mask_sizes(frame),
        "view": _words(frame, "view"),
        "sex": _words(frame, "sex"),
    }
    rows = [
        {"stratum": stratum, "level": level, **_scores(frame[chosen], repeats=repeats, seed=seed)}
        for stratum, levels in strata.items()
        for level, chosen in levels.items()
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def mask_sizes(frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """{level: (N,) of bool}: negatives, and positives by quarter of the mask's share of the image, smallest first.

    The quarters are those of the folds (folds.strata); a level names the smallest and the largest share in it.
    """
    stratum = folds.strata(frame.rename(columns={"true_px": "mask_pixels"}))
    percent = 100 * (frame["true_px"] / (frame["height"] * frame["width"])).to_numpy()
    levels = {folds.NEGATIVE: stratum == folds.NEGATIVE}
    for number, ordinal in enumerate(ORDINALS, start=1):
        chosen = stratum == f"area {number}"
        if chosen.any():
            low, high = (_two_digits(end) for end in (percent[chosen].min(), percent[chosen].max()))
            levels[f"mask {ordinal} quarter ({low}-{high} %)"] = chosen
    return {level: chosen for level, chosen in levels.items() if chosen.any()}


def _words(frame: pd.DataFrame, column: str) -> dict[str, np.ndarray]:
    """{level: (N,) of bool}: the usual values, then others that occur, then the images that give none."""
    values = frame[column].to_numpy()
    others = sorted(set(values) - {*USUAL[column], ""})
    levels = {value or UNKNOWN: values == value for value in (*USUAL[column], *others, "")}
    return {level: chosen for level, chosen in levels.items() if chosen.any()}


def _scores(part: pd.DataFrame, *, repeats: int, seed: int) -> dict[str, Any]:
    values = bootstrap.measured(part)
    row = {"images": len(part), "positives": int((part["true_px"] > 0).sum()), **values}
    for name, replicate in bootstrap.replicates(
        part, ["siim_dice", "positive_dice"], repeats=repeats, seed=seed
    ).items():
        row.update({f"{name}_{end}": value for end, value in bootstrap.interval(replicate).items()})
    return {**row, "all_empty": 1 - row["positives"] / row["images"]}


def _two_digits(value: float) -> str:
    return np.format_float_positional(value, precision=2, fractional=False, trim="-")
