"""An image's score -> the probability that it shows a pneumothorax.

The score joins the classification head, where there is one, with the map: each finds images
that the other misses. The probability is a logistic curve over its log odds, with smoothed
targets so that few or separable images do not lead to certainty (Platt: Probabilistic Outputs
for Support Vector Machines, Advances in Large Margin Classifiers, 1999). The curve never
falls, so images that are calibrated together keep their order and their AUC.
"""

from dataclasses import dataclass

import numpy as np

SMALLEST = 1e-6  # scores are clipped to [SMALLEST, 1 - SMALLEST], which keeps log odds finite


def score(highest: np.ndarray, classification: np.ndarray | None) -> np.ndarray:
    """(N,) scores of images as a whole, in [0, 1].

    Where there is a classification head, both odds count equally, on their logarithmic
    scale (compared in benchmarks/RESULTS.md). Otherwise the map's highest probability.

    Args:
        highest: (N,) the highest probability of each image's map.
        classification: (N,) the head's probabilities, NaN or None without one.
    """
    if classification is None:
        return highest
    both = _probability((_log_odds(highest) + _log_odds(classification)) / 2)
    return np.where(np.isnan(classification), highest, both)


@dataclass(frozen=True)
class Calibration:
    """p = 1 / (1 + exp(-(slope * log odds of the score + intercept)))"""

    slope: float
    intercept: float

    def __call__(self, score: np.ndarray) -> np.ndarray:
        """(N,) scores in [0, 1] -> (N,) probabilities in (0, 1)."""
        return _probability(self.slope * _log_odds(score) + self.intercept)


def fit(score: np.ndarray, positive: np.ndarray) -> Calibration:
    """(N,) scores in [0, 1] and (N,) truths of 0 and 1 -> the curve of greatest likelihood."""
    from sklearn.linear_model import LogisticRegression

    log_odds, positive = _log_odds(score), np.asarray(positive, dtype=bool)
    positives, negatives = int(positive.sum()), int((~positive).sum())
    target = np.where(positive, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    # An image with target t counts as positive with weight t and as negative with weight 1 - t.
    spread = max(float(log_odds.std()), SMALLEST)  # the solver works best on a scale of 1
    features = np.concatenate([log_odds, log_odds])[:, None] / spread
    truths = np.repeat([1, 0], len(log_odds))
    curve = LogisticRegression(C=np.inf).fit(
        features, truths, sample_weight=np.concatenate([target, 1 - target])
    )
    slope = float(curve.coef_[0, 0]) / spread
    if slope <= 0:  # the score says nothing, or the opposite: every image gets the mean target
        return Calibration(0.0, float(_log_odds(target.mean())))
    return Calibration(slope, float(curve.intercept_[0]))


# The numbers of scipy.special's logit and expit, without SciPy: bundles predict without it.


def _log_odds(score: np.ndarray) -> np.ndarray:
    p = np.clip(np.asarray(score, dtype=float), SMALLEST, 1 - SMALLEST)
    from_half = 2 * (p - 0.5)
    near_half = np.log1p(from_half) - np.log1p(-from_half)  # more exact there
    return np.where((p >= 0.3) & (p <= 0.65), near_half, np.log(p / (1 - p)))


def _probability(log_odds: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # of exp, whose inverse is then 0
        return 1 / (1 + np.exp(-log_odds))
