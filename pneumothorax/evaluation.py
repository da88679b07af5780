"""Out-of-fold maps and labels -> per-image results and the cross-validation table."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import joblib
import numpy as np
import pandas as pd
from tqdm import tqdm

from pneumothorax import artifacts, metrics, png, postprocess, rle, thresholds
from pneumothorax.postprocess import Triplet
from pneumothorax.thresholds import Fitted, Grid, Profile

IMAGES_PER_CALL = 32
Result = TypeVar("Result")


@dataclass(frozen=True)
class Item:
    """One image to post-process: its map, its size (H, W), and its label rows ((), for a negative or a test image)."""

    image_id: str
    map_path: Path
    shape: tuple[int, int]
    label_rows: tuple[str, ...]


def profile(item: Item, grid: Grid) -> Profile:
    return thresholds.profile(png.read(item.map_path), rle.union(item.label_rows, item.shape), grid)


def compare(item: Item, triplet: Triplet) -> dict[str, Any]:
    """The image's predicted mask as run lengths, and its pixel counts against the truth."""
    predicted = postprocess.mask(png.read(item.map_path), triplet, item.shape)
    true_px, predicted_px, overlap_px = metrics.counts(rle.union(item.label_rows, item.shape), predicted)
    dice = float(metrics.image_dice(np.array([true_px]), np.array([predicted_px]), np.array([overlap_px]))[0])
    pixels = {"true_px": true_px, "predicted_px": predicted_px, "overlap_px": overlap_px}
    return {"image_id": item.image_id, **pixels, "dice": dice, "rle": rle.encode(predicted)}


def in_workers(
    work: Callable[..., Result], calls: Iterable[tuple[Any, ...]], n: int, *, workers: int, title: str
) -> list[Result]:
    """[work(*arguments) for arguments in calls], in order, in chunks over joblib workers, with a progress bar."""
    listed = list(calls)
    chunks = [listed[start : start + IMAGES_PER_CALL] for start in range(0, n, IMAGES_PER_CALL)]
    parallel = joblib.Parallel(n_jobs=max(1, workers), return_as="generator")
    results: list[Result] = []
    with tqdm(total=n, unit="image", desc=title) as bar:
        for part in parallel(joblib.delayed(_each)(work, chunk) for chunk in chunks):
            results.extend(part)
            bar.update(len(part))
    return results


def _each(work: Callable[..., Result], chunk: list[tuple[Any, ...]]) -> list[Result]:
    return [work(*arguments) for arguments in chunk]


def cross_validation(images: pd.DataFrame, fitted: Fitted) -> pd.DataFrame:
    """Rows of artifacts.cross_validation: each fold, their mean and standard deviation, all images together, and
    what predicting nothing scores on all images and per fold.

    Args:
        images: artifacts.out_of_fold rows.
    """
    rows = []
    for fold, triplet in sorted(fitted.by_fold.items()):
        part = images[images["fold"] == fold]
        rows.append({**_row(f"fold {fold}", part), "naive_siim_dice": fitted.naive_by_fold[fold], **_triplet(triplet)})
    per_fold = pd.DataFrame(rows)
    numbers = [*artifacts.SCORE_COLUMNS, "naive_siim_dice"]
    for name, aggregate in (("mean", per_fold[numbers].mean()), ("std", per_fold[numbers].std(ddof=1))):
        rows.append({"row": name, "images": len(images), "positives": int((images["true_px"] > 0).sum()), **aggregate})
    rows.append({**_row("all", images), "naive_siim_dice": fitted.naive, **_triplet(fitted.final)})
    rows.append(_nothing("nothing predicted", images))
    rows.extend(_nothing(f"nothing predicted, fold {fold}", part) for fold, part in images.groupby("fold"))
    return pd.DataFrame(rows, columns=list(artifacts.cross_validation("").columns))


def _row(name: str, part: pd.DataFrame) -> dict[str, Any]:
    columns = (part[column].to_numpy() for column in ("true_px", "predicted_px", "overlap_px", "p_positive"))
    return {"row": name, **_counts(part), **metrics.scores(*columns)}


def _nothing(name: str, part: pd.DataFrame) -> dict[str, Any]:
    return {"row": name, **_counts(part), **metrics.nothing_predicted(part["true_px"].to_numpy())}


def _counts(part: pd.DataFrame) -> dict[str, int]:
    return {"images": len(part), "positives": int((part["true_px"] > 0).sum())}


def _triplet(triplet: Triplet) -> dict[str, float]:
    return {"top": triplet.top, "min_area": triplet.min_area, "bottom": triplet.bottom}
