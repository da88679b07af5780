"""From which probability of an image on a mask is worth more than an empty one.

With SIIM Dice a mask gains its Dice on a positive image and costs 1 on a negative one. On an
image of probability p it gains p * Dice - (1 - p) on average, which is more than nothing if
p * (1 + Dice) is above 1. This threshold follows from two smooth curves, the calibration and
the Dice expected at p. The threshold that scores highest follows from the few images near it,
and scores less on others (benchmarks/RESULTS.md).
"""

import numpy as np


def is_worthwhile(
    probabilities: np.ndarray, p_positive: np.ndarray, dice: np.ndarray
) -> np.ndarray:
    """(P, ...) bool: whether masks are worth more than empty ones at these probabilities.

    Args:
        probabilities: (P,) in [0, 1].
        p_positive, dice: (N,) calibrated probabilities and (N, ...) Dice of positive images, in
            [0, 1]; N may be 0.
    """
    p = probabilities.reshape(-1, *[1] * (dice.ndim - 1))
    return p * (1 + expected_dice(p, p_positive, dice)) > 1


def expected_dice(p: np.ndarray, p_positive: np.ndarray, dice: np.ndarray) -> np.ndarray:
    """The Dice of a positive image of probability `p`: a line that does not fall, within [0, 1].

    Fitted to positive images by least squares; `p_positive` and `dice` are as in `is_worthwhile`.
    """
    if not len(dice):
        return np.zeros_like(p)
    from_mean = p_positive - p_positive.mean()
    spread = from_mean @ from_mean
    slope = np.tensordot(from_mean, dice, 1) / spread if spread > 0 else np.zeros(dice.shape[1:])
    return np.clip(dice.mean(0) + np.maximum(slope, 0) * (p - p_positive.mean()), 0, 1)
