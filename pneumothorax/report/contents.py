"""What the report says of one or more runs: their tables, statistics over patients and costs, as data."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pneumothorax import metrics
from pneumothorax.errors import BadInput
from pneumothorax.pipeline import artifacts, lineage, records
from pneumothorax.report import page
from pneumothorax.scores import bootstrap, comparison, curves, per_image, strata

FEW_POSITIVES = 50  # below this all scores of positives rest on a handful of images
FEW_PATIENTS = 100  # below this intervals are too narrow: of 40 patients' intervals 90 % hold the truth, not 95 %
HEADLINES = (
    "siim_dice",
    "positive_dice",
    "pooled_dice",
    "pooled_iou",
    "auc",
    "sensitivity",
    "specificity",
)
COMPARED = ("siim_dice", "positive_dice", "pooled_dice", "auc")  # between every two runs


@dataclass(frozen=True)
class Run:
    """One submission: what stage 04 found, and what its run cost.

    Args:
        runs: names of the runs behind the submission `name`: one, or those of a blend.
        table: artifacts.Submission.cross_validation rows.
        images: artifacts.Submission.out_of_fold rows.
        per_image: artifacts.PER_IMAGE rows.
        surface: artifacts.Submission.threshold_surface rows.
        steps: artifacts.Submission.steps rows.
        weights: of a blend's runs, as page.Run has them.
        histories: history.csv of each fold; none of a blend.
        network: what network_trace.trace found; None for a blend and for a run that has no such file.
    """

    name: str
    runs: tuple[str, ...]
    table: pd.DataFrame
    images: pd.DataFrame
    per_image: pd.DataFrame
    surface: pd.DataFrame
    steps: pd.DataFrame
    weights: dict[str, dict[str, float]]
    histories: tuple[pd.DataFrame, ...]
    network: dict[str, Any] | None
    cost: page.Cost

    def row(self, name: str) -> dict[str, Any]:
        """A row of the cross-validation table, e.g. "all" or "all-empty baseline"."""
        return dict(self.table.set_index("row").loc[name])


@dataclass(frozen=True)
class Statistics:
    """What follows from the runs' per-image tables; everything but `differences` by run.

    Args:
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


def load(output: Path, name: str, manifest: pd.DataFrame, folds: pd.DataFrame) -> Run:
    """All that earlier stages left of the submission `name` and its runs."""
    runs = tuple(lineage.runs_of(output, name))
    images = artifacts.read_table(output, artifacts.Submission(name).out_of_fold)
    folds_used = sorted(set(images["fold"]))
    weights = _weights(output, name, runs)
    used = [
        run for run in runs if weights[artifacts.FINAL][run] > 0
    ]  # what predicting the test images takes
    trained = [
        records.read(output, artifacts.Run(run).fold(fold).trained)
        for run in used
        for fold in folds_used
    ]
    networks = [_network(output, run) for run in used]
    memory = [
        record["peak_memory_mib"] for record in trained if record.get("peak_memory_mib") is not None
    ]
    cost = page.Cost(
        parameters=_sum(networks, "parameters"),
        multiply_adds=_sum(networks, "multiply_adds"),
        seconds=sum(record["seconds"] for record in trained),
        peak_memory_mib=max(memory, default=None),
        device=", ".join(sorted({record.get("device", "") for record in trained})),
    )
    histories = [
        artifacts.read_table(output, artifacts.Run(runs[0]).fold(fold).history)
        for fold in folds_used
    ]
    return Run(
        name=name,
        runs=runs,
        table=artifacts.read_table(output, artifacts.Submission(name).cross_validation),
        images=images,
        per_image=per_image.table(images, manifest, folds, name),
        surface=artifacts.read_table(output, artifacts.Submission(name).threshold_surface),
        steps=artifacts.read_table(output, artifacts.Submission(name).steps),
        weights=weights if len(runs) > 1 else {},
        histories=tuple(histories) if len(runs) == 1 else (),
        network=networks[0] if len(runs) == 1 else None,
        cost=cost,
    )


