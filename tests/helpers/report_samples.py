"""A small report: rectangles as lesions, and two runs whose masks overlap them by known shares."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pneumothorax import png
from pneumothorax.pipeline import artifacts, atomic
from pneumothorax.report.runs import Cost, Run, TestResults
from pneumothorax.report.statistics import Evaluated, Statistics, TestStatistics
from pneumothorax.scores import per_image
from tests.helpers.images import noise, plain_encode

SIZE = 64
IMAGES = 30
TEST_IMAGES = 10


@dataclass
class Sample:
    """An output folder with images and labels, and the tables of two runs."""

    output: Path
    manifest: pd.DataFrame
    runs: dict[str, pd.DataFrame]
    masks: dict[tuple[str, str], np.ndarray]  # (image id, "truth" or the run's name)


def image_id(number):
    return f"1.2.276.{number:03d}"


def test_id(number):
    return f"ID_{number:03d}"


def block(left, width=20, top=10, height=20):
    """(SIZE, SIZE) uint8 of 0 and 1: a rectangle."""
    mask = np.zeros((SIZE, SIZE), dtype=np.uint8)
    mask[top : top + height, left : left + width] = 1
    return mask


def masks_of(number):
    """The truth and the predictions of runs `steady` and `other`, by number modulo 5.

    0: found by both, shifted by `number // 5` of 20 columns (other: twice as many)
    1: missed by steady, found exactly by other
    2: a false positive of steady
    3, 4: negative, both predictions empty
    """
    kind, shift = number % 5, number // 5
    empty = np.zeros((SIZE, SIZE), dtype=np.uint8)
    truth = block(5) if kind < 2 else empty
    steady = {0: block(5 + shift), 2: block(30, width=10)}.get(kind, empty)
    other = {0: block(5 + 2 * shift), 1: truth}.get(kind, empty)
    return {"truth": truth, "steady": steady, "other": other}


def dice_of(number, run):
    """Follows from `masks_of`: shared columns of 20; both empty = 1, one empty = 0."""
    kind, shift = number % 5, number // 5
    found = {"steady": (20 - shift) / 20, "other": (20 - 2 * shift) / 20}
    return {
        0: found[run],
        1: 0.0 if run == "steady" else 1.0,
        2: 0.0 if run == "steady" else 1.0,
    }.get(kind, 1.0)


def sample(output, *, images=IMAGES):
    masks = {(image_id(n), name): mask for n in range(images) for name, mask in masks_of(n).items()}
    manifest = pd.DataFrame(
        {
            "image_id": [image_id(n) for n in range(images)],
            "split": artifacts.TRAIN,
            "view": ["PA" if n % 2 else "AP" for n in range(images)],
            "sex": ["FM"[n % 2] if n % 7 else "" for n in range(images)],
            "height": SIZE,
            "width": SIZE,
        }
    )
    labels = [
        (image_id(n), plain_encode(masks[image_id(n), "truth"])) for n in range(images) if n % 5 < 2
    ]
    artifacts.write_table(
        output, artifacts.LABELS, pd.DataFrame(labels, columns=["image_id", "rle"])
    )
    for n in range(images):
        atomic.write_bytes(
            output / artifacts.Cache(SIZE).image(image_id(n)),
            png.encode(noise(n, SIZE)),
            sync=False,
        )
    runs = {
        run: pd.DataFrame([row(n, run, masks) for n in range(images)])
        for run in ("steady", "other")
    }
    return Sample(output, manifest, runs, masks)


def with_test_images(made):
    """The sample with TEST_IMAGES labelled test images, which have the masks of images 0, 1, ..."""
    numbers = range(TEST_IMAGES)
    masks = {(test_id(n), name): mask for n in numbers for name, mask in masks_of(n).items()}
    rows = made.manifest.iloc[:TEST_IMAGES]
    rows = rows.assign(image_id=[test_id(n) for n in numbers], split=artifacts.TEST)
    labels = [(test_id(n), plain_encode(masks[test_id(n), "truth"])) for n in numbers]
    artifacts.write_table(
        made.output, artifacts.TEST_LABELS, pd.DataFrame(labels, columns=["image_id", "rle"])
    )
    for n in numbers:
        path = made.output / artifacts.Cache(SIZE).image(test_id(n))
        atomic.write_bytes(path, png.encode(noise(100 + n, SIZE)), sync=False)
    runs = {
        run: pd.concat(
            [frame, pd.DataFrame([row(n, run, masks, test=True) for n in numbers])],
            ignore_index=True,
        )
        for run, frame in made.runs.items()
    }
    manifest = pd.concat([made.manifest, rows], ignore_index=True)
    return Sample(made.output, manifest, runs, made.masks | masks)


def row(number, run, masks, *, test=False):
    name = test_id(number) if test else image_id(number)
    truth, predicted = (masks[name, which] for which in ("truth", run))
    return {
        "image_id": name,
        "fold": per_image.TEST_FOLD if test else number % 3,
        "true_px": int(truth.sum()),
        "predicted_px": int(predicted.sum()),
        "dice": dice_of(number, run),
        "rle": plain_encode(predicted),
    }


CHOSEN = {"top": 0.7, "min_area": 1200.0, "bottom": 0.35, "min_component": 250.0}
CHOSEN |= {"fill_holes": 1.0, "min_probability": 0.1}


def run(name, start, *, steps=None, weights=None, cost=None, test=None):
    """A run whose scores are start, start + 0.01, ... by column, and 0.0001 more in each row."""
    empty = pd.DataFrame()
    return Run(
        name=name,
        members=tuple(next(iter(weights.values()))) if weights else (name,),
        table=table(start),
        images=empty,
        per_image=empty,
        surface=empty,
        steps=empty if steps is None else steps,
        weights=weights or {},
        histories=(),
        network=None,
        cost=cost or Cost(),
        test=test,
    )


def table(start):
    """A cross-validation table."""
    names = ["fold 0", "fold 1", "mean", "std", "all", "final thresholds", artifacts.ALL_EMPTY]
    names += [f"{artifacts.ALL_EMPTY}, fold 0", f"{artifacts.ALL_EMPTY}, fold 1"]
    rows = []
    for place, line in enumerate(names):
        scores = {
            score: start + place / 10000 + column / 100
            for column, score in enumerate(artifacts.SCORE_COLUMNS)
        }
        if line.startswith(artifacts.ALL_EMPTY):
            scores = dict.fromkeys(artifacts.SCORE_COLUMNS, 0.0) | {
                "siim_dice": 0.6 + place / 10000
            }
        if line == "final thresholds":
            scores = dict.fromkeys(artifacts.SCORE_COLUMNS, float("nan"))
        scored = line.startswith(("fold", "mean", "all"))
        rows.append(
            {
                "row": line,
                "images": 15 if "fold " in line else 30,
                "positives": 6 if "fold " in line else 12,
                **scores,
                "naive_siim_dice": scores["siim_dice"] + 0.02 if scored else float("nan"),
                **dict.fromkeys(artifacts.TRIPLET_COLUMNS, float("nan")),
                **(CHOSEN if line.startswith(("fold", "final")) else {}),
            }
        )
    return pd.DataFrame(rows)


def test_results(start):
    """Test scores from `start`: 0.001 more by row, 0.01 by column; intervals: 0.05 to each side."""
    lines = {
        artifacts.TEST_ALL: (1372, 290),
        artifacts.TEST_UNSEEN: (488, 101),
        f"{artifacts.ALL_EMPTY}, {artifacts.TEST_ALL}": (1372, 290),
        f"{artifacts.ALL_EMPTY}, {artifacts.TEST_UNSEEN}": (488, 101),
        artifacts.TEST_CLAIMED: (1372, 290),
    }
    rows = []
    for place, (line, (images, positives)) in enumerate(lines.items()):
        first = 0.5 if line.startswith(artifacts.ALL_EMPTY) else start
        scores = {
            score: first + place / 1000 + column / 100
            for column, score in enumerate(artifacts.SCORE_COLUMNS)
        }
        ends = {f"{score}_low": value - 0.05 for score, value in scores.items()}
        ends |= {f"{score}_high": value + 0.05 for score, value in scores.items()}
        rows.append({"row": line, "images": images, "positives": positives, **scores, **ends})
    return TestResults(table=pd.DataFrame(rows), images=pd.DataFrame(), per_image=pd.DataFrame())


def statistics(starts, *, empty=False, test=None):
    """Of runs {name: start}; with `empty`, tables without rows."""
    intervals = {
        name: pd.DataFrame(
            {
                "score": ["siim_dice"],
                "value": [start],
                "low": [start - 0.05],
                "high": [start + 0.05],
            }
        )
        for name, start in starts.items()
    }
    levels = {name: strata(start) for name, start in starts.items()}
    between = differences(*list(starts)[:2]) if len(starts) > 1 else pd.DataFrame()
    if empty:
        intervals, levels = (
            {name: frame[:0] for name, frame in one.items()} for one in (intervals, levels)
        )
        between = pd.DataFrame()
    return Statistics(
        intervals=intervals,
        strata=levels,
        roc={},
        operating_points={},
        calibration={},
        calibration_errors={},
        differences=between,
        test=test,
    )


def strata(start):
    """strata.table rows."""
    scores = {"siim_dice": start, "siim_dice_low": start - 0.1, "siim_dice_high": start + 0.1}
    scores |= {"positive_dice": 0.5, "positive_dice_low": 0.4, "positive_dice_high": 0.6}
    scores |= {"sensitivity": 0.75, "specificity": float("nan"), "all_empty": 0.6}
    levels = [
        ("mask size", "negative"),
        ("mask size", "1st quarter"),
        ("view", "PA"),
        ("sex", "unknown"),
    ]
    return pd.DataFrame(
        [
            {"stratum": stratum, "level": level, "images": 10, "positives": 4, **scores}
            for stratum, level in levels
        ]
    )


def differences(first, second):
    """comparison.all_pairs rows."""
    row = {"first": first, "second": second, "score": "siim_dice"}
    return pd.DataFrame(
        [{**row, "difference": -0.0123, "low": -0.03, "high": 0.004, "p": 0.0004, "p_holm": 0.04}]
    )


def test_statistics(first, second, **changes):
    """Of stage-1 test of SIIM-ACR: 1,372 images; runs `first` and `second` are compared."""
    counts = {"images": 1372, "positives": 290, "patients": 1000}
    counts |= {"in_training": 884, "unseen": 488, "unknown": 0}
    between = differences(first, second).assign(difference=0.0456)
    return TestStatistics(**{**counts, "caution": "", "differences": between, **changes})


EVALUATED = Evaluated(
    images=12047,
    positives=2669,
    patients=6171,
    folds=5,
    grouping="patients as listed in the file passed to stage 01",
)
