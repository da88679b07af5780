"""The probability maps of several runs as one: their weighted mean.

Weights are given, or fitted on out-of-fold maps. Fitted weights minimise the mean squared
difference between the blended map and the truth, the Brier score of its pixels. (For
stacking under these constraints see Breiman: Stacked Regressions, Machine Learning 24, 1996.)
This is a quadratic form of a few sums per image, so a fit without one fold costs nothing.
Weights are multiples of STEP: finer differences are noise, and folds with the same weights
share all later work. Since nearly all pixels are background, the weights that are best for
pixels need not be best for Dice: equal weights and each run alone are candidates too.
"""

import argparse
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

STEP = 0.05
MOST_RUNS = 6  # for fitted weights, since every combination of multiples of STEP is tried
DECIMALS = 12  # squared differences are sums: beyond these they differ only by rounding

Weights = tuple[float, ...]  # one per run, each at least 0, together 1


@dataclass(frozen=True)
class Moments:
    """Mean products over an image's pixels.

    Args:
        between: (R, R), of each two runs' maps.
        with_truth: (R,), of each run's map and the truth.
    """

    between: np.ndarray
    with_truth: np.ndarray


def parse(text: str) -> dict[str, float | None]:
    """argparse type: "a=0.4,b=0.6" -> {run: weight}; "a,b" -> {run: None}, to be fitted."""
    runs: dict[str, float | None] = {}
    for item in text.split(","):
        run, equals, weight = item.partition("=")
        if not run:
            raise argparse.ArgumentTypeError(f"a run has no name: {text!r}")
        if run in runs:
            raise argparse.ArgumentTypeError(f"run {run} is listed twice")
        try:
            runs[run] = float(weight) if equals else None
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{weight!r} is not a weight") from error
    given = [weight for weight in runs.values() if weight is not None]
    if given and (
        len(given) < len(runs) or min(given) < 0 or not math.isclose(sum(given), 1, abs_tol=1e-6)
    ):
        raise argparse.ArgumentTypeError(
            f"give every run a weight of at least 0, with a sum of 1, or give no weights: {text!r}"
        )
    if not given and len(runs) > MOST_RUNS:
        raise argparse.ArgumentTypeError(
            f"weights can be fitted for at most {MOST_RUNS} runs: give them, as in a=0.4,b=0.6"
        )
    return dict(sorted(runs.items()))  # one order everywhere: records are sorted too


def blend(maps: Sequence[np.ndarray], weights: Weights) -> np.ndarray:
    """(h, w) uint8 maps, one per run -> their weighted mean, (h, w) uint8.

    Its size is that of the largest map with a weight above 0.
    """
    used = [(stored, weight) for stored, weight in zip(maps, weights, strict=True) if weight > 0]
    if len(used) == 1:
        return used[0][0]
    resized = _one_size([stored for stored, _ in used])
    total = np.zeros(resized[0].shape, dtype=np.float32)
    for stored, (_, weight) in zip(resized, used, strict=True):
        total += stored * np.float32(weight)
    return np.rint(total).astype(np.uint8)


def moments(maps: Sequence[np.ndarray], truth: np.ndarray) -> Moments:
    """(h, w) uint8 maps and (H, W) truth of 0 and 1 -> moments at the size of the largest map."""
    resized = _one_size(maps)
    pixels = np.stack([stored.ravel() for stored in resized]).astype(np.float32) / 255
    size = resized[0].shape[::-1]
    between, n_pixels = (pixels @ pixels.T).astype(float), pixels.shape[1]
    if not truth.any():
        return Moments(between / n_pixels, np.zeros(len(pixels)))
    target = cv2.resize(truth.astype(np.float32), size, interpolation=cv2.INTER_AREA).ravel()
    return Moments(between / n_pixels, (pixels @ target).astype(float) / n_pixels)


def fit(found: Sequence[Moments]) -> Weights:
    """The weights in multiples of STEP that suit these images best; ties go to the most even."""
    between = np.mean([one.between for one in found], axis=0)
    with_truth = np.mean([one.with_truth for one in found], axis=0)
    tried = simplex(len(with_truth))
    squared = np.einsum("ni,ij,nj->n", tried, between, tried) - 2 * tried @ with_truth
    best = np.flatnonzero(squared.round(DECIMALS) == squared.round(DECIMALS).min())
    return tuple(tried[best[(tried[best] ** 2).sum(axis=1).argmin()]].tolist())


def simplex(n_runs: int) -> np.ndarray:
    """Every combination of weights in multiples of STEP, (N, R)."""
    steps = round(1 / STEP)
    bars = itertools.combinations(range(steps + n_runs - 1), n_runs - 1)
    edges = np.array([(-1, *chosen, steps + n_runs - 1) for chosen in bars])
    return (np.diff(edges, axis=1) - 1) / steps


def candidates(found: Sequence[Moments]) -> list[Weights]:
    """The weights worth trying on these images: fitted, equal, each run alone."""
    n_runs = len(found[0].with_truth)
    each_alone = [alone(run, n_runs) for run in range(n_runs)]
    return list(dict.fromkeys([fit(found), (1 / n_runs,) * n_runs, *each_alone]))


def alone(run: int, n_runs: int) -> Weights:
    """Weight 1 for one run, 0 for the others."""
    return tuple(float(number == run) for number in range(n_runs))


def described(runs: Sequence[str], weights: Mapping[str, Sequence[float]]) -> list[str]:
    """Lines for the terminal.

    Args:
        weights: by the fold that they score, "final" for the test images.
    """
    texts = {
        purpose: ", ".join(f"{run} {weight:g}" for run, weight in zip(runs, of_runs, strict=True))
        for purpose, of_runs in weights.items()
    }
    final = texts.pop("final")
    if set(texts.values()) <= {final}:
        return [f"weights: {final}"]
    by_fold = "; ".join(f"fold {fold}: {texts[fold]}" for fold in sorted(texts, key=int))
    return [f"weights for the test images: {final}", f"weights for the scores: {by_fold}"]


def _one_size(maps: Sequence[np.ndarray]) -> list[np.ndarray]:
    """All maps at the size of the largest, upsampled bilinearly."""
    height, width = max((stored.shape for stored in maps), key=lambda shape: shape[0] * shape[1])
    return [
        stored
        if stored.shape == (height, width)
        else cv2.resize(stored, (width, height), interpolation=cv2.INTER_LINEAR)
        for stored in maps
    ]
