"""Scores by size of the pneumothorax, by view and by sex."""

from typing import Any

import numpy as np
import pandas as pd

from pneumothorax.data import folds
from pneumothorax.scores import bootstrap

COLUMNS = tuple(
    "stratum level images positives siim_dice siim_dice_low siim_dice_high "
    "positive_dice positive_dice_low positive_dice_high sensitivity specificity all_empty".split()
)
UNKNOWN = "unknown"
USUAL = {"view": ("PA", "AP"), "sex": ("F", "M")}  # listed first
ORDINALS = ("1st", "2nd", "3rd", "4th")


def table(frame: pd.DataFrame, *, repeats: int = bootstrap.REPEATS, seed: int = 0) -> pd.DataFrame:
    """COLUMNS, one row per level that has images, with 95 % intervals over its patients.

    `all_empty` is the SIIM Dice of the all-empty baseline: the level's share of negatives.
    Levels with more negatives score higher for that reason alone, so compare levels by their
    positives-only Dice, or by the distance to `all_empty`.

    Args:
        frame: rows of one run (artifacts.PER_IMAGE).
    """
    strata = {
        "mask size": mask_sizes(frame),
        "view": _values(frame, "view"),
        "sex": _values(frame, "sex"),
    }
    rows = [
        {"stratum": stratum, "level": level, **_scores(frame[chosen], repeats=repeats, seed=seed)}
        for stratum, levels in strata.items()
        for level, chosen in levels.items()
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def mask_sizes(frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """{level: (N,) bool}: negatives, then positives by quarter of the mask's area, ascending.

    Areas are shares of the image. The quarters are those of the folds (folds.strata); a
    level's name gives its smallest and its largest share.
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


def _values(frame: pd.DataFrame, column: str) -> dict[str, np.ndarray]:
    """{value: (N,) bool}: the usual values, then any others, then images without a value."""
    values = frame[column].to_numpy()
    others = sorted(set(values) - {*USUAL[column], ""})
    levels = {value or UNKNOWN: values == value for value in (*USUAL[column], *others, "")}
    return {level: chosen for level, chosen in levels.items() if chosen.any()}


def _scores(images: pd.DataFrame, *, repeats: int, seed: int) -> dict[str, Any]:
    positives = int((images["true_px"] > 0).sum())
    row = {"images": len(images), "positives": positives, **bootstrap.measured(images)}
    scores = ["siim_dice", "positive_dice"]
    found = bootstrap.replicates(images, scores, repeats=repeats, seed=seed)
    for name, replicate in found.items():
        row.update({f"{name}_{end}": value for end, value in bootstrap.interval(replicate).items()})
    return {**row, "all_empty": 1 - positives / len(images)}


def _two_digits(value: float) -> str:
    return np.format_float_positional(value, precision=2, fractional=False, trim="-")
