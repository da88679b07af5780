"""The report: the cross-validation table of one or more runs, and overlays of truth and prediction on a page."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
import pandas as pd

from pneumothorax import artifacts, atomic, metrics, png, rle

FEW_POSITIVES = 50  # below this a fold's positives-only Dice rests on a handful of images
TRUTH_RGB, PREDICTION_RGB = (0, 158, 255), (255, 176, 0)  # told apart with any colour vision, on grey
HEADLINES = ("siim_dice", "positive_dice", "pooled_dice", "pooled_iou", "auc", "sensitivity", "specificity")


@dataclass(frozen=True)
class Run:
    """One submission's cross-validation table and its out-of-fold images."""

    name: str
    table: pd.DataFrame
    images: pd.DataFrame


def combined_table(runs: list[Run]) -> pd.DataFrame:
    """All runs' tables below each other, with a `run` column in front."""
    return pd.concat([run.table.assign(run=run.name) for run in runs], ignore_index=True)


def terminal_table(runs: list[Run]) -> str:
    """The headline scores of every run as text, predicting nothing first."""
    header = ["run", "folds", *HEADLINES]
    lines = [header, _nothing_line(runs[0])]
    for run in runs:
        folds = run.table[run.table["row"].str.match(r"fold \d")]
        mean, std = (run.table[run.table["row"] == name].iloc[0] for name in ("mean", "std"))
        lines.append([run.name, str(len(folds)), *(f"{mean[name]:.4f} ± {std[name]:.4f}" for name in HEADLINES)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def caution(run: Run) -> str:
    """A warning where there are too few images to conclude anything, "" otherwise."""
    positives = int((run.images["true_px"] > 0).sum())
    if positives >= FEW_POSITIVES:
        return ""
    images = f"Only {positives} of {len(run.images)} images are positive"
    return f"{images}: these scores say that the pipeline runs, not how good it is."


def choose(images: pd.DataFrame, n: int) -> pd.DataFrame:
    """About `n` images worth a look: positives from the worst to the best Dice, and the largest false alarms."""
    positive = images[images["true_px"] > 0].sort_values(["dice", "image_id"])
    alarms = images[(images["true_px"] == 0) & (images["predicted_px"] > 0)]
    alarms = alarms.sort_values(["predicted_px", "image_id"], ascending=[False, True]).head(n // 4)
    wanted = min(len(positive), n - len(alarms))
    spread = np.unique(np.linspace(0, max(0, len(positive) - 1), wanted).round().astype(int))
    return pd.concat([positive.iloc[spread], alarms])


def overlay(image: np.ndarray, truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """(S, S) uint8 grey, two (S, S) masks -> (S, S, 3) uint8 BGR: prediction filled, truth outlined."""
    picture = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    tint = np.array(PREDICTION_RGB[::-1], dtype=np.float32)
    inside = prediction > 0
    picture[inside] = (0.6 * picture[inside] + 0.4 * tint).astype(np.uint8)
    contours, _ = cv2.findContours((truth > 0).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, contours, -1, TRUTH_RGB[::-1], 2, cv2.LINE_AA)
    return picture


def draw_overlays(output: Path, run: Run, manifest: pd.DataFrame, cache_size: int, n: int) -> list[dict[str, Any]]:
    """Write overlay PNGs below the report; returns what the page says about each."""
    sizes = zip(manifest["image_id"], manifest["height"].astype(int), manifest["width"].astype(int), strict=True)
    shape_of = {image_id: (height, width) for image_id, height, width in sizes}
    labels = artifacts.label_rows(output)
    shown = []
    for row in choose(run.images, n).to_dict("records"):
        image_id = str(row["image_id"])
        truth = rle.union(labels.get(image_id, ()), shape_of[image_id])
        masks = truth, rle.decode(str(row["rle"]), shape_of[image_id])
        image = png.read(artifacts.cached_image(output, cache_size, image_id))
        picture = overlay(image, *(png.shrink_mask(mask, cache_size) for mask in masks))
        name = f"{run.name}-{image_id}.png"
        atomic.write_bytes(output / artifacts.REPORT_FIGURES / name, png.encode_small(picture))
        facts = {key: row[key] for key in ("dice", "fold", "true_px", "predicted_px")}
        shown.append({"file": f"figures/{name}", "image_id": image_id, **facts})
    return shown


def grouping(patients: str) -> str:
    """What "patient" means in these folds, from the setting `patients` of stage 01's record."""
    if patients == "file":
        return "patients as given in the file passed to stage 01"
    return "patients by DICOM PatientID, which says nothing where it is anonymised (SIIM-ACR): scores may be too high"


def page(runs: list[Run], overlays: dict[str, list[dict[str, Any]]], *, patients: str) -> str:
    """The HTML page; every text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pneumothorax"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["score"] = lambda value: "" if pd.isna(value) else f"{value:.4f}"
    return environment.get_template("report.html").render(
        runs=[
            {
                "name": run.name,
                "rows": run.table.to_dict("records"),
                "caution": caution(run),
                "overlays": overlays[run.name],
            }
            for run in runs
        ],
        grouping=grouping(patients),
        scores=artifacts.SCORE_COLUMNS,
        definitions=metrics.DEFINITIONS,
        truth="#" + bytes(TRUTH_RGB).hex(),
        prediction="#" + bytes(PREDICTION_RGB).hex(),
    )


def _nothing_line(run: Run) -> list[str]:
    row = run.table[run.table["row"] == "nothing predicted"].iloc[0]
    return ["nothing predicted", "", *("" if pd.isna(row[name]) else f"{row[name]:.4f}" for name in HEADLINES)]
