"""Labelled test images, scored once, with what the out-of-fold images settled.

Nothing that is found here is used to make a mask of the submission. Only this module and
the report's gallery read the labels of test images.

    settled     the masks of submission.csv: weights, calibration and thresholds of the final fit
    claimed     masks by thresholds that are fitted on the test labels: scored too high
    gap         claimed minus settled SIIM Dice: what the settled thresholds lose on new images
    unseen      patients that no training image shows
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pneumothorax.errors import counted
from pneumothorax.masks import evaluation
from pneumothorax.masks.evaluation import Fits
from pneumothorax.masks.predicted import Predicted
from pneumothorax.masks.thresholds import Grid
from pneumothorax.pipeline import artifacts, lineage
from pneumothorax.pipeline.artifacts import ALL_EMPTY, TEST_ALL, TEST_CLAIMED, TEST_UNSEEN
from pneumothorax.pipeline.engine import Engine, in_order
from pneumothorax.scores import bootstrap

LabelRows = Mapping[str, tuple[str, ...]]


def label_rows(output: Path) -> LabelRows:
    """{test image id: its mask rows}, () for a negative one; {} if stage 00 found no labels."""
    if not lineage.has_test_labels(output):
        return {}
    return artifacts.label_rows(output, artifacts.TEST_LABELS)


def tables(
    output: Path, name: str, tested: Predicted, fits: Fits, *, grid: Grid, seed: int, engine: Engine
) -> dict[artifacts.Table, pd.DataFrame]:
    """The submission's tables about its labelled test images; {} if no such image exists."""
    submission = artifacts.Submission(name)
    labelled = with_labels(tested, label_rows(output))
    if not labelled.images:
        return {}
    settled, claimed = compare(labelled, fits, grid, engine)
    patients = artifacts.read_table(output, artifacts.TEST_PATIENTS)
    return {
        submission.test_images: settled,
        submission.test_scores: scores(settled, claimed, patients, seed=seed),
    }


def with_labels(tested: Predicted, rows: LabelRows) -> Predicted:
    """The labelled ones of the test images, in the same order, with their labels."""
    chosen = [n for n, image in enumerate(tested.images) if image.image_id in rows]
    images = [replace(tested.images[n], label_rows=rows[tested.images[n].image_id]) for n in chosen]
    return Predicted(images, tested.fold[chosen], tested.scores[chosen])


def compare(
    labelled: Predicted, fits: Fits, grid: Grid, engine: Engine
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The settled and the claimed mask of each image against its truth.

    Both have the weights and the calibration of the final fit. The claimed thresholds are the
    best of `grid` on these very images.

    Returns artifacts.Submission.test_images rows of both; `rle` only for the settled masks.
    """
    weights = fits.blends[None].weights
    search = evaluation.search(labelled.images, [weights], grid, engine)[weights]
    settled = fits.rules(labelled.scores)
    p_positive = np.array([rule.p_positive for rule in settled])
    best = search.best(np.ones(len(settled), dtype=bool), p_positive).triplet
    rules = [(rule, rule._replace(triplet=best)) for rule in settled]
    calls = list(zip(labelled.images, rules, strict=True))
    found = in_order(
        evaluation.compare,
        calls,
        engine,
        per_task=evaluation.IMAGES_PER_TASK,
        title="test scores",
    )
    first, second = (pd.DataFrame(rows) for rows in zip(*found, strict=True))
    return first, second


def scores(
    settled: pd.DataFrame, claimed: pd.DataFrame, patients: pd.DataFrame, *, seed: int
) -> pd.DataFrame:
    """artifacts.Submission.test_scores rows.

    Args:
        settled, claimed: rows of `compare`.
        patients: artifacts.TEST_PATIENTS rows; may hold other images, too.
    """
    known = patients[["image_id", "patient_id", "in_training"]]
    settled, claimed = (
        images.merge(known, on="image_id", how="left", validate="one_to_one")
        for images in (settled, claimed)
    )
    of_row = {TEST_ALL: settled, TEST_UNSEEN: settled[settled["in_training"] == 0]}
    empty = {"predicted_px": 0, "overlap_px": 0, "p_positive": 0.0}
    of_row |= {f"{ALL_EMPTY}, {row}": images.assign(**empty) for row, images in of_row.items()}
    of_row[TEST_CLAIMED] = claimed
    rows = [_row(row, images, seed) for row, images in of_row.items()]
    return pd.DataFrame(rows, columns=list(artifacts.TEST_SCORE_COLUMNS))


def _row(row: str, images: pd.DataFrame, seed: int) -> dict[str, Any]:
    """One row of `scores`; no scores without images."""
    cells: dict[str, Any] = {
        "row": row,
        "images": len(images),
        "positives": int((images["true_px"] > 0).sum()),
    }
    if images.empty:
        return cells
    for score, value, low, high in bootstrap.intervals(images, seed=seed).itertuples(index=False):
        cells |= {score: value, f"{score}_low": low, f"{score}_high": high}
    return cells


def in_words(scores: pd.DataFrame) -> list[str]:
    """Lines for the terminal from artifacts.Submission.test_scores rows."""
    by_row = scores.set_index("row")
    lines = []
    for row in (TEST_ALL, TEST_UNSEEN):
        own, all_empty = by_row.loc[row], by_row.loc[f"{ALL_EMPTY}, {row}"]
        if not own["images"]:
            lines.append(f"{row}: none of the labelled test images")
            continue
        low, high = own["siim_dice_low"], own["siim_dice_high"]
        interval = "" if np.isnan(low) else f" ({low:.4f} to {high:.4f})"
        images = counted(int(own["images"]), "image")
        lines.append(
            f"{row}: SIIM Dice {own['siim_dice']:.4f}{interval}, "
            f"all-empty baseline {all_empty['siim_dice']:.4f}, {images}"
        )
    settled, claimed = (by_row.loc[row]["siim_dice"] for row in (TEST_ALL, TEST_CLAIMED))
    return [*lines, f"{TEST_CLAIMED} would claim {claimed:.4f} ({claimed - settled:+.4f})"]
