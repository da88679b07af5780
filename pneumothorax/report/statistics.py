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
class TestStatistics:
    """Of the labelled test images.

    Args:
        images, positives, patients: how many there are.
        in_training: images of patients who also have images in training.
        unseen: images of patients who have none.
        unknown: images of which the patient is unknown.
        caution: as in Evaluated, "" if there is none.
        differences: as in Statistics.
    """

    images: int
    positives: int
    patients: int
    in_training: int
    unseen: int
    unknown: int
    caution: str
    differences: pd.DataFrame


@dataclass(frozen=True)
class Statistics:
    """Computed from the runs' per-image tables; everything but `differences` by run.

    Args:
        intervals: bootstrap.intervals rows.
        strata: strata.table rows.
        operating_points: curves.operating_point rows.
        calibration_errors: expected calibration errors.
        differences: comparison.all_pairs rows, also against the all-empty baseline.
        test: None without labelled test images.
    """

    intervals: dict[str, pd.DataFrame]
    strata: dict[str, pd.DataFrame]
    roc: dict[str, pd.DataFrame]
    operating_points: dict[str, pd.DataFrame]
    calibration: dict[str, pd.DataFrame]
    calibration_errors: dict[str, float]
    differences: pd.DataFrame
    test: TestStatistics | None = None


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
        test=_test_statistics(runs, seed=seed),
    )


def _test_statistics(runs: list[Run], *, seed: int) -> TestStatistics | None:
    """Counts are those of the first run's images: the differences refuse runs of other images."""
    frames = {run.name: run.test.per_image for run in runs if run.test}
    if not frames:
        return None
    frame = next(iter(frames.values()))
    return TestStatistics(
        images=len(frame),
        positives=int((frame["true_px"] > 0).sum()),
        patients=bootstrap.patients(frame)[1],
        in_training=int((frame["in_training"] == 1).sum()),
        unseen=int((frame["in_training"] == 0).sum()),
        unknown=int(frame["in_training"].isna().sum()),
        caution=caution(frame, "test images"),
        differences=_differences(frames, seed=seed),
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
    drawn = "" if prepared["phantoms"] else phantom_caution(runs)  # the page says it of the images
    found = [text for text in (drawn, caution(frame)) if text]
    return Evaluated(
        images=len(frame),
        positives=int((frame["true_px"] > 0).sum()),
        patients=bootstrap.patients(frame)[1],
        folds=frame["fold"].nunique(),
        grouping=grouping(folded["settings"]["patients"]),
        cautions=found,
        phantoms=prepared["phantoms"],
    )


def cautions(runs: list[Run]) -> list[str]:
    """`phantom_caution`; `caution` of every run's images and labelled test images, each once."""
    found = [phantom_caution(runs), *(caution(run.per_image) for run in runs)]
    found += [caution(run.test.per_image, "test images") for run in runs if run.test]
    return [text for text in dict.fromkeys(found) if text]


def phantom_caution(runs: list[Run]) -> str:
    """A warning that names the runs trained on phantoms, "" without any."""
    names = ", ".join(run.name for run in runs if run.phantoms)
    warning = "their scores say nothing about networks trained on radiographs"
    return f"Trained on phantoms, the built-in demo data: {names}; {warning}." if names else ""


def caution(frame: pd.DataFrame, images: str = "images") -> str:
    """A warning where there are too few images to conclude anything, "" otherwise.

    Args:
        frame: artifacts.PER_IMAGE rows.
        images: what the rows are, in the plural.
    """
    positives = int((frame["true_px"] > 0).sum())
    if positives < FEW_POSITIVES:
        scores = "these scores say that the pipeline runs, not how good it is"
        return f"Only {positives} of {len(frame)} {images} are positive: {scores}."
    patients = bootstrap.patients(frame)[1]
    if patients >= FEW_PATIENTS:
        return ""
    group = "patients" if images == "images" else f"patients of {images}"
    return f"Only {patients} {group}: intervals are too narrow."


def grouping(patients: str) -> str:
    """What "patient" means in these folds, from the setting `patients` of stage 01's record."""
    if patients == "file":
        return "patients as listed in the file passed to stage 01"
    return (
        "patients by DICOM PatientID, which tells patients apart only if it was not "
        "anonymised (in SIIM-ACR it was): scores may be too high"
    )
