"""An image's score -> the probability that it shows a pneumothorax, fitted on images whose truth is known.

Platt: Probabilistic Outputs for Support Vector Machines, Advances in Large Margin Classifiers, 1999: a logistic curve
over the score's log odds, with his smoothed targets, so that few or separable images do not lead to certainty. It
never turns the order of the images round, and so keeps the AUC of those that are calibrated together.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

SMALLEST = 1e-6  # scores are clipped to [SMALLEST, 1 - SMALLEST]: log odds are finite


@dataclass(frozen=True)
class Calibration:
    """p = 1 / (1 + exp(-(slope * log odds of the score + intercept)))"""

    slope: float
    intercept: float

    def __call__(self, score: np.ndarray) -> np.ndarray:
        """(N,) scores in [0, 1] -> (N,) probabilities in (0, 1)."""
        return expit(self.slope * _log_odds(score) + self.intercept)


def fit(score: np.ndarray, positive: np.ndarray) -> Calibration:
    """(N,) scores in [0, 1] and (N,) truths of 0 and 1 -> the curve of greatest likelihood."""
    odds, positive = _log_odds(score), np.asarray(positive, dtype=bool)
    positives, negatives = int(positive.sum()), int((~positive).sum())
    target = np.where(positive, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    # A target t is an image that is positive with weight t and negative with weight 1 - t.
    spread = max(float(odds.std()), SMALLEST)  # the solver works on a scale of 1
    features = np.concatenate([odds, odds])[:, None] / spread
    truths = np.repeat([1, 0], len(odds))
    curve = LogisticRegression(C=np.inf).fit(
        features, truths, sample_weight=np.concatenate([target, 1 - target])
    )
    slope = float(curve.coef_[0, 0]) / spread
    if (
        slope <= 0
    ):  # scores that say nothing, or the opposite: all images get the share of positives
        return Calibration(0.0, float(logit(target.mean())))
    return Calibration(slope, float(curve.intercept_[0]))


def _log_odds(score: np.ndarray) -> np.ndarray:
    return logit(np.clip(np.asarray(score, dtype=float), SMALLEST, 1 - SMALLEST))
