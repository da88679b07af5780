"""Thresholds fitted on out-of-fold maps, so that no image is scored with thresholds it helped to choose.

Per image the area above every top threshold, and the Dice of its mask above every bottom threshold for every way to
clean it, are computed once; the score of any thresholds on any images is then a sum. The search is exhaustive and exact
on its grid. Nested: the thresholds that score fold k come from the other folds, those for the test images from all.
The naive score (fitted and scored on the same images) is kept beside it to show its optimism.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from pneumothorax import metrics
from pneumothorax.masks import postprocess
from pneumothorax.masks.postprocess import Triplet

# The strict ends are for overconfident networks, which without them could not be held back as far as is best.
TOPS = (
    *(round(0.30 + 0.05 * step, 2) for step in range(14)),
    0.97,
    0.98,
    0.99,
)  # 0.30 .. 0.95 by 0.05
BOTTOMS = (
    *(round(0.20 + 0.05 * step, 2) for step in range(11)),
    0.80,
    0.90,
)  # 0.20 .. 0.70 by 0.05
MIN_AREAS = (
    0,
    100,
    250,
    500,
    750,
    1000,
    1500,
    2000,
    3000,
    4000,
    6000,
    8000,
    12000,
    16000,
    24000,
)  # of 1024 x 1024
MIN_COMPONENTS = (0, 100, 250, 500, 1000)  # of 1024 x 1024
MIN_PROBABILITIES = (0.0, 0.02, 0.05, *(round(0.1 * step, 1) for step in range(1, 10)))
DECIMALS = (
    12  # sums in another order differ beyond these: no reason to prefer one triplet to another
)
STEPS = {
    "small parts dropped": "min_components",
    "holes filled": "fill_holes",
    "image threshold": "min_probabilities",
}  # after the triplet, in this order

Exclusion = int | None  # the fold that a fit leaves out; None: it leaves out nothing


@dataclass(frozen=True)
class Grid:
    """The values tried of each field of a Triplet, ascending; of equal scores the earlier ones win."""

    tops: tuple[float, ...] = TOPS
    min_areas: tuple[float, ...] = MIN_AREAS
    bottoms: tuple[float, ...] = BOTTOMS
    min_components: tuple[float, ...] = (0,)
    fill_holes: tuple[bool, ...] = (False,)
    min_probabilities: tuple[float, ...] = (0.0,)

    @property
    def axes(self) -> tuple[tuple[float, ...], ...]:
        """In the order of Triplet's fields and of the axes of a search's scores."""
        return tuple(vars(self).values())


def triplet(values: Sequence[float]) -> Triplet:
    """One value of each axis of a Grid."""
    top, min_area, bottom, min_component, fill_holes, min_probability = values
    return Triplet(
        top, float(min_area), bottom, float(min_component), bool(fill_holes), float(min_probability)
    )


@dataclass(frozen=True)
class Profile:
    """What one image contributes: its area above each top threshold (1024 x 1024 pixels), Dice at each bottom one."""

    top_areas: np.ndarray  # (T,) float
    dice: (
        np.ndarray
    )  # (B, C, F) float, of the mask above each bottom threshold, cleaned in each way
    empty_dice: float  # of an empty mask: 1 for a negative image, else 0


def profile(stored: np.ndarray, truth: np.ndarray, grid: Grid) -> Profile:
    """(h, w) uint8 map and (H, W) truth of 0 and 1 -> the image's profile, at the truth's resolution."""
    true_px = int(np.count_nonzero(truth))
    window = postprocess.upsample(stored, truth.shape, above=postprocess.level(min(grid.bottoms)))
    empty_dice = float(true_px == 0)
    ways = len(grid.bottoms), len(grid.min_components), len(grid.fill_holes)
    if window is None:
        return Profile(np.zeros(len(grid.tops)), np.full(ways, empty_dice), empty_dice)
    above = window.values.size - np.cumsum(
        np.bincount(window.values.ravel(), minlength=256)
    )  # [v]: pixels > v
    top_areas = above[[postprocess.level(top) for top in grid.tops]] / postprocess.scaled(
        1.0, truth.shape
    )
    inside_truth = truth[window.slices]
    sizes = postprocess.scaled(1.0, truth.shape) * np.array(grid.min_components)
    predicted_px, overlap_px = np.zeros(ways, dtype=int), np.zeros(ways, dtype=int)
    for b, bottom in enumerate(grid.bottoms):
        part = postprocess.narrow(window.values, above=postprocess.level(bottom))
        if part is None:
            continue
        predicted = (window.values[part] > postprocess.level(bottom)).view(np.uint8)
        for f, filled in enumerate(grid.fill_holes):
            mask = postprocess.fill_holes(predicted) if filled else predicted
            predicted_px[b, :, f], overlap_px[b, :, f] = _areas(mask, inside_truth[part], sizes)
    dice = metrics.image_dice(np.full(ways, true_px), predicted_px, overlap_px)
    return Profile(top_areas, dice, empty_dice)


def _areas(mask: np.ndarray, truth: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(h, w) of 0 and 1 each -> (C,) pixels of the mask's parts of at least each size, and those inside the truth."""
    if (sizes <= 1).all():
        inside = int(np.count_nonzero(mask & truth)) if truth.any() else 0
        return np.full(len(sizes), np.count_nonzero(mask)), np.full(len(sizes), inside)
    parts, areas = postprocess.parts(mask)
    inside_px = np.bincount(parts[truth != 0], minlength=len(areas))
    inside_px[0] = 0  # the background
    kept = areas >= sizes[:, None]
    return kept @ areas, kept @ inside_px


