"""Out-of-fold maps and labels -> per-image results and the cross-validation table."""

import hashlib
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pneumothorax import artifacts, metrics, png, postprocess, rle, thresholds
from pneumothorax.engine import Engine, in_order
from pneumothorax.errors import BadInput
from pneumothorax.postprocess import Triplet
from pneumothorax.thresholds import Fitted, Grid, Profile

IMAGES_PER_TASK = 32


@dataclass(frozen=True)
class Item:
    """One image to post-process: its map, its size (H, W), and its label rows ((), for a negative or a test image)."""

    image_id: str
    map_path: Path
    map_sha256: str
    shape: tuple[int, int]
    label_rows: tuple[str, ...]

    def read_map(self) -> np.ndarray:
        """(h, w) uint8. Raises BadInput when it is not the map that stage 03 wrote."""
        try:
            data = self.map_path.read_bytes()
        except OSError:
            data = b""
        if hashlib.sha256(data).hexdigest() != self.map_sha256:
            raise BadInput(f"{self.map_path} is not the map that 03_predict.py wrote: run it again")
        return png.decode(data, self.map_path)

    def truth(self) -> np.ndarray:
        """(H, W) uint8 of 0 and 1."""
        return rle.union(self.label_rows, self.shape)


def profile(item: Item, grid: Grid) -> Profile:
    return thresholds.profile(item.read_map(), item.truth(), grid)


def compare(item: Item, triplet: Triplet) -> dict[str, Any]:
    """The image's predicted mask as run lengths, and its pixel counts against the truth.

    The run lengths are decoded again here: RuntimeError when they are not the mask.
    """
    predicted = postprocess.mask(item.read_map(), triplet, item.shape)
    text = rle.encode(predicted)
    if not np.array_equal(rle.decode(text, item.shape), predicted):
        raise RuntimeError(f"{item.image_id}: the run lengths do not decode to the mask")
    true_px, predicted_px, overlap_px = metrics.counts(item.truth(), predicted)
    dice = float(metrics.image_dice(np.array([true_px]), np.array([predicted_px]), np.array([overlap_px]))[0])
    pixels = {"true_px": true_px, "predicted_px": predicted_px, "overlap_px": overlap_px}
    return {"image_id": item.image_id, **pixels, "dice": dice, "rle": text}


def items(output: Path, run: str, split: str) -> list[Item]:
    """One per map of the split, in the predictions table's order; label rows for training images only."""
    manifest = artifacts.read_table(output, artifacts.MANIFEST)
    shapes = zip(manifest["height"].tolist(), manifest["width"].tolist(), strict=True)
    shape_of = dict(zip(manifest["image_id"], shapes, strict=True))
    rows_of = artifacts.label_rows(output) if split == artifacts.OOF else {}
    table = artifacts.read_table(output, artifacts.predictions(run))
    table = table[table["split"] == split]
    return [
        Item(
            image_id,
            artifacts.probability_map(output, run, split, image_id),
            digest,
            shape_of[image_id],
            rows_of.get(image_id, ()),
        )
        for image_id, digest in zip(table["image_id"], table["sha256"], strict=True)
    ]


def evaluate(oof: list[Item], predictions: pd.DataFrame, grid: Grid, *, engine: Engine) -> tuple[Fitted, pd.DataFrame]:
    """Fit the thresholds, nested, and score every image with those of the other folds.

    Args:
        predictions: the predictions table's out-of-fold rows, in the order of `oof`.

    Returns the thresholds and artifacts.out_of_fold rows.
    """
    fold = predictions["fold"].to_numpy().astype(int)
    profiles = in_order(profile, [(item, grid) for item in oof], engine, per_task=IMAGES_PER_TASK, title="thresholds")
    fitted = thresholds.fit(profiles, fold, grid)
    calls = [(item, fitted.by_fold[number]) for item, number in zip(oof, fold.tolist(), strict=True)]
    images = pd.DataFrame(in_order(compare, calls, engine, per_task=IMAGES_PER_TASK, title="scores"))
    p_positive = predictions["p_presence"].fillna(predictions["p_max"])  # the network's own word where it has one
    return fitted, images.assign(fold=fold, p_positive=p_positive.to_numpy())


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
    rows.append({**_row("all", images), "naive_siim_dice": fitted.naive})
    rows.append({"row": "final thresholds", **_counts(images), **_triplet(fitted.final)})
    rows.append(_nothing("nothing predicted", images))
    rows.extend(_nothing(f"nothing predicted, fold {fold}", part) for fold, part in images.groupby("fold"))
    return pd.DataFrame(rows, columns=list(artifacts.cross_validation("").columns))


def threshold_surface(fitted: Fitted, grid: Grid) -> pd.DataFrame:
    """Rows of artifacts.threshold_surface: every triplet of the grid whose bottom is not above its top."""
    triplets = itertools.product(grid.tops, grid.min_areas, grid.bottoms)
    table = pd.DataFrame(triplets, columns=["top", "min_area", "bottom"]).assign(siim_dice=fitted.surface.ravel())
    return table[np.isfinite(table["siim_dice"])]


def _row(name: str, part: pd.DataFrame) -> dict[str, Any]:
    columns = (part[column].to_numpy() for column in ("true_px", "predicted_px", "overlap_px", "p_positive"))
    return {"row": name, **_counts(part), **metrics.scores(*columns)}


def _nothing(name: str, part: pd.DataFrame) -> dict[str, Any]:
    return {"row": name, **_counts(part), **metrics.nothing_predicted(part["true_px"].to_numpy())}


def _counts(part: pd.DataFrame) -> dict[str, int]:
    return {"images": len(part), "positives": int((part["true_px"] > 0).sum())}


def _triplet(triplet: Triplet) -> dict[str, float]:
    return {"top": triplet.top, "min_area": triplet.min_area, "bottom": triplet.bottom}
