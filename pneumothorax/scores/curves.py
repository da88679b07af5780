"""How well the image-level probability ranks images (ROC curve) and how far it can be taken at its word (calibration).

The probability is the classification head's, else the map's highest (stage 03), calibrated on the other folds (stage 04).
"""

from typing import Literal

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from sklearn.metrics import roc_curve

from pneumothorax.scores import bootstrap

BINS = 10


def roc(frame: pd.DataFrame) -> pd.DataFrame:
    """fpr, tpr, threshold, from (0, 0) at threshold infinity to (1, 1); no rows without positives or negatives.

    Args:
        frame: rows of one run (artifacts.PER_IMAGE).
    """
    positive = frame["true_px"].to_numpy() > 0
    if positive.all() or not positive.any():
        return pd.DataFrame({"fpr": [], "tpr": [], "threshold": []}, dtype=float)
    fpr, tpr, threshold = roc_curve(positive, frame["p_positive"].to_numpy())
    return pd.DataFrame({"fpr": fpr, "tpr": tpr, "threshold": threshold})


def operating_point(frame: pd.DataFrame) -> pd.DataFrame:
    """fpr, tpr, one row: where the masks stand that are submitted, an image counting as found with any pixel in it.

    The triplet also looks at the area, so the point may lie beside the curve, below it or above.
    """
    values = bootstrap.measured(frame)
    return pd.DataFrame({"fpr": [1 - values["specificity"]], "tpr": [values["sensitivity"]]})


def calibration(
    frame: pd.DataFrame, *, bins: int = BINS, strategy: Literal["uniform", "quantile"] = "uniform"
) -> pd.DataFrame:
    """Reliability of the probability: low, high, images, p_positive, positive_share, share_low, share_high per bin.

    `p_positive` is the bin's mean probability, `positive_share` the share of images with a pneumothorax, with its
    95 % Wilson interval, which is wide where a bin holds few images. Bins without images are left out. A value on an
    edge belongs to the bin below, as in sklearn.calibration.calibration_curve.

    Args:
        bins: how many.
        strategy: of equal width over [0, 1], or with equally many images (fewer bins where many values are equal).
    """
    positive, p_positive = (
        frame["true_px"].to_numpy() > 0,
        frame["p_positive"].to_numpy(dtype=float),
    )
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
    """Mean over images of |mean probability - share of positives| of their bin, in [0, 1]; 0 is perfect.

    Guo et al.: On Calibration of Modern Neural Networks, ICML 2017, section 2, on the probability of a pneumothorax
    and not on the confidence of the likelier answer. It depends on the bins, so give their number with it.

    Args:
        table: of `calibration`.
    """
    gap = (table["p_positive"] - table["positive_share"]).abs()
    return float((gap * table["images"]).sum() / table["images"].sum())