class Search:
    """Exhaustive search over the grid for any subset of the images."""

    def __init__(self, profiles: Sequence[Profile], grid: Grid) -> None:
        self.grid = grid
        self.areas = np.stack([one.top_areas for one in profiles])  # (N, T)
        self.dice = np.stack([one.dice for one in profiles])  # (N, B, C, F)
        self.empty_dice = np.array([one.empty_dice for one in profiles])  # (N,)

    def scores(self, images: np.ndarray, p_positive: np.ndarray | None = None) -> np.ndarray:
        """Mean Dice of each triplet over some images; -inf where bottom is above top.

        Args:
            images: (N,) bool.
            p_positive: (N,) each image's own probability in [0, 1]; only thresholds of 0 can do without.

        Returns (T, A, B, C, F, P).
        """
        grid, n_images = self.grid, int(images.sum())
        gains = (self.dice[images] - self.empty_dice[images, None, None, None]).reshape(
            n_images, -1
        )
        thresholds = np.array(grid.min_probabilities)
        p = np.ones(n_images) if p_positive is None else p_positive[images]
        passed_p = np.searchsorted(
            thresholds, p, side="right"
        )  # so many thresholds, from the first on, are passed
        n_areas, n_p, ways = len(grid.min_areas), len(thresholds), self.dice.shape[1:]
        found = np.empty((len(grid.tops), n_areas, *ways, n_p))
        for t, top in enumerate(grid.tops):
            passed_area = np.searchsorted(
                np.array(grid.min_areas), self.areas[images, t], side="right"
            )
            cell = passed_area * (n_p + 1) + passed_p
            each = (np.ones(n_images), (cell, np.arange(n_images)))
            sums = csr_array(each, shape=((n_areas + 1) * (n_p + 1), n_images)) @ gains
            table = sums.reshape(n_areas + 1, n_p + 1, *ways)
            passing = (
                table[::-1, ::-1].cumsum(0).cumsum(1)[::-1, ::-1][1:, 1:]
            )  # all that pass at least so many
            found[t] = np.moveaxis(passing, 1, -1)
            found[t][:, np.array(grid.bottoms) > top] = -np.inf
        return (found + self.empty_dice[images].sum()) / n_images

    def best(
        self, images: np.ndarray, p_positive: np.ndarray | None = None
    ) -> tuple[Triplet, float]:
        """The triplet with the highest mean Dice over `images`, and that score. Ties: the first in the grid's order."""
        return self.choose(self.scores(images, p_positive), self.grid)

    def choose(self, scores: np.ndarray, within: Grid) -> tuple[Triplet, float]:
        """`best`, from the scores of all, among a grid of some of the values."""
        axes = zip(self.grid.axes, within.axes, strict=True)
        some = scores[np.ix_(*([tried.index(value) for value in values] for tried, values in axes))]
        at = np.unravel_index(int(some.round(DECIMALS).argmax()), some.shape)
        values = [values[place] for values, place in zip(within.axes, at, strict=True)]
        return triplet(values), float(some[at])

    def position(self, chosen: Triplet) -> tuple[int, ...]:
        """Of a triplet of the grid on the axes of `scores`."""
        pairs = zip(self.grid.axes, vars(chosen).values(), strict=True)
        return tuple(tried.index(value) for tried, value in pairs)

    def image_dice(self, chosen: Triplet, p_positive: np.ndarray) -> np.ndarray:
        """(N,) probabilities of the images -> (N,) Dice of each image with a triplet of the grid."""
        t, _, b, c, f, _ = self.position(chosen)
        found = (self.areas[:, t] >= chosen.min_area) & (p_positive >= chosen.min_probability)
        return np.where(found, self.dice[:, b, c, f], self.empty_dice)


