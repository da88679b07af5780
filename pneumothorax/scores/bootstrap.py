"""Confidence intervals of every score, by bootstrap over patients.

Images of one patient resemble each other, so patients are resampled with all their images
(Davison and Hinkley: Bootstrap Methods and their Application, 1997, section 3.8). Every score
but the AUC is a ratio of sums over images, so its value on a resample is a weighted sum over
patients; the AUC comes from weighted ranks.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd

from pneumothorax import metrics

REPEATS = 2000
REPEATS_AT_ONCE = 100  # bounds memory: about 50 MB for 6,000 patients and 12,000 images
PIXEL_COLUMNS = ["true_px", "predicted_px", "overlap_px"]


def replicates(
    frame: pd.DataFrame,
    scores: Iterable[str] = metrics.DEFINITIONS,
    *,
    repeats: int = REPEATS,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Each score on every resample, (repeats,); NaN where a resample leaves it undefined.

    With a single patient all are NaN. The same seed and patients give the same resamples,
    so replicates of two runs on the same images are paired.

    Args:
        frame: rows of one run (artifacts.PER_IMAGE), in any order.
        scores: names from metrics.DEFINITIONS.
    """
    scores = list(scores)
    unknown = sorted(set(scores) - set(metrics.DEFINITIONS))
    if unknown:
        raise ValueError(f"unknown scores {unknown}; known are {list(metrics.DEFINITIONS)}")
    if frame.empty:
        raise ValueError("no images to resample")
    patient, n_patients = patients(frame)
    if n_patients == 1:
        return {name: np.full(repeats, np.nan) for name in scores}
    pixels = [frame[column].to_numpy() for column in PIXEL_COLUMNS]
    ratios = [name for name in scores if name != "auc"]
    fractions = metrics.fractions(*pixels)
    parts, wholes = (
        _sums([fractions[name][side] for name in ratios], patient, n_patients) for side in (0, 1)
    )  # (patients, ratios) each
    auc = None
    if "auc" in scores:
        auc = WeightedAuc(patient, pixels[0] > 0, frame["p_positive"].to_numpy())

    chunks = []
    for counts in _draws(n_patients, repeats, seed):
        with np.errstate(invalid="ignore"):  # 0 / 0: undefined on this resample
            found = dict(zip(ratios, (counts @ parts / (counts @ wholes)).T, strict=True))
        if auc is not None:
            found["auc"] = auc(counts)
        chunks.append(found)
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in scores}


def intervals(
    frame: pd.DataFrame,
    scores: Iterable[str] = metrics.DEFINITIONS,
    *,
    repeats: int = REPEATS,
    seed: int = 0,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """score, value, low, high: each score of one run with its percentile interval."""
    values = measured(frame)
    rows = [
        {"score": name, "value": values[name], **interval(replicate, confidence)}
        for name, replicate in replicates(frame, scores, repeats=repeats, seed=seed).items()
    ]
    return pd.DataFrame(rows, columns=["score", "value", "low", "high"])


def measured(frame: pd.DataFrame) -> dict[str, float]:
    """All metrics.DEFINITIONS on one run's rows (artifacts.PER_IMAGE), without resampling."""
    return metrics.scores(*(frame[column].to_numpy() for column in [*PIXEL_COLUMNS, "p_positive"]))


def interval(replicate: np.ndarray, confidence: float = 0.95) -> dict[str, float]:
    """(repeats,) -> the percentiles `low` and `high`, leaving out NaN."""
    defined = replicate[~np.isnan(replicate)]
    if not len(defined):
        return {"low": float("nan"), "high": float("nan")}
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return {"low": float(low), "high": float(high)}


def patients(frame: pd.DataFrame) -> tuple[np.ndarray, int]:
    """Each image's patient as a number, (N,) int in the order of the ids; the number of patients.

    An image with an empty patient id counts as its own patient.
    """
    named = frame["patient_id"] != ""
    key = ("patient " + frame["patient_id"]).where(named, "image " + frame["image_id"])
    number, unique = pd.factorize(key, sort=True)
    return number, len(unique)


class WeightedAuc:
    """The area under the ROC curve for any weights of the patients; images are ranked once.

    Args:
        patient: (N,) int from 0, each image's patient.
        positive: (N,) bool.
        p_positive: (N,) image-level probability.
    """

    def __init__(self, patient: np.ndarray, positive: np.ndarray, p_positive: np.ndarray) -> None:
        from scipy.sparse import csr_array

        _, rank = np.unique(p_positive, return_inverse=True)  # equal probabilities share a rank
        shape = int(rank.max()) + 1, int(patient.max()) + 1
        self.positives, self.negatives = (
            csr_array((np.ones(chosen.sum()), (rank[chosen], patient[chosen])), shape=shape)
            for chosen in (positive, ~positive)
        )

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """(R, patients) weights >= 0 -> (R,) in [0, 1]; NaN without positives or negatives.

        The share of pairs of a positive and a negative that are in order; ties count half.
        """
        positives, negatives = self.positives @ weights.T, self.negatives @ weights.T  # (ranks, R)
        below = negatives.cumsum(axis=0) - negatives / 2
        pairs = positives.sum(axis=0) * negatives.sum(axis=0)
        with np.errstate(invalid="ignore"):
            return np.einsum("kr,kr->r", positives, below) / pairs


def _draws(n_patients: int, repeats: int, seed: int) -> Iterator[np.ndarray]:
    """How often each patient is drawn: (rows, patients), n_patients draws in each row.

    At most REPEATS_AT_ONCE rows at a time, `repeats` in total.
    """
    generator = np.random.default_rng(seed)
    for start in range(0, repeats, REPEATS_AT_ONCE):
        rows = min(REPEATS_AT_ONCE, repeats - start)
        drawn = generator.integers(n_patients, size=(rows, n_patients))
        drawn += n_patients * np.arange(rows)[:, None]  # rows apart: one bincount counts them all
        counts = np.bincount(drawn.ravel(), minlength=rows * n_patients)
        yield counts.reshape(rows, n_patients).astype(float)


def _sums(columns: list[np.ndarray], patient: np.ndarray, n_patients: int) -> np.ndarray:
    """(N,) columns -> (patients, columns), each patient's sums."""
    sums = np.empty((n_patients, len(columns)))
    for number, column in enumerate(columns):
        sums[:, number] = np.bincount(patient, weights=column, minlength=n_patients)
    return sums
