"""Every score of this repository, from three pixel counts per image.

    true_px        pixels of the truth
    predicted_px   pixels of the predicted mask
    overlap_px     pixels of both

SIIM Dice is the metric of the competition (SIIM-ACR Pneumothorax Segmentation, Kaggle 2019,
"Evaluation"): the Dice coefficient of each image at the resolution of its labels, averaged
over images. Two empty masks score 1; one empty and one non-empty mask score 0.

    siim_dice([truth, ...], [mask, ...])             masks, (H, W) each
    scores(true_px, predicted_px, overlap_px, p)     pixel counts, (N,) each: all DEFINITIONS
"""

from collections.abc import Iterable

import numpy as np

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


def siim_dice(truths: Iterable[np.ndarray], predictions: Iterable[np.ndarray]) -> float:
    """The competition's score, in [0, 1].

    Args:
        truths, predictions: the same number of (H, W) masks, of any type, nonzero =
            inside; the two masks of an image have the same shape.

    Raises ValueError if shapes or lengths differ, or if there are no images.
    """
    rows = [
        counts(truth, prediction) for truth, prediction in zip(truths, predictions, strict=True)
    ]
    if not rows:
        raise ValueError("no images to score")
    return float(image_dice(*np.array(rows).T).mean())


def counts(truth: np.ndarray, prediction: np.ndarray) -> tuple[int, int, int]:
    """Two (H, W) masks, nonzero = inside -> true_px, predicted_px, overlap_px."""
    if truth.shape != prediction.shape:
        raise ValueError(f"truth is {truth.shape}, prediction is {prediction.shape}")
    inside, predicted = truth != 0, prediction != 0
    overlap = int(np.count_nonzero(inside & predicted))
    return int(np.count_nonzero(inside)), int(np.count_nonzero(predicted)), overlap


def image_dice(true_px: np.ndarray, predicted_px: np.ndarray, overlap_px: np.ndarray) -> np.ndarray:
    """Dice of each image, in [0, 1]: 2 overlap / (true + predicted), 1 if both are empty.

    All arrays have the same shape.
    """
    return _ratio(2 * np.asarray(overlap_px), np.asarray(true_px) + predicted_px, empty=1.0)


def image_scores(
    true_px: np.ndarray, predicted_px: np.ndarray, overlap_px: np.ndarray
) -> dict[str, np.ndarray]:
    """(N,) pixel counts -> `dice`, `precision`, `recall` and `iou` of each image, (N,) in [0, 1].

    All four are 1 if both masks are empty and 0 if only one is.
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
    """(N,) pixel counts -> {score: (numerators, denominators)}, (N,) float each.

    A score of any set of images, with any weights, is the weighted sum of its numerators
    over the weighted sum of its denominators. This holds for all DEFINITIONS but the AUC.
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
    """All DEFINITIONS, each in [0, 1], or NaN where it is undefined.

    Args:
        true_px, predicted_px, overlap_px: (N,) pixel counts.
        p_positive: (N,) image-level probability of a pneumothorax; any monotonic score will do.
    """
    parts = fractions(true_px, predicted_px, overlap_px)
    found = {
        name: _share(float(part.sum()), float(whole.sum())) for name, (part, whole) in parts.items()
    }
    found["auc"] = _auc(np.asarray(true_px) > 0, p_positive)
    return {name: found[name] for name in DEFINITIONS}


def all_empty(true_px: np.ndarray) -> dict[str, float]:
    """The all-empty baseline: `scores` of an empty mask and probability 0 for every image.

    Its SIIM Dice is the share of negative images, which any useful network must beat.
    """
    zeros = np.zeros(len(true_px), dtype=np.int64)
    return scores(true_px, zeros, zeros, zeros)


def _ratio(part: np.ndarray, whole: np.ndarray, *, empty: float) -> np.ndarray:
    """Elementwise part / whole, `empty` where the whole is 0."""
    whole = np.asarray(whole)
    return np.where(whole == 0, empty, np.asarray(part) / np.maximum(whole, 1))


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _auc(positive: np.ndarray, p_positive: np.ndarray) -> float:
    if positive.all() or not positive.any():
        return float("nan")
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(positive, p_positive))