def _weights(output: Path, name: str, runs: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Row of the cross-validation table -> run -> weight, from stage 04's record."""
    record = artifacts.Submission(name).record
    try:
        found: dict[str, list[float]] = records.read(output, record)["weights"]
        folds = sorted(int(left_out) for left_out in found if left_out != "final")
        rows = {
            **{f"fold {fold}": found[str(fold)] for fold in folds},
            artifacts.FINAL: found["final"],
        }
        return {row: dict(zip(runs, own, strict=True)) for row, own in rows.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(
            f"{output / record.path} is damaged or of an earlier version: run {record.made_by} again"
        ) from error


def _sum(networks: list[dict[str, Any] | None], fact: str) -> int | None:
    """Over all networks, where it is known of all."""
    return sum(network[fact] for network in networks if network) if all(networks) else None


def sources(runs: list[Run]) -> list[str]:
    """Paths below the output folder of the files that stand, through the records, for all that the report rests on."""
    submitted = [artifacts.Submission(run.name).record.path for run in runs]
    networks = [artifacts.Run(name).network_facts for run in runs for name in run.runs]
    return [artifacts.PREPARED.path, artifacts.FOLDED.path, *submitted, *networks]


def _network(output: Path, run: str) -> dict[str, Any] | None:
    path = output / artifacts.Run(run).network_facts
    if not path.is_file():
        return None
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        (
            facts["network"],
            facts["parameters"],
            facts["multiply_adds"],
            facts["parts"],
            facts["attention"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{path} is damaged: delete it and run 02_train.py --run {run} again"
        ) from error
    return facts


def statistics(runs: list[Run], *, seed: int) -> Statistics:
    """Intervals, strata, curves and paired differences. Raises BadInput when the runs' images or folds differ."""
    frames = {run.name: run.per_image for run in runs}
    calibration = {name: curves.calibration(frame) for name, frame in frames.items()}
    return Statistics(
        differences=differences(frames, seed=seed),
        intervals={name: bootstrap.intervals(frame, seed=seed) for name, frame in frames.items()},
        strata={name: strata.table(frame, seed=seed) for name, frame in frames.items()},
        roc={name: curves.roc(frame) for name, frame in frames.items()},
        operating_points={name: curves.operating_point(frame) for name, frame in frames.items()},
        calibration=calibration,
        calibration_errors={
            name: curves.expected_calibration_error(table) for name, table in calibration.items()
        },
    )


def differences(frames: dict[str, pd.DataFrame], *, seed: int) -> pd.DataFrame:
    """comparison.all_pairs rows of the runs, and of each against the all-empty baseline by SIIM Dice."""
    nothing = per_image.all_empty(next(iter(frames.values())))
    pairs = comparison.all_pairs({**frames, artifacts.ALL_EMPTY: nothing}, COMPARED, seed=seed)
    return pairs[(pairs["second"] != artifacts.ALL_EMPTY) | (pairs["score"] == "siim_dice")]


def combined_table(runs: list[Run]) -> pd.DataFrame:
    """All runs' cross-validation tables below each other, with a `run` column in front."""
    return pd.concat([run.table.assign(run=run.name) for run in runs], ignore_index=True)


def per_image_table(runs: list[Run]) -> pd.DataFrame:
    """Rows of artifacts.PER_IMAGE: of the all-empty baseline first, then of every run."""
    return pd.concat(
        [per_image.all_empty(runs[0].per_image), *(run.per_image for run in runs)],
        ignore_index=True,
    )


def summary(
    runs: list[Run], found: Statistics, about: page.Evaluated, *, seed: int
) -> dict[str, Any]:
    """Every number of the page, for programs: plain types, None where a number is undefined."""
    return {
        "evaluated": asdict(about),
        "definitions": metrics.DEFINITIONS,
        "bootstrap": {
            "unit": "patient",
            "repeats": bootstrap.REPEATS,
            "confidence": 0.95,
            "seed": seed,
        },
        "runs": {
            run.name: {
                "runs": list(run.runs),
                "weights": run.weights,
                "cost": asdict(run.cost),
                "cross_validation": _rows(run.table),
                "steps": _rows(run.steps),
                "intervals": _rows(found.intervals[run.name]),
                "strata": _rows(found.strata[run.name]),
                "calibration": _rows(found.calibration[run.name]),
                "expected_calibration_error": _plain(found.calibration_errors[run.name]),
            }
            for run in runs
        },
        "differences": _rows(found.differences),
    }


def content(
    runs: list[Run], found: Statistics, about: page.Evaluated, figures: dict[str, list[page.Figure]]
) -> page.Content:
    """What the page shows."""
    return page.Content(
        evaluated=about,
        runs=[
            page.Run(
                run.name,
                run.table,
                found.intervals[run.name],
                found.strata[run.name],
                steps=run.steps,
                weights=run.weights,
                cost=run.cost,
            )
            for run in runs
        ],
        differences=found.differences,
        figures=figures,
    )


def evaluated(runs: list[Run], prepared: dict[str, Any], folded: dict[str, Any]) -> page.Evaluated:
    """Counts of the first run's images: the others' are the same (`statistics` refuses others).

    Args:
        prepared, folded: the records of stages 00 and 01.
    """
    frame = runs[0].per_image
    return page.Evaluated(
        images=len(frame),
        positives=int((frame["true_px"] > 0).sum()),
        patients=bootstrap.patients(frame)[1],
        folds=frame["fold"].nunique(),
        grouping=grouping(folded["settings"]["patients"]),
        cautions=[text for text in [caution(runs[0])] if text],
        drawn=prepared.get("phantoms", False),
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
        return "patients as given in the file passed to stage 01"
    return "patients by DICOM PatientID, which says nothing where it is anonymised (SIIM-ACR): scores may be too high"


def terminal_table(runs: list[Run]) -> str:
    """The headline scores of every run as text, the all-empty baseline first."""
    header = ["run", "folds", *HEADLINES]
    nothing = runs[0].row(artifacts.ALL_EMPTY)
    lines = [
        header,
        [
            artifacts.ALL_EMPTY,
            "",
            *("" if pd.isna(nothing[name]) else f"{nothing[name]:.4f}" for name in HEADLINES),
        ],
    ]
    for run in runs:
        mean, std = run.row("mean"), run.row("std")
        scores = (f"{mean[name]:.4f} ± {std[name]:.4f}" for name in HEADLINES)
        lines.append([run.name, str(run.per_image["fold"].nunique()), *scores])
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [_plain(row) for row in frame.to_dict("records")]


def _plain(value: Any) -> Any:
    """NaN and infinities as None: JSON has none."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
