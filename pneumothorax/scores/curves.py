"""How good the image-level probability is: its ranking (ROC curve) and its calibration.

The probability is the image's score, calibrated on the other folds (masks/calibration.py).
"""

from typing import Literal

import numpy as np
import pandas as pd

from pneumothorax.scores import bootstrap

BINS = 10


def roc(frame: pd.DataFrame) -> pd.DataFrame:
    """fpr, tpr, threshold: from (0, 0) at threshold infinity to (1, 1).

    Without positives or without negatives there are no rows.

    Args:
        frame: rows of one run (artifacts.PER_IMAGE).
    """
    from sklearn.metrics import roc_curve

    positive = frame["true_px"].to_numpy() > 0
    if positive.all() or not positive.any():
        return pd.DataFrame({"fpr": [], "tpr": [], "threshold": []}, dtype=float)
    fpr, tpr, threshold = roc_curve(positive, frame["p_positive"].to_numpy())
    return pd.DataFrame({"fpr": fpr, "tpr": tpr, "threshold": threshold})


def operating_point(frame: pd.DataFrame) -> pd.DataFrame:
    """fpr, tpr, one row: those of the submitted masks, any pixel counting as a finding.

    Thresholds also look at areas, so the point can lie off the ROC curve, on either side.
    """
    values = bootstrap.measured(frame)
    return pd.DataFrame({"fpr": [1 - values["specificity"]], "tpr": [values["sensitivity"]]})


def calibration(
    frame: pd.DataFrame, *, bins: int = BINS, strategy: Literal["uniform", "quantile"] = "uniform"
) -> pd.DataFrame:
    """Reliability of the probability, one row per bin that has images.

    low, high             the bin's edges; a value on an edge belongs to the bin below, as in
                          sklearn.calibration.calibration_curve
    images
    p_positive            mean probability
    positive_share        share of images with a pneumothorax
    share_low, share_high its 95 % Wilson interval, wide if the bin has few images

    Args:
        bins: the number of bins.
        strategy: bins of equal width over [0, 1], or with equal numbers of images (fewer
            bins if many values are equal).
    """
    from scipy.stats import binomtest

    positive = frame["true_px"].to_numpy() > 0
    p_positive = frame["p_positive"].to_numpy(dtype=float)
    grid = np.linspace(0, 1, bins + 1)
    edges = grid if strategy == "uniform" else np.quantile(p_positive, grid)
    number = np.searchsorted(edges[1:-1], p_positive)
    rows = []
    for each in np.unique(number).tolist():
        chosen = number == each
        images, positives = int(chosen.sum()), int(positive[chosen].sum())
        share = binomtest(positives, images).proportion_ci(0.95, method="wilson")
        rows.append(
            {
                "low": edges[each],
                "high": edges[each + 1],
                "images": images,
                "p_positive": p_positive[chosen].mean(),
                "positive_share": positives / images,
                "share_low": share.low,
                "share_high": share.high,
            }
        )
    columns = ["low", "high", "images", "p_positive", "positive_share", "share_low", "share_high"]
    return pd.DataFrame(rows, columns=columns)


def expected_calibration_error(table: pd.DataFrame) -> float:
    """Mean over images of their bin's |mean probability - share of positives|, in [0, 1].

    Guo et al.: On Calibration of Modern Neural Networks, ICML 2017, section 2; here of the
    probability of a pneumothorax instead of the confidence in the likelier answer. The value
    depends on the bins, so state their number with it.

    Args:
        table: rows of `calibration`.
    """
    gap = (table["p_positive"] - table["positive_share"]).abs()
    return float((gap * table["images"]).sum() / table["images"].sum())
