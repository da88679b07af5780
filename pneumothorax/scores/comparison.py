"""Runs compared in pairs on the same images: differences, their intervals, and p-values.

Both runs are scored on the same resamples of the patients, so the difficulty of an image,
which both share, cancels out.
"""

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from pneumothorax import metrics
from pneumothorax.errors import BadInput, counted
from pneumothorax.scores import bootstrap, per_image

SAME = {"patient_id": "patients", "fold": "folds", "true_px": "truths"}
SHOWN = 5  # image ids in a message
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

    p is two-sided, from the bootstrap distribution of the difference d: twice the smaller of
    the shares of resamples with d <= 0 and with d >= 0, at most 1. One is added to both
    counts, so p is never 0. It answers how easily other patients would have reversed the
    sign, and is below 0.05 roughly when the interval excludes 0. It covers the choice of
    patients, but not that of seed or split in training, and it is not corrected for several
    pairs or scores (see `all_pairs`).

    Args:
        first, second: rows of one run each (artifacts.PER_IMAGE).

    Raises BadInput if the runs differ in images, patients, folds or truths.
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
    """`paired` for every two runs: first, second, score, difference, low, high, p, p_holm.

    p_holm is p after Holm's correction over all pairs of the same score. It is not corrected
    for several scores.

    Args:
        frames: {run: rows}.
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


def gain_over_all_empty(
    images: pd.DataFrame, manifest: pd.DataFrame, folds: pd.DataFrame, name: str, *, seed: int
) -> dict[str, float]:
    """How much higher SIIM Dice is than with every mask empty: see `paired`.

    Args:
        images: artifacts.Submission.out_of_fold rows; `rle` is not needed.
        manifest, folds: artifacts.MANIFEST and artifacts.FOLDS rows.
        name: of the run or blend, for messages.

    Returns the `difference`, `low`, `high` and `p`.
    """
    frame = per_image.table(images, manifest, folds, name)
    return _numbers(paired(frame, per_image.all_empty(frame), ["siim_dice"], seed=seed))


def gain_over_best_run(
    blend: pd.DataFrame,
    single_runs: Mapping[str, pd.DataFrame],
    manifest: pd.DataFrame,
    folds: pd.DataFrame,
    *,
    seed: int,
) -> dict[str, Any]:
    """How much higher a blend's SIIM Dice is than that of its best single run.

    The best run is chosen by the very score it is compared with, which favours it: the gain
    is understated rather than overstated.

    Args:
        blend, single_runs: artifacts.Submission.out_of_fold rows, nested in the same way;
            `rle` is not needed.
        manifest, folds: artifacts.MANIFEST and artifacts.FOLDS rows.

    Returns the best run's name `run` and its `siim_dice`; the `difference`, `low`, `high` and
    `p` of `paired`.
    """
    best = max(single_runs, key=lambda run: single_runs[run]["dice"].mean())
    blended = per_image.table(blend, manifest, folds, best)
    single = per_image.table(single_runs[best], manifest, folds, best)
    numbers = _numbers(paired(blended, single, ["siim_dice"], seed=seed))
    return {"run": best, "siim_dice": float(single_runs[best]["dice"].mean()), **numbers}


def _numbers(of_one_score: pd.DataFrame) -> dict[str, float]:
    return {name: float(of_one_score[name].iloc[0]) for name in ("difference", "low", "high", "p")}


def gain_in_words(gain: Mapping[str, Any]) -> str:
    """`gain_over_best_run` for the terminal."""
    interval = f"{gain['low']:+.4f} to {gain['high']:+.4f}, p = {gain['p']:.3f}"
    best = f"best single run {gain['run']} {gain['siim_dice']:.4f}"
    return f"{best}: the blend gains {gain['difference']:+.4f} ({interval})"


def p_value(difference: np.ndarray) -> float:
    """(repeats,) replicates of a difference, NaN left out -> p as defined in `paired`."""
    defined = difference[~np.isnan(difference)]
    if not len(defined):
        return float("nan")
    fewer = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    return min(1.0, 2 * (fewer + 1) / (len(defined) + 1))


def holm(p: np.ndarray) -> np.ndarray:
    """(M,) p-values -> (M,) after Holm's step-down correction for M tests; NaN do not count.

    Holm: A simple sequentially rejective multiple test procedure, Scandinavian Journal of
    Statistics 6, 1979.
    """
    corrected = np.full(len(p), np.nan)
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]  # NaN sort last
    factor = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * factor))
    return corrected


def _ordered(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Sorted by image id, so that equal images give equal sums to the last bit."""
    repeated = frame.loc[frame["image_id"].duplicated(), "image_id"].tolist()
    if repeated:
        raise BadInput(f"{name} lists images twice: {_some(repeated)}")
    return frame.sort_values("image_id", ignore_index=True)


def _check_same(first: pd.DataFrame, second: pd.DataFrame, names: tuple[str, str]) -> None:
    refusal = f"{names[0]} and {names[1]} cannot be compared"
    odd = sorted(set(first["image_id"]) ^ set(second["image_id"]))
    if odd:
        are = counted(len(odd), "image is", "images are")
        raise BadInput(f"{refusal}: {are} in only one of them: {_some(odd)}")
    for column, what in SAME.items():
        differs = first[column].to_numpy() != second[column].to_numpy()
        if differs.any():
            ids = first.loc[differs, "image_id"].tolist()
            have = counted(len(ids), "image has", "images have")
            raise BadInput(f"{refusal}: {have} different {what} ({column}): {_some(ids)}")


def _some(ids: list[str]) -> str:
    return ", ".join(ids[:SHOWN]) + (", ..." if len(ids) > SHOWN else "")