def on_the_edge(chosen: Triplet, grid: Grid) -> list[str]:
    """Which of the three is the last value of its grid: a wider grid might do better."""
    values = {
        "top threshold": (chosen.top, grid.tops),
        "minimum area": (chosen.min_area, grid.min_areas),
    }
    values["bottom threshold"] = chosen.bottom, grid.bottoms
    return [name for name, (value, tried) in values.items() if value == tried[-1]]


@dataclass(frozen=True)
class Fitted:
    """Thresholds for every purpose."""

    by_fold: dict[int, Triplet]  # for scoring fold k, from the other folds
    final: Triplet  # for test images, from all folds
    naive_by_fold: dict[int, float]  # SIIM Dice of each fold with `final`
    naive: float  # SIIM Dice of all images with `final`
    surface: (
        np.ndarray
    )  # (T, A, B) SIIM Dice of all images, all else as in `final`; -inf where impossible
    steps: dict[str, tuple[float, float]]  # SIIM Dice (nested, naive) of ever more post-processing


def fit(
    searches: Mapping[Exclusion, Search],
    folds: np.ndarray,
    p_positive: Mapping[Exclusion, np.ndarray],
    grid: Grid,
) -> Fitted:
    """Thresholds, nested and final, from (N,) fold numbers of at least two folds.

    Args:
        searches: of all images' profiles, by the fold left out of what made the maps (None: no fold).
        p_positive: (N,) each image's own probability, likewise.
    """
    numbers = sorted(set(folds.tolist()))
    if len(numbers) < 2:
        raise ValueError("nested thresholds need at least two folds")
    everything = searches[None].scores(np.ones(len(folds), dtype=bool), p_positive[None])
    others = {
        number: searches[number].scores(folds != number, p_positive[number]) for number in numbers
    }

    def nested(within: Grid) -> dict[int, Triplet]:
        return {
            number: searches[number].choose(scores, within)[0] for number, scores in others.items()
        }

    steps = {}
    for name, within in smaller_grids(grid).items():
        dice = np.zeros(len(folds))
        for number, chosen in nested(within).items():
            own = searches[number].image_dice(chosen, p_positive[number])
            dice[folds == number] = own[folds == number]
        steps[name] = float(dice.mean()), searches[None].choose(everything, within)[1]
    final, naive = searches[None].choose(everything, grid)
    at = searches[None].position(final)
    naive_dice = searches[None].image_dice(final, p_positive[None])
    return Fitted(
        by_fold=nested(grid),
        final=final,
        naive_by_fold={number: float(naive_dice[folds == number].mean()) for number in numbers},
        naive=naive,
        surface=everything[:, :, :, at[3], at[4], at[5]],
        steps=steps,
    )


def smaller_grids(grid: Grid) -> dict[str, Grid]:
    """What each part of the post-processing adds: from one threshold alone to the whole grid."""
    first = {name: values[:1] for name, values in vars(grid).items()}
    steps = {"one threshold": Grid(**{**first, "tops": grid.tops[-1:], "bottoms": grid.bottoms})}
    added = {name: getattr(grid, name) for name in ("tops", "min_areas", "bottoms")}
    steps["triplet"] = Grid(**{**first, **added})
    for step, name in STEPS.items():
        if len(getattr(grid, name)) > 1:
            added[name] = getattr(grid, name)
            steps[step] = Grid(**{**first, **added})
    return steps
