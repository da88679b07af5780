"""The report's tables for programs and for the terminal."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from pneumothorax import metrics
from pneumothorax.pipeline import artifacts
from pneumothorax.report.runs import Run
from pneumothorax.report.statistics import Evaluated, Statistics, TestStatistics
from pneumothorax.scores import bootstrap, per_image

HEADLINES = tuple(
    "siim_dice positive_dice pooled_dice pooled_iou auc sensitivity specificity".split()
)


def tables(runs: list[Run]) -> dict[artifacts.Table, pd.DataFrame]:
    """The report's tables; those of test images only if labelled ones were scored.

    Per image, the all-empty baseline comes first.
    """
    found = {
        artifacts.REPORT_TABLE: _below_each_other({run.name: run.table for run in runs}),
        artifacts.PER_IMAGE: _with_baseline([run.per_image for run in runs]),
    }
    tested = {run.name: run.test for run in runs if run.test}
    if tested:
        scores = _below_each_other({name: test.table for name, test in tested.items()})
        found[artifacts.REPORT_TEST_TABLE] = scores
        images = _with_baseline([test.per_image for test in tested.values()])
        found[artifacts.TEST_PER_IMAGE] = images
    return found


def write_tables(output: Path, runs: list[Run]) -> list[str]:
    """Returns the tables' paths; those of an earlier report's test images are removed."""
    written = tables(runs)
    for table in (artifacts.REPORT_TEST_TABLE, artifacts.TEST_PER_IMAGE):
        if table not in written:
            (output / table.path).unlink(missing_ok=True)
    for table, frame in written.items():
        artifacts.write_table(output, table, frame)
    return [table.path for table in written]


def _below_each_other(frames: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """With each run's name in the column `run`."""
    return pd.concat([rows.assign(run=run) for run, rows in frames.items()], ignore_index=True)


def _with_baseline(frames: list[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat([per_image.all_empty(frames[0]), *frames], ignore_index=True)


def summary(
    runs: list[Run], statistics: Statistics, evaluated: Evaluated, *, seed: int
) -> dict[str, Any]:
    """Every number of the page as plain types, None where a number is undefined.

    "test" is there only if labelled test images were scored.
    """
    test = {"test": _test_summary(runs, statistics.test)} if statistics.test else {}
    return {
        "evaluated": asdict(evaluated),
        "definitions": metrics.DEFINITIONS,
        "bootstrap": {
            "unit": "patient",
            "repeats": bootstrap.REPEATS,
            "confidence": 0.95,
            "seed": seed,
        },
        "runs": {
            run.name: {
                "runs": list(run.members),
                "weights": run.weights,
                "cost": asdict(run.cost),
                "cross_validation": _rows(run.table),
                "steps": _rows(run.steps),
                "intervals": _rows(statistics.intervals[run.name]),
                "strata": _rows(statistics.strata[run.name]),
                "calibration": _rows(statistics.calibration[run.name]),
                "expected_calibration_error": _plain(statistics.calibration_errors[run.name]),
            }
            for run in runs
        },
        "differences": _rows(statistics.differences),
        **test,
    }


def _test_summary(runs: list[Run], found: TestStatistics) -> dict[str, Any]:
    counts = {name: value for name, value in vars(found).items() if name != "differences"}
    scores = {run.name: _rows(run.test.table) for run in runs if run.test}
    return {**counts, "runs": scores, "differences": _rows(found.differences)}


def terminal_table(runs: list[Run]) -> str:
    """The headline scores of every run as text, the all-empty baseline first.

    Cross-validation: mean and standard deviation over the folds. Test images, if labelled
    ones were scored: SIIM Dice with its 95 % interval.
    """
    baseline = runs[0].row(artifacts.ALL_EMPTY)
    scores = ["" if pd.isna(baseline[name]) else f"{baseline[name]:.4f}" for name in HEADLINES]
    lines = [["run", "folds", *HEADLINES], [artifacts.ALL_EMPTY, "", *scores]]
    for run in runs:
        mean, std = run.row("mean"), run.row("std")
        scores = [f"{mean[name]:.4f} ± {std[name]:.4f}" for name in HEADLINES]
        lines.append([run.name, str(run.per_image["fold"].nunique()), *scores])
    tested = [run.test for run in runs if run.test]
    if tested:
        rows = [test.row(artifacts.TEST_ALL) for test in tested]
        rows.insert(0, tested[0].baseline(artifacts.TEST_ALL))
        column = ["test siim_dice", *(_with_interval(row, "siim_dice") for row in rows)]
        lines = [[*line, cell] for line, cell in zip(lines, column, strict=True)]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _with_interval(row: dict[str, Any], score: str) -> str:
    """Of a row of artifacts.TEST_SCORE_COLUMNS; without ends if the interval is undefined."""
    low, high = row[f"{score}_low"], row[f"{score}_high"]
    ends = "" if pd.isna(low) or pd.isna(high) else f" ({low:.4f} to {high:.4f})"
    return f"{row[score]:.4f}{ends}"


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [_plain(row) for row in frame.to_dict("records")]


def _plain(value: Any) -> Any:
    """None for NaN and infinities, which JSON lacks."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
