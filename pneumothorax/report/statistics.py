"""The report's numbers: what was evaluated, intervals, strata, curves, paired differences."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from pneumothorax.pipeline import artifacts
from pneumothorax.report.runs import Run
from pneumothorax.scores import bootstrap, comparison, curves, per_image, strata

FEW_POSITIVES = 50  # with fewer, every score of positives depends on a handful of images
FEW_PATIENTS = 100  # with fewer, intervals are too narrow: with 40, they hold the truth in 90 %
COMPARED = ("siim_dice", "positive_dice", "pooled_dice", "auc")  # between every two runs


@dataclass(frozen=True)
class Evaluated:
    """What was evaluated.

    Args:
        grouping: what counts as a patient, as part of a sentence.
        cautions: sentences the reader must know before the numbers.
        phantoms: the images are the demo's phantoms.
    """

    images: int
    positives: int
    patients: int
    folds: int
    grouping: str
    cautions: Sequence[str] = ()
    phantoms: bool = False


@dataclass(frozen=True)
class Statistics:
    """Computed from the runs' per-image tables; everything but `differences` by run.

    Args:
        intervals: bootstrap.intervals rows.
        strata: strata.table rows.
        operating_points: curves.operating_point rows.
        calibration_errors: expected calibration errors.
        differences: comparison.all_pairs rows, also against the all-empty baseline.
    """

    intervals: dict[str, pd.DataFrame]
    strata: dict[str, pd.DataFrame]
    roc: dict[str, pd.DataFrame]
    operating_points: dict[str, pd.DataFrame]
    calibration: dict[str, pd.DataFrame]
    calibration_errors: dict[str, float]
    differences: pd.DataFrame


def compute(runs: list[Run], *, seed: int) -> Statistics:
    """Raises BadInput when the runs' images or folds differ."""
    frames = {run.name: run.per_image for run in runs}
    calibration = {name: curves.calibration(frame) for name, frame in frames.items()}
    return Statistics(
        differences=_differences(frames, seed=seed),
        intervals={name: bootstrap.intervals(frame, seed=seed) for name, frame in frames.items()},
        strata={name: strata.table(frame, seed=seed) for name, frame in frames.items()},
        roc={name: curves.roc(frame) for name, frame in frames.items()},
        operating_points={name: curves.operating_point(frame) for name, frame in frames.items()},
        calibration=calibration,
        calibration_errors={
            name: curves.expected_calibration_error(table) for name, table in calibration.items()
        },
    )


def _differences(frames: dict[str, pd.DataFrame], *, seed: int) -> pd.DataFrame:
    """Between every two runs, and from the all-empty baseline by SIIM Dice only."""
    baseline = per_image.all_empty(next(iter(frames.values())))
    pairs = comparison.all_pairs({**frames, artifacts.ALL_EMPTY: baseline}, COMPARED, seed=seed)
    return pairs[(pairs["second"] != artifacts.ALL_EMPTY) | (pairs["score"] == "siim_dice")]


def evaluated(runs: list[Run], prepared: dict[str, Any], folded: dict[str, Any]) -> Evaluated:
    """Counts of the first run's images: `compute` refuses runs of other images.

    Args:
        prepared, folded: the records of stages 00 and 01.
    """
    frame = runs[0].per_image
    warning = caution(runs[0])
    return Evaluated(
        images=len(frame),
        positives=int((frame["true_px"] > 0).sum()),
        patients=bootstrap.patients(frame)[1],
        folds=frame["fold"].nunique(),
        grouping=grouping(folded["settings"]["patients"]),
        cautions=[warning] if warning else [],
        phantoms=prepared["phantoms"],
    )


def caution(run: Run) -> str:
    """A warning where there are too few images to conclude anything, "" otherwise."""
    positives = int((run.per_image["true_px"] > 0).sum())
    if positives < FEW_POSITIVES:
        images = f"Only {positives} of {len(run.per_image)} images are positive"
        return f"{images}: these scores say that the pipeline runs, not how good it is."
    patients = bootstrap.patients(run.per_image)[1]
    return f"Only {patients} patients: intervals are too narrow." if patients < FEW_PATIENTS else ""


def grouping(patients: str) -> str:
    """What "patient" means in these folds, from the setting `patients` of stage 01's record."""
    if patients == "file":
        return "patients as listed in the file passed to stage 01"
    return (
        "patients by DICOM PatientID, which tells patients apart only if it was not "
        "anonymised (in SIIM-ACR it was): scores may be too high"
    )
