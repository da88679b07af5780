"""Several runs' maps of an image as one: their weighted mean, with weights given or fitted on out-of-fold maps.

Fitted weights minimise the mean squared difference of the blended map and the truth (the Brier score of its pixels; for
stacking under these constraints Breiman: Stacked Regressions, Machine Learning 24, 1996). That is a quadratic form of
a few sums per image, so fitting without a fold's images costs nothing. Weights are multiples of STEP: finer ones are
within the noise, and folds that agree on them share all later work. Nearly all pixels are background, and so the best
weights by that measure need not be the best by Dice: they are candidates beside equal weights and each run alone.
"""

import argparse
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

STEP = 0.05
MOST_RUNS = 6  # with fitted weights: all combinations of multiples of STEP are tried
DECIMALS = 12  # squared differences are sums: beyond these they differ by rounding

Weights = tuple[float, ...]  # of each run, from 0 up, together 1


@dataclass(frozen=True)
class Moments:
    """Mean products over an image's pixels: between every two runs' maps (R, R), and of each with the truth (R,)."""

    between: np.ndarray
    with_truth: np.ndarray


def parse(text: str) -> dict[str, float | None]:
    """argparse type: "a=0.4,b=0.6" -> the runs and their weights; "a,b": weights are to be fitted (None)."""
    runs: dict[str, float | None] = {}
    for part in text.split(","):
        run, equals, weight = part.partition("=")
        if not run:
            raise argparse.ArgumentTypeError(f"a run without a name: {text!r}")
        if run in runs:
            raise argparse.ArgumentTypeError(f"run {run} is named twice")
        try:
            runs[run] = float(weight) if equals else None
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{weight!r} is no weight") from error
    given = [weight for weight in runs.values() if weight is not None]
    if given and (
        len(given) < len(runs) or min(given) < 0 or not math.isclose(sum(given), 1, abs_tol=1e-6)
    ):
        raise argparse.ArgumentTypeError(
            f"give all runs weights from 0 up that sum to 1, or none: {text!r}"
        )
    if not given and len(runs) > MOST_RUNS:
        raise argparse.ArgumentTypeError(
            f"weights are fitted for at most {MOST_RUNS} runs: give them, a=0.4,b=0.6"
        )
    return dict(sorted(runs.items()))  # one order everywhere: records are sorted too


def blend(maps: Sequence[np.ndarray], weights: Weights) -> np.ndarray:
    """(h, w) uint8 maps, one per run -> their weighted mean as (h, w) uint8, at the size of the largest that counts."""
    used = [(stored, weight) for stored, weight in zip(maps, weights, strict=True) if weight > 0]
    if len(used) == 1:
        return used[0][0]
    resized = _one_size([stored for stored, _ in used])
    total = np.zeros(resized[0].shape, dtype=np.float32)
    for stored, (_, weight) in zip(resized, used, strict=True):
        total += stored * np.float32(weight)
    return np.rint(total).astype(np.uint8)


def moments(maps: Sequence[np.ndarray], truth: np.ndarray) -> Moments:
    """(h, w) uint8 maps and the (H, W) truth of 0 and 1 -> the image's moments at the size of the largest map."""
    resized = _one_size(maps)
    pixels = np.stack([one.ravel() for one in resized]).astype(np.float32) / 255
    size = resized[0].shape[::-1]
    between, n_pixels = (pixels @ pixels.T).astype(float), pixels.shape[1]
    if not truth.any():
        return Moments(between / n_pixels, np.zeros(len(pixels)))
    target = cv2.resize(truth.astype(np.float32), size, interpolation=cv2.INTER_AREA).ravel()
    return Moments(between / n_pixels, (pixels @ target).astype(float) / n_pixels)


def fit(found: Sequence[Moments]) -> Weights:
    """The weights, multiples of STEP, that suit these images best; of equal ones the most even."""
    between = np.mean([one.between for one in found], axis=0)
    with_truth = np.mean([one.with_truth for one in found], axis=0)
    tried = _simplex(len(with_truth))
    squared = np.einsum("ni,ij,nj->n", tried, between, tried) - 2 * tried @ with_truth
    best = np.flatnonzero(squared.round(DECIMALS) == squared.round(DECIMALS).min())
    return tuple(tried[best[(tried[best] ** 2).sum(axis=1).argmin()]].tolist())


def candidates(found: Sequence[Moments]) -> list[Weights]:
    """What is worth trying for these images: fitted, equal, each run alone."""
    n_runs = len(found[0].with_truth)
    singles = [alone(run, n_runs) for run in range(n_runs)]
    return list(dict.fromkeys([fit(found), (1 / n_runs,) * n_runs, *singles]))


def alone(run: int, n_runs: int) -> Weights:
    """One run's maps as they are."""
    return tuple(float(number == run) for number in range(n_runs))


def told(runs: Sequence[str], weights: Mapping[str, Sequence[float]]) -> list[str]:
    """For the terminal.

    Args:
        weights: by the fold that they score, "final" for the test images.
    """
    texts = {
        what: ", ".join(f"{run} {w:g}" for run, w in zip(runs, own, strict=True))
        for what, own in weights.items()
    }
    final = texts.pop("final")
    if set(texts.values()) <= {final}:
        return [f"weights: {final}"]
    scoring = "; ".join(f"fold {fold}: {texts[fold]}" for fold in sorted(texts, key=int))
    return [f"weights for the test images: {final}", f"weights that the scores rest on: {scoring}"]


def _simplex(n_runs: int) -> np.ndarray:
    """All weights of so many runs in multiples of STEP, (N, R)."""
    parts = round(1 / STEP)
    bars = itertools.combinations(range(parts + n_runs - 1), n_runs - 1)
    edges = np.array([(-1, *chosen, parts + n_runs - 1) for chosen in bars])
    return (np.diff(edges, axis=1) - 1) / parts


def _one_size(maps: Sequence[np.ndarray]) -> list[np.ndarray]:
    """All at the size of the largest, bilinearly upsampled."""
    height, width = max((stored.shape for stored in maps), key=lambda shape: shape[0] * shape[1])
    return [
        stored
        if stored.shape == (height, width)
        else cv2.resize(stored, (width, height), interpolation=cv2.INTER_LINEAR)
        for stored in maps
    ]
