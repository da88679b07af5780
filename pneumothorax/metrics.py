"""Every score, from three pixel counts per image: in the truth, in the prediction, in both.

SIIM Dice is the competition's metric: Dice per image at the labels' own resolution, averaged over images; an image
where both masks are empty scores 1, one where only one is empty scores 0.
"""

from collections.abc import Iterable

import numpy as np
from sklearn.metrics import roc_auc_score

DEFINITIONS = {
    "siim_dice": "mean over images of Dice; both empty = 1, one empty = 0",
    "positive_dice": "mean of Dice over images with a pneumothorax",
    "pooled_dice": "Dice of all pixels of all images together",
    "pooled_precision": "share of predicted pixels that are true, all images together",
    "pooled_recall": "share of true pixels that are predicted, all images together",
    "pooled_iou": "intersection over union of all pixels of all images together",
    "image_precision": "mean over images of pixel precision; both empty = 1, one empty = 0",
    "image_recall": "mean over images of pixel recall; both empty = 1, one empty = 0",
    "image_iou": "mean over images of intersection over union; both empty = 1, one empty = 0",
    "auc": "area under the ROC curve of the image-level probability",
    "sensitivity": "share of images with a pneumothorax in which any pixel is predicted",
    "specificity": "share of images without one in which no pixel is predicted",
    "ppv": "share of images with a predicted pixel that have a pneumothorax",
}


def counts(truth: np.ndarray, prediction: np.ndarray) -> tuple[int, int, int]:
    """Two (H, W) masks, not 0 = inside -> pixels in (truth, prediction, both)."""
    if truth.shape != prediction.shape:
        raise ValueError(f"truth is {truth.shape}, prediction is {prediction.shape}")
    inside, predicted = truth != 0, prediction != 0
    both = int(np.count_nonzero(inside & predicted))
    return int(np.count_nonzero(inside)), int(np.count_nonzero(predicted)), both


def siim_dice(truths: Iterable[np.ndarray], predictions: Iterable[np.ndarray]) -> float:
    """The competition's score of two equally long iterables of (H, W) masks, in [0, 1]."""
    rows = [counts(truth, prediction) for truth, prediction in zip(truths, predictions, strict=True)]
    if not rows:
        raise ValueError("no images to score")
    return float(image_dice(*np.array(rows).T).mean())


def image_dice(true_px: np.ndarray, predicted_px: np.ndarray, overlap_px: np.ndarray) -> np.ndarray:
    """(N,) pixel counts -> (N,) Dice in [0, 1]."""
    return _ratio(2 * np.asarray(overlap_px), np.asarray(true_px) + predicted_px, empty=1.0)


def scores(
    true_px: np.ndarray, predicted_px: np.ndarray, overlap_px: np.ndarray, p_positive: np.ndarray
) -> dict[str, float]:
    """All of DEFINITIONS from (N,) pixel counts and image-level probabilities; NaN where a score is undefined."""
    true_px, predicted_px, overlap_px = (
        np.asarray(column, dtype=np.int64) for column in (true_px, predicted_px, overlap_px)
    )
    positive, found = true_px > 0, predicted_px > 0
    both_empty = ~positive & ~found
    union_px = true_px + predicted_px - overlap_px
    dice = image_dice(true_px, predicted_px, overlap_px)
    total_true, total_predicted, total_overlap = (int(column.sum()) for column in (true_px, predicted_px, overlap_px))
    return {
        "siim_dice": _mean(dice),
        "positive_dice": _mean(dice[positive]),
        "pooled_dice": _share(2 * total_overlap, total_true + total_predicted),
        "pooled_precision": _share(total_overlap, total_predicted),
        "pooled_recall": _share(total_overlap, total_true),
        "pooled_iou": _share(total_overlap, int(union_px.sum())),
        "image_precision": _mean(np.where(both_empty, 1.0, _ratio(overlap_px, predicted_px, empty=0.0))),
        "image_recall": _mean(np.where(both_empty, 1.0, _ratio(overlap_px, true_px, empty=0.0))),
        "image_iou": _mean(_ratio(overlap_px, union_px, empty=1.0)),
        "auc": _auc(positive, p_positive),
        "sensitivity": _share(int((found & positive).sum()), int(positive.sum())),
        "specificity": _share(int((~found & ~positive).sum()), int((~positive).sum())),
        "ppv": _share(int((found & positive).sum()), int(found.sum())),
    }


def nothing_predicted(true_px: np.ndarray) -> dict[str, float]:
    """What an empty prediction for every image scores: the line to beat."""
    zeros = np.zeros(len(true_px), dtype=np.int64)
    return scores(true_px, zeros, zeros, zeros)


def _ratio(part: np.ndarray, whole: np.ndarray, *, empty: float) -> np.ndarray:
    """Elementwise part / whole, `empty` where the whole is 0."""
    whole = np.asarray(whole)
    return np.where(whole == 0, empty, np.asarray(part) / np.maximum(whole, 1))


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _auc(positive: np.ndarray, p_positive: np.ndarray) -> float:
    return float(roc_auc_score(positive, p_positive)) if 0 < positive.sum() < len(positive) else float("nan")
