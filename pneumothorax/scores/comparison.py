"""Runs compared in pairs on the same images: the difference of each score, its interval and a p-value.

Both runs are scored on the same resamples of the patients, so what makes an image hard for both cancels out.
"""

from collections.abc import Iterable
from itertools import combinations

import numpy as np
import pandas as pd

from pneumothorax import metrics
from pneumothorax.errors import BadInput
from pneumothorax.scores import bootstrap

SAME = {"patient_id": "patients", "fold": "folds", "true_px": "truths"}
SHOWN = 5  # image ids named in a refusal
DECIMALS = 12  # smaller differences are rounding errors of the sums


def paired(
    first: pd.DataFrame,
    second: pd.DataFrame,
    scores: Iterable[str] = metrics.DEFINITIONS,
    *,
    repeats: int = bootstrap.REPEATS,
    seed: int = 0,
) -> pd.DataFrame:
    """score, difference (first minus second), low, high (95 %), p: one row per score.

    p is two-sided, from the bootstrap distribution of the difference d: twice the smaller of the shares of resamples
    with d <= 0 and with d >= 0, at most 1, one added to both counts so that it is never 0. It asks how easily other
    patients would have turned the sign, and says "below 0.05" about when the interval leaves out 0. It knows the
    chance of which patients were collected, not that of another seed or split in training, and it is not corrected
    for looking at several pairs or scores (see `all_pairs`).

    Args:
        first, second: rows of one run each (artifacts.PER_IMAGE).

    Raises BadInput when the runs differ in images, patients, folds or truths.
    """
    table = all_pairs({"first": first, "second": second}, scores, repeats=repeats, seed=seed)
    return table[["score", "difference", "low", "high", "p"]]


def all_pairs(
    frames: dict[str, pd.DataFrame],
    scores: Iterable[str] = metrics.DEFINITIONS,
    *,
    repeats: int = bootstrap.REPEATS,
    seed: int = 0,
) -> pd.DataFrame:
    """`paired` for every two of the runs {name: rows}: first, second, score, difference, low, high, p, p_holm.

    p_holm is p after Holm's correction over the pairs of the same score; scores are not corrected for each other.
    """
    scores = list(scores)
    ordered = {name: _ordered(frame, name) for name, frame in frames.items()}
    for first, second in combinations(ordered, 2):
        _check_same(ordered[first], ordered[second], (first, second))
    values = {name: bootstrap.measured(frame) for name, frame in ordered.items()}
    replicates = {
        name: bootstrap.replicates(frame, scores, repeats=repeats, seed=seed)
        for name, frame in ordered.items()
    }
    rows = []
    for first, second in combinations(ordered, 2):
        for score in scores:
            difference = np.round(replicates[first][score] - replicates[second][score], DECIMALS)
            rows.append(
                {
                    "first": first,
                    "second": second,
                    "score": score,
                    "difference": values[first][score] - values[second][score],
                    **bootstrap.interval(difference),
                    "p": p_value(difference),
                }
            )
    table = pd.DataFrame(
        rows, columns=["first", "second", "score", "difference", "low", "high", "p"]
    )
    return table.assign(p_holm=table.groupby("score")["p"].transform(lambda p: holm(p.to_numpy())))


def p_value(difference: np.ndarray) -> float:
    """(repeats,) replicates of a difference -> the two-sided p-value that `paired` explains; NaN are left out."""
    defined = difference[~np.isnan(difference)]
    if not len(defined):
        return float("nan")
    fewer = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    return min(1.0, 2 * (fewer + 1) / (len(defined) + 1))


def holm(p: np.ndarray) -> np.ndarray:
    """(M,) p-values -> (M,) after Holm's step-down correction for testing all of them; NaN stay and do not count.

    Holm: A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6, 1979.
    """
    corrected = np.full(len(p), np.nan)
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]  # NaN sort last
    factor = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * factor))
    return corrected


def _ordered(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """By image id, so that equal images give equal sums to the last bit."""
    repeated = frame.loc[frame["image_id"].duplicated(), "image_id"].tolist()
    if repeated:
        raise BadInput(f"run {name} has images more than once: {_some(repeated)}")
    return frame.sort_values("image_id", ignore_index=True)


def _check_same(first: pd.DataFrame, second: pd.DataFrame, names: tuple[str, str]) -> None:
    refusal = f"{names[0]} and {names[1]} cannot be compared"
    odd = sorted(set(first["image_id"]) ^ set(second["image_id"]))
    if odd:
        raise BadInput(f"{refusal}: {len(odd)} images are in one of them only: {_some(odd)}")
    for column, what in SAME.items():
        differs = first[column].to_numpy() != second[column].to_numpy()
        if differs.any():
            ids = first.loc[differs, "image_id"].tolist()
            raise BadInput(
                f"{refusal}: {len(ids)} images have other {what} ({column}): {_some(ids)}"
            )


def _some(ids: list[str]) -> str:
    return ", ".join(ids[:SHOWN]) + (", ..." if len(ids) > SHOWN else "")
