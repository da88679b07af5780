"""Triplet thresholds fitted on out-of-fold maps, so that no image is scored with thresholds it helped to choose.

Per image the area above every top threshold and the Dice at every bottom threshold are computed once; a triplet's
score is then a sum over images. Nested: the thresholds that score fold k come from the other folds; those for the
test images come from all. The naive score (fitted and scored on the same images) is kept beside it to show its
optimism.
"""

from dataclasses import dataclass

import numpy as np

from pneumothorax import metrics, postprocess
from pneumothorax.postprocess import Triplet

# The strict ends are for overconfident networks, which without them could not be held back as far as is best.
TOPS = (*(round(0.30 + 0.05 * step, 2) for step in range(14)), 0.97, 0.98, 0.99)  # 0.30 .. 0.95 by 0.05
BOTTOMS = (*(round(0.20 + 0.05 * step, 2) for step in range(11)), 0.80, 0.90)  # 0.20 .. 0.70 by 0.05
MIN_AREAS = (0, 100, 250, 500, 750, 1000, 1500, 2000, 3000, 4000, 6000, 8000, 12000, 16000, 24000)  # of 1024 x 1024


@dataclass(frozen=True)
class Grid:
    """The thresholds tried; `min_component` is fixed."""

    tops: tuple[float, ...] = TOPS
    min_areas: tuple[float, ...] = MIN_AREAS
    bottoms: tuple[float, ...] = BOTTOMS
    min_component: float = 0.0


@dataclass(frozen=True)
class Profile:
    """What one image contributes: its area above each top threshold (1024 x 1024 pixels), Dice at each bottom one."""

    top_areas: np.ndarray  # (T,) float
    dice: np.ndarray  # (B,) float, of the mask above each bottom threshold
    empty_dice: float  # of an empty mask: 1 for a negative image, else 0


def profile(stored: np.ndarray, truth: np.ndarray, grid: Grid) -> Profile:
    """(h, w) uint8 map and (H, W) truth of 0 and 1 -> the image's profile, at the truth's resolution."""
    true_px = int(np.count_nonzero(truth))
    window = postprocess.enlarge(stored, truth.shape, above=postprocess.level(min(grid.bottoms)))
    empty_dice = float(true_px == 0)
    if window is None:
        return Profile(np.zeros(len(grid.tops)), np.full(len(grid.bottoms), empty_dice), empty_dice)
    above = window.values.size - np.cumsum(np.bincount(window.values.ravel(), minlength=256))  # [v]: pixels > v
    top_areas = above[[postprocess.level(top) for top in grid.tops]] / postprocess.scaled(1.0, truth.shape)
    inside_truth = truth[window.slices] != 0
    counts = []
    for bottom in grid.bottoms:
        predicted = (window.values > postprocess.level(bottom)).astype(np.uint8)
        predicted = postprocess.drop_small(predicted, postprocess.scaled(grid.min_component, truth.shape))
        counts.append((int(np.count_nonzero(predicted)), int(np.count_nonzero(predicted[inside_truth]))))
    predicted_px, overlap_px = np.array(counts).T
    return Profile(top_areas, metrics.image_dice(np.full(len(counts), true_px), predicted_px, overlap_px), empty_dice)


class Search:
    """Exhaustive search over the grid for any subset of the images."""

    def __init__(self, profiles: list[Profile], grid: Grid) -> None:
        self.grid = grid
        self.areas = np.stack([one.top_areas for one in profiles])  # (N, T)
        self.dice = np.stack([one.dice for one in profiles])  # (N, B)
        self.empty_dice = np.array([one.empty_dice for one in profiles])  # (N,)

    def scores(self, images: np.ndarray) -> np.ndarray:
        """(N,) bool -> (T, A, B) mean Dice of each triplet over those images; -inf where bottom is above top."""
        dice, empty_dice = self.dice[images], self.empty_dice[images]
        result = np.full((len(self.grid.tops), len(self.grid.min_areas), len(self.grid.bottoms)), -np.inf)
        for t, top in enumerate(self.grid.tops):
            for a, min_area in enumerate(self.grid.min_areas):
                empty = self.areas[images, t] < min_area
                total = empty_dice[empty].sum() + dice[~empty].sum(axis=0)
                result[t, a] = np.where(np.array(self.grid.bottoms) <= top, total / len(dice), -np.inf)
        return result

    def best(self, images: np.ndarray) -> tuple[Triplet, float]:
        """The triplet with the highest mean Dice over `images`, and that score. Ties: the first in the grid's order."""
        scores = self.scores(images)
        t, a, b = np.unravel_index(int(scores.argmax()), scores.shape)
        grid = self.grid
        triplet = Triplet(grid.tops[t], float(grid.min_areas[a]), grid.bottoms[b], grid.min_component)
        return triplet, float(scores[t, a, b])


def on_the_edge(top: float, min_area: float, bottom: float, grid: Grid) -> list[str]:
    """Which of the three is the last value of its grid: a wider grid might do better."""
    values = {"top threshold": (top, grid.tops), "minimum area": (min_area, grid.min_areas)}
    values["bottom threshold"] = bottom, grid.bottoms
    return [name for name, (value, tried) in values.items() if value == tried[-1]]


@dataclass(frozen=True)
class Fitted:
    """Thresholds for every purpose."""

    by_fold: dict[int, Triplet]  # for scoring fold k, from the other folds
    final: Triplet  # for test images, from all folds
    naive_by_fold: dict[int, float]  # SIIM Dice of each fold with `final`
    naive: float  # SIIM Dice of all images with `final`
    surface: np.ndarray  # (T, A, B) SIIM Dice of all images with each triplet of the grid; -inf where impossible


def fit(profiles: list[Profile], folds: np.ndarray, grid: Grid) -> Fitted:
    """Profiles and (N,) fold numbers of at least two folds -> thresholds, nested and final."""
    search = Search(profiles, grid)
    numbers = sorted(set(folds.tolist()))
    if len(numbers) < 2:
        raise ValueError("nested thresholds need at least two folds")
    everything = np.ones(len(folds), dtype=bool)
    final, naive = search.best(everything)
    at = (grid.tops.index(final.top), grid.min_areas.index(final.min_area), grid.bottoms.index(final.bottom))
    return Fitted(
        by_fold={fold: search.best(folds != fold)[0] for fold in numbers},
        final=final,
        naive_by_fold={fold: float(search.scores(folds == fold)[at]) for fold in numbers},
        naive=naive,
        surface=search.scores(everything),
    )
