"""What stage 04 reports about an evaluation: tables, the facts of its record, closing lines."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pneumothorax import metrics, rle
from pneumothorax.masks import blending, testing
from pneumothorax.masks.evaluation import Evaluation
from pneumothorax.masks.nested import HeldOut, NestedThresholds
from pneumothorax.masks.postprocess import Triplet
from pneumothorax.masks.thresholds import Grid
from pneumothorax.pipeline import artifacts, lineage, records, stage
from pneumothorax.scores import comparison, curves

COMPETITION = "siim-acr-pneumothorax-segmentation"


def tables(name: str, blend: Evaluation, grid: Grid) -> dict[artifacts.Table, pd.DataFrame]:
    """The tables of a submission about its out-of-fold images."""
    submission = artifacts.Submission(name)
    return {
        submission.out_of_fold: blend.images,
        submission.cross_validation: cross_validation(blend),
        submission.threshold_surface: threshold_surface(blend.thresholds, grid),
        submission.steps: postprocessing_steps(blend.thresholds),
    }


def gains(
    output: Path, name: str, blend: Evaluation, single_runs: Mapping[str, Evaluation], *, seed: int
) -> dict[str, Any]:
    """The facts "above_all_empty" and, of several runs, "gain" over the best of them."""
    manifest, folds = (
        artifacts.read_table(output, table) for table in (artifacts.MANIFEST, artifacts.FOLDS)
    )
    above = comparison.gain_over_all_empty(blend.images, manifest, folds, name, seed=seed)
    if not single_runs:
        return {"above_all_empty": above}
    images_of = {run: alone.images for run, alone in single_runs.items()}
    gain = comparison.gain_over_best_run(blend.images, images_of, manifest, folds, seed=seed)
    return {"above_all_empty": above, "gain": gain}


def facts(evaluation: Evaluation) -> dict[str, Any]:
    """What was fitted and how it scores, for postprocess.json; "final" is for the test images."""
    thresholds, images = evaluation.thresholds, evaluation.images
    uncalibrated = images.assign(p_positive=evaluation.uncalibrated)

    def by_name(values: dict[HeldOut, Any]) -> dict[str, Any]:
        return {"final" if fold is None else str(fold): value for fold, value in values.items()}

    blends = evaluation.fits.blends.items()
    return {
        "final": vars(thresholds.final),
        "by_fold": {str(fold): vars(triplet) for fold, triplet in thresholds.by_fold.items()},
        "weights": by_name({fold: list(blend.weights) for fold, blend in blends}),
        "calibration": by_name({fold: vars(blend.calibration) for fold, blend in blends}),
        "nested_siim_dice": float(images["dice"].mean()),
        "naive_siim_dice": thresholds.naive,
        "expected_calibration_error": {
            "calibrated": curves.expected_calibration_error(curves.calibration(images)),
            "uncalibrated": curves.expected_calibration_error(curves.calibration(uncalibrated)),
        },
    }


def called_positive(blend: Evaluation, test_masks: Mapping[str, str]) -> dict[str, Any]:
    """The fact "called_positive": the share of images with a mask that is not empty.

    Out of fold, masks come from single networks, those of test images from all networks
    together. A much lower share of the latter says that the thresholds do not suit them,
    unless fewer test images are positive.

    Args:
        test_masks: {image id: mask as text}; may be empty.
    """
    shares = {"out of fold": float((blend.images["predicted_px"] > 0).mean())}
    if test_masks:
        shares["of the test images"] = float(
            np.mean([text != rle.EMPTY for text in test_masks.values()])
        )
    return {"called_positive": shares}


def cross_validation(evaluation: Evaluation) -> pd.DataFrame:
    """artifacts.Submission.cross_validation rows.

    Each fold, their mean and standard deviation, all images together, the thresholds for
    test images, and the all-empty baseline on all images and on each fold.
    """
    images, thresholds = evaluation.images, evaluation.thresholds
    rows = [
        {
            **_scores(f"fold {fold}", images[images["fold"] == fold]),
            "naive_siim_dice": thresholds.naive_by_fold[fold],
            **_triplet_cells(triplet),
        }
        for fold, triplet in sorted(thresholds.by_fold.items())
    ]
    per_fold = pd.DataFrame(rows)[[*artifacts.SCORE_COLUMNS, "naive_siim_dice"]]
    rows += [
        {"row": "mean", **_counts(images), **per_fold.mean()},
        {"row": "std", **_counts(images), **per_fold.std(ddof=1)},
        {**_scores("all", images), "naive_siim_dice": thresholds.naive},
        {"row": artifacts.FINAL, **_counts(images), **_triplet_cells(thresholds.final)},
        _all_empty(artifacts.ALL_EMPTY, images),
    ]
    for fold, part in images.groupby("fold"):
        rows.append(_all_empty(f"{artifacts.ALL_EMPTY}, fold {fold}", part))
    return pd.DataFrame(rows, columns=list(artifacts.CROSS_VALIDATION_COLUMNS))


def threshold_surface(thresholds: NestedThresholds, grid: Grid) -> pd.DataFrame:
    """artifacts.Submission.threshold_surface rows: all thresholds with bottom not above top."""
    tried = itertools.product(grid.tops, grid.min_areas, grid.bottoms, grid.min_probabilities)
    table = pd.DataFrame(tried, columns=["top", "min_area", "bottom", "min_probability"])
    table["siim_dice"] = thresholds.surface.ravel()
    return table[np.isfinite(table["siim_dice"])]


def postprocessing_steps(thresholds: NestedThresholds) -> pd.DataFrame:
    """artifacts.Submission.steps rows."""
    rows = [(name, step.nested, step.naive) for name, step in thresholds.steps.items()]
    return pd.DataFrame(rows, columns=list(artifacts.STEP_COLUMNS))


def closing_lines(output: Path, name: str, grid: Grid) -> list[str]:
    """The numbers to check, read from the submission's files, and what to do next."""
    submission = artifacts.Submission(name)
    record = records.read(output, submission.record)
    scores = artifacts.read_table(output, submission.cross_validation).set_index("row")
    steps = artifacts.read_table(output, submission.steps)
    everything, all_empty = scores.loc["all"], scores.loc[artifacts.ALL_EMPTY]
    naive, nested = everything["naive_siim_dice"], everything["siim_dice"]
    error, above = record["expected_calibration_error"], record["above_all_empty"]
    final = Triplet(**record["final"])

    runs = list(record["settings"]["runs"])
    lines = blending.described(runs, record["weights"]) if len(runs) > 1 else []
    lines.append(
        f"SIIM Dice {nested:.4f} out of fold; all-empty baseline {all_empty['siim_dice']:.4f}: "
        f"{above['difference']:+.4f} (95 % interval {above['low']:+.4f} to {above['high']:+.4f})"
    )
    if "gain" in record:
        lines.append(comparison.gain_in_words(record["gain"]))
    lines += [
        f"positives-only Dice {everything['positive_dice']:.4f} "
        f"on {everything['positives']:.0f} of {everything['images']:.0f} images",
        f"thresholds fitted on the scored images would claim {naive:.4f} ({naive - nested:+.4f})",
        "step by step: "
        + ", ".join(f"{row.step} {row.siim_dice:.4f}" for row in steps.itertuples()),
        f"image level: AUC {everything['auc']:.4f}, expected calibration error "
        f"{error['calibrated']:.4f} ({error['uncalibrated']:.4f} before calibration)",
        f"final thresholds: {final.described()}",
    ]
    lines += [
        f"note: the chosen {which} is the last one tried" for which in grid.last_values(final)
    ]
    shares = record["called_positive"].items()
    lines.append("called positive: " + ", ".join(f"{share:.1%} {where}" for where, share in shares))
    if submission.test_scores.path in record["outputs"]:
        lines += testing.in_words(artifacts.read_table(output, submission.test_scores))
    path = output / submission.csv
    lines.append(f"wrote {path.parent}")
    of_kaggle = "sample submission" in lineage.prepared(output)["inputs"]
    if path.exists() and (of_kaggle or record["settings"]["sample_submission"]):
        submitted = stage.quoted("-c", COMPETITION, "-f", path, "-m", name)
        lines.append(f"to submit: kaggle competitions submit {submitted}")
    return [*lines, stage.next_step(output, "05_report.py")]


def _scores(row: str, images: pd.DataFrame) -> dict[str, Any]:
    columns = "true_px predicted_px overlap_px p_positive".split()
    scores = metrics.scores(*(images[column].to_numpy() for column in columns))
    return {"row": row, **_counts(images), **scores}


def _all_empty(row: str, images: pd.DataFrame) -> dict[str, Any]:
    return {"row": row, **_counts(images), **metrics.all_empty(images["true_px"].to_numpy())}


def _counts(images: pd.DataFrame) -> dict[str, int]:
    return {"images": len(images), "positives": int((images["true_px"] > 0).sum())}


def _triplet_cells(triplet: Triplet) -> dict[str, float]:
    return {name: float(value) for name, value in vars(triplet).items()}
