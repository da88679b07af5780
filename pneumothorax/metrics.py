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
    rows = [
        counts(truth, prediction) for truth, prediction in zip(truths, predictions, strict=True)
    ]
    if not rows:
        raise ValueError("no images to score")
    return float(image_dice(*np.array(rows).T).mean())


def image_dice(true_px: np.ndarray, predicted_px: np.ndarray, overlap_px: np.ndarray) -> np.ndarray:
    """(N,) pixel counts -> (N,) Dice in [0, 1]."""
    return _ratio(2 * np.asarray(overlap_px), np.asarray(true_px) + predicted_px, empty=1.0)


def image_scores(
    true_px: np.ndarray, predicted_px: np.ndarray, overlap_px: np.ndarray
) -> dict[str, np.ndarray]:
    """(N,) pixel counts -> dice, precision, recall and iou of each image, (N,) in [0, 1].

    Both masks empty = 1, one empty = 0, for all four.
    """
    true_px, predicted_px, overlap_px = (
        np.asarray(column) for column in (true_px, predicted_px, overlap_px)
    )
    both_empty = (true_px == 0) & (predicted_px == 0)
    return {
        "dice": image_dice(true_px, predicted_px, overlap_px),
        "precision": np.where(both_empty, 1.0, _ratio(overlap_px, predicted_px, empty=0.0)),
        "recall": np.where(both_empty, 1.0, _ratio(overlap_px, true_px, empty=0.0)),
        "iou": _ratio(overlap_px, true_px + predicted_px - overlap_px, empty=1.0),
    }


def fractions(
    true_px: np.ndarray, predicted_px: np.ndarray, overlap_px: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(N,) pixel counts -> each score of DEFINITIONS but the AUC as (numerator, denominator), both (N,) float.

    A score of any set of images, with any weights, is the sum of its numerators over the sum of its denominators.
    """
    true_px, predicted_px, overlap_px = (
        np.asarray(column, dtype=np.int64) for column in (true_px, predicted_px, overlap_px)
    )
    positive, found, every = true_px > 0, predicted_px > 0, np.ones(len(true_px))
    image = image_scores(true_px, predicted_px, overlap_px)
    parts = {
        "siim_dice": (image["dice"], every),
        "positive_dice": (image["dice"] * positive, positive),
        "pooled_dice": (2 * overlap_px, true_px + predicted_px),
        "pooled_precision": (overlap_px, predicted_px),
        "pooled_recall": (overlap_px, true_px),
        "pooled_iou": (overlap_px, true_px + predicted_px - overlap_px),
        "image_precision": (image["precision"], every),
        "image_recall": (image["recall"], every),
        "image_iou": (image["iou"], every),
        "sensitivity": (found & positive, positive),
        "specificity": (~found & ~positive, ~positive),
        "ppv": (found & positive, found),
    }
    return {
        name: (part.astype(float), whole.astype(float)) for name, (part, whole) in parts.items()
    }


def scores(
    true_px: np.ndarray, predicted_px: np.ndarray, overlap_px: np.ndarray, p_positive: np.ndarray
) -> dict[str, float]:
    """All of DEFINITIONS from (N,) pixel counts and image-level probabilities; NaN where a score is undefined."""
    parts = fractions(true_px, predicted_px, overlap_px)
    found = {
        name: _share(float(part.sum()), float(whole.sum())) for name, (part, whole) in parts.items()
    }
    found["auc"] = _auc(np.asarray(true_px) > 0, p_positive)
    return {name: found[name] for name in DEFINITIONS}


def all_empty(true_px: np.ndarray) -> dict[str, float]:
    """What an empty prediction for every image scores: the line to beat."""
    zeros = np.zeros(len(true_px), dtype=np.int64)
    return scores(true_px, zeros, zeros, zeros)


def _ratio(part: np.ndarray, whole: np.ndarray, *, empty: float) -> np.ndarray:
    """Elementwise part / whole, `empty` where the whole is 0."""
    whole = np.asarray(whole)
    return np.where(whole == 0, empty, np.asarray(part) / np.maximum(whole, 1))


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _auc(positive: np.ndarray, p_positive: np.ndarray) -> float:
    return (
        float(roc_auc_score(positive, p_positive))
        if 0 < positive.sum() < len(positive)
        else float("nan")
    )
