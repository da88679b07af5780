"""The report's tables for programs and for the terminal."""

import math
from dataclasses import asdict
from typing import Any

import pandas as pd

from pneumothorax import metrics
from pneumothorax.pipeline import artifacts
from pneumothorax.report.runs import Run
from pneumothorax.report.statistics import Evaluated, Statistics
from pneumothorax.scores import bootstrap, per_image

HEADLINES = tuple(
    "siim_dice positive_dice pooled_dice pooled_iou auc sensitivity specificity".split()
)


def combined_table(runs: list[Run]) -> pd.DataFrame:
    """All runs' cross-validation tables below each other, with a `run` column in front."""
    return pd.concat([run.table.assign(run=run.name) for run in runs], ignore_index=True)


def per_image_table(runs: list[Run]) -> pd.DataFrame:
    """artifacts.PER_IMAGE rows: of the all-empty baseline first, then of every run."""
    baseline = per_image.all_empty(runs[0].per_image)
    return pd.concat([baseline, *(run.per_image for run in runs)], ignore_index=True)


def summary(
    runs: list[Run], statistics: Statistics, evaluated: Evaluated, *, seed: int
) -> dict[str, Any]:
    """Every number of the page as plain types, None where a number is undefined."""
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
    }


def terminal_table(runs: list[Run]) -> str:
    """The headline scores of every run as text, the all-empty baseline first."""
    baseline = runs[0].row(artifacts.ALL_EMPTY)
    scores = ["" if pd.isna(baseline[name]) else f"{baseline[name]:.4f}" for name in HEADLINES]
    lines = [["run", "folds", *HEADLINES], [artifacts.ALL_EMPTY, "", *scores]]
    for run in runs:
        mean, std = run.row("mean"), run.row("std")
        scores = [f"{mean[name]:.4f} ± {std[name]:.4f}" for name in HEADLINES]
        lines.append([run.name, str(run.per_image["fold"].nunique()), *scores])
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [_plain(row) for row in frame.to_dict("records")]


def _plain(value: Any) -> Any:
    """None for NaN and infinities, which JSON lacks."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
