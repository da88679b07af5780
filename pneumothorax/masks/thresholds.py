"""Exhaustive search for thresholds and cleaning that suit a set of images, and others like them.

The image threshold is computed, not searched: see `is_worthwhile`.

Each image is reduced to a profile once: its area above every top threshold, and the Dice of
its mask for every bottom threshold and every way of cleaning. The mean Dice of any thresholds
on any images is then a sum over profiles, exact on the grid.

    grid        the values tried for each field of a `Triplet`
    position    a triplet by its index on each axis of the grid
    profile     what the search needs to know about one image
    scores      the mean Dice of every triplet of the grid on the same images
    best        the triplet with the highest of them: lucky, so it scores less elsewhere
    chosen      the triplet in the middle of the good ones, which is used; or ALL_EMPTY
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from pneumothorax import metrics
from pneumothorax.masks import postprocess
from pneumothorax.masks.postprocess import ALL_EMPTY, Triplet

# The high ends are for overconfident networks, which need them to keep false alarms down.
TOPS = (*(round(0.30 + 0.05 * step, 2) for step in range(14)), 0.97, 0.98, 0.99)
BOTTOMS = (*(round(0.20 + 0.05 * step, 2) for step in range(11)), 0.80, 0.90)
MIN_AREAS = tuple(
    int(area)
    for area in "0 100 250 500 750 1000 1500 2000 3000 4000 6000 8000 12000 16000 24000".split()
)
MIN_COMPONENTS = (0, 100, 250, 500, 1000)
MIN_PROBABILITIES = tuple(round(0.02 * step, 2) for step in range(50))
SOFTNESS = 0.25  # see GridScores.choose; compared with other rules in benchmarks/RESULTS.md
MIN_GAIN = 0.5
SMALLEST = 1e-9  # gains and errors below are 0
DECIMALS = 12  # scores that differ beyond these are equal: the sums' order rounds differently


class Position(NamedTuple):
    """The index of a triplet's value on each axis of a grid."""

    top: int
    min_area: int
    bottom: int
    min_component: int
    fill_holes: int
    min_probability: int


@dataclass(frozen=True)
class Grid:
    """The values tried for each field of a Triplet, ascending.

    Of triplets with equal scores the first wins. Areas are in pixels of 1024 x 1024.
    """

    tops: tuple[float, ...] = TOPS
    min_areas: tuple[float, ...] = MIN_AREAS
    bottoms: tuple[float, ...] = BOTTOMS
    min_components: tuple[float, ...] = (0,)
    fill_holes: tuple[bool, ...] = (False,)
    min_probabilities: tuple[float, ...] = (0.0,)

    @property
    def axes(self) -> tuple[tuple[float, ...], ...]:
        """The values of each axis, in the order of Position's fields."""
        return (
            self.tops,
            self.min_areas,
            self.bottoms,
            self.min_components,
            self.fill_holes,
            self.min_probabilities,
        )

    def triplet(self, at: Position) -> Triplet:
        return Triplet(
            top=self.tops[at.top],
            min_area=float(self.min_areas[at.min_area]),
            bottom=self.bottoms[at.bottom],
            min_component=float(self.min_components[at.min_component]),
            fill_holes=bool(self.fill_holes[at.fill_holes]),
            min_probability=float(self.min_probabilities[at.min_probability]),
        )

    def position(self, triplet: Triplet) -> Position:
        return Position(
            top=self.tops.index(triplet.top),
            min_area=self.min_areas.index(triplet.min_area),
            bottom=self.bottoms.index(triplet.bottom),
            min_component=self.min_components.index(triplet.min_component),
            fill_holes=self.fill_holes.index(triplet.fill_holes),
            min_probability=self.min_probabilities.index(triplet.min_probability),
        )

    def last_values(self, triplet: Triplet) -> list[str]:
        """Which thresholds are the last of several tried: larger ones might do better."""
        tried = {
            "top threshold": (triplet.top, self.tops),
            "minimum area": (triplet.min_area, self.min_areas),
            "bottom threshold": (triplet.bottom, self.bottoms),
        }
        return [
            name for name, (value, axis) in tried.items() if len(axis) > 1 and value == axis[-1]
        ]


def by_probability(grid: Grid) -> Grid:
    """The same grid, but the image-level probability decides which images are empty.

    Two thresholds, on the image and on its pixels, instead of three on pixels: no image is
    emptied with a minimum area of 0, and the highest top threshold allows every bottom one.
    """
    return replace(
        grid,
        tops=grid.tops[-1:],
        min_areas=(0.0,),
        min_probabilities=MIN_PROBABILITIES,
    )


@dataclass(frozen=True)
class Profile:
    """What the search needs to know about one image.

    Args:
        top_areas: (tops,) pixels of 1024 x 1024 above each top threshold.
        dice: (bottoms, min_components, fill_holes) Dice of the mask above each bottom
            threshold, cleaned in each way.
        empty_dice: Dice of an empty mask: 1 for a negative image, else 0.
    """

    top_areas: np.ndarray
    dice: np.ndarray
    empty_dice: float


def profile(stored: np.ndarray, truth: np.ndarray, grid: Grid) -> Profile:
    """The profile of one image, at the resolution of its truth.

    Args:
        stored: (h, w) uint8 probability map.
        truth: (H, W) of 0 and 1.
    """
    true_px = int(np.count_nonzero(truth))
    empty_dice = float(true_px == 0)
    shape = len(grid.bottoms), len(grid.min_components), len(grid.fill_holes)
    window = postprocess.upsample(stored, truth.shape, above=postprocess.level(min(grid.bottoms)))
    if window is None:
        return Profile(np.zeros(len(grid.tops)), np.full(shape, empty_dice), empty_dice)

    histogram = np.bincount(window.values.ravel(), minlength=256)
    px_above = window.values.size - np.cumsum(histogram)  # by value
    px_per_reference_px = postprocess.scaled(1.0, truth.shape)
    top_areas = px_above[[postprocess.level(top) for top in grid.tops]] / px_per_reference_px

    min_px = px_per_reference_px * np.array(grid.min_components)
    truth_in_window = truth[window.slices]
    predicted_px, overlap_px = np.zeros(shape, dtype=int), np.zeros(shape, dtype=int)
    for bottom_index, bottom in enumerate(grid.bottoms):
        level = postprocess.level(bottom)
        box = postprocess.bounding_box(window.values, above=level)
        if box is None:
            continue
        inside = (window.values[box] > level).view(np.uint8)
        for fill_index, fill in enumerate(grid.fill_holes):
            mask = postprocess.fill_holes(inside) if fill else inside
            pixels, overlap = _pixels_by_min_component(mask, truth_in_window[box], min_px)
            predicted_px[bottom_index, :, fill_index] = pixels
            overlap_px[bottom_index, :, fill_index] = overlap
    dice = metrics.image_dice(np.full(shape, true_px), predicted_px, overlap_px)
    return Profile(top_areas, dice, empty_dice)


def _pixels_by_min_component(
    mask: np.ndarray, truth: np.ndarray, min_px: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(h, w) mask and truth of 0 and 1, (C,) component sizes -> (C,) pixels of the mask without
    components smaller than each size, and (C,) those of them inside the truth.
    """
    if (min_px <= 1).all():
        overlap = int(np.count_nonzero(mask & truth)) if truth.any() else 0
        return np.full(len(min_px), np.count_nonzero(mask)), np.full(len(min_px), overlap)
    component, areas = postprocess.connected_components(mask)
    overlaps = np.bincount(component[truth != 0], minlength=len(areas))
    overlaps[0] = 0  # the background
    kept = areas >= min_px[:, None]
    return kept @ areas, kept @ overlaps


class Best(NamedTuple):
    """A triplet and its SIIM Dice on some images."""

    triplet: Triplet
    siim_dice: float


class Gain(NamedTuple):
    """How much masks gain over empty ones in SIIM Dice.

    Args:
        error: the standard error of `mean`.
        error_within: the same, if as many images were positive in every sample: how many
            there are is noise that all thresholds share.
    """

    mean: float
    error: float
    error_within: float


class Search:
    """Exhaustive search over a grid for any subset of the images (N).

    Attributes:
        top_areas: (N, tops), dice: (N, bottoms, min_components, fill_holes), empty_dice: (N,);
        see Profile.
    """

    def __init__(self, profiles: Sequence[Profile], grid: Grid) -> None:
        self.grid = grid
        self.top_areas = np.stack([one.top_areas for one in profiles])
        self.dice = np.stack([one.dice for one in profiles])
        self.empty_dice = np.array([one.empty_dice for one in profiles])

    def scores(self, images: np.ndarray, p_positive: np.ndarray | None = None) -> "GridScores":
        """SIIM Dice of every triplet.

        Args:
            images: (N,) bool, which images count.
            p_positive: (N,) image-level probabilities in [0, 1]; None: all pass.
        """
        grid, n_images = self.grid, int(images.sum())
        empty_dice = self.empty_dice[images]
        gains = self.dice[images] - empty_dice[:, None, None, None]  # of a mask over an empty one
        p = np.ones(n_images) if p_positive is None else p_positive[images]
        passed_probabilities = np.searchsorted(np.array(grid.min_probabilities), p, side="right")
        sums = np.empty([len(axis) for axis in grid.axes])
        for index, top in enumerate(grid.tops):
            top_areas = self.top_areas[images, index]
            passed_areas = np.searchsorted(np.array(grid.min_areas), top_areas, side="right")
            sums[index] = self._gains_of_passing(gains, passed_areas, passed_probabilities)
            sums[index][:, np.array(grid.bottoms) > top] = -np.inf
        return GridScores(self, images, p_positive, (sums + empty_dice.sum()) / n_images)

    def _gains_of_passing(
        self, gains: np.ndarray, passed_areas: np.ndarray, passed_probabilities: np.ndarray
    ) -> np.ndarray:
        """Sums of `gains` over the images that pass each minimum area and each probability.

        Args:
            gains: (n, bottoms, min_components, fill_holes).
            passed_areas, passed_probabilities: (n,) how many of the grid's ascending values
                the image passes: always the first ones.

        Returns an array with the axes of Position but the first.
        """
        from scipy.sparse import csr_array

        n_images = len(gains)
        n_areas, n_probabilities = len(self.grid.min_areas), len(self.grid.min_probabilities)
        cell = passed_areas * (n_probabilities + 1) + passed_probabilities
        by_cell = csr_array(
            (np.ones(n_images), (cell, np.arange(n_images))),
            shape=((n_areas + 1) * (n_probabilities + 1), n_images),
        )
        sums = (by_cell @ gains.reshape(n_images, -1)).reshape(
            n_areas + 1, n_probabilities + 1, *gains.shape[1:]
        )
        # An image passes the k-th value if it passes k or more: cumulative sums from the end.
        passing = sums[::-1, ::-1].cumsum(0).cumsum(1)[::-1, ::-1][1:, 1:]
        return np.moveaxis(passing, 1, -1)

    def best(self, images: np.ndarray, p_positive: np.ndarray | None = None) -> Best:
        """The triplet with the highest SIIM Dice over `images` (see `scores`)."""
        return self.scores(images, p_positive).best()

    def image_dice(self, triplet: Triplet, p_positive: np.ndarray | None = None) -> np.ndarray:
        """(N,) Dice of each image with a triplet of the grid, or with ALL_EMPTY.

        `p_positive` is as in `scores`.
        """
        if triplet.is_all_empty:
            return self.empty_dice
        at = self.grid.position(triplet)
        has_mask = self.top_areas[:, at.top] >= triplet.min_area
        if p_positive is not None:
            has_mask &= p_positive >= triplet.min_probability
        dice = self.dice[:, at.bottom, at.min_component, at.fill_holes]
        return np.where(has_mask, dice, self.empty_dice)


@dataclass(frozen=True)
class GridScores:
    """SIIM Dice of every triplet of a grid on the same images.

    Args:
        search: over these and other images.
        images: (N,) bool, the images that count.
        p_positive: (N,) image-level probabilities in [0, 1]; None: all pass.
        values: one axis per field of Position; -inf where bottom is above top.
    """

    search: Search
    images: np.ndarray
    p_positive: np.ndarray | None
    values: np.ndarray

    def best(self) -> Best:
        """The triplet with the highest score; ties go to the first.

        On other images it scores less, since noise helped to find it: see `choose`.
        """
        grid = self.search.grid
        at = _highest(self.values)
        return Best(grid.triplet(at), float(self.values[at]))

    def choose(self, within: Grid | None = None) -> Best:
        """The triplet to use for other images; `within` limits the values of the grid.

        The best triplet is the luckiest of many good ones. The chosen one is in their
        middle: the mean position, where a triplet that scores less than the best by
        SOFTNESS standard errors (within positive and negative images) has a weight of
        1 / e. Of the image thresholds, only the lowest at which a mask `is_worthwhile`
        counts. If the gain over empty masks is not above MIN_GAIN standard errors, every
        image stays empty.
        """
        grid = within or self.search.grid
        part = np.ix_(
            *(
                [tried.index(value) for value in values]
                for tried, values in zip(self.search.grid.axes, grid.axes, strict=True)
            )
        )
        allowed = np.broadcast_to(self._is_lowest_worthwhile(grid), self.values[part].shape)
        values = np.where(allowed, self.values[part], -np.inf)
        highest = _highest(values)
        if values[highest] == -np.inf:
            return self._all_empty()
        noise = max(self._gain(grid.triplet(highest)).error_within, SMALLEST)
        weights = np.exp((values - values[highest]) / (SOFTNESS * noise))
        at = _middle(weights / weights.sum(), grid)
        if not allowed[at]:  # the image threshold belongs to the masks, which have just moved
            if not allowed[at[:-1]].any():
                return self._all_empty()
            at = at._replace(min_probability=int(allowed[at[:-1]].argmax()))
        triplet = grid.triplet(at)
        gain = self._gain(triplet)
        if gain.mean <= max(MIN_GAIN * gain.error, SMALLEST):
            return self._all_empty()
        return Best(triplet, float(self.values[self.search.grid.position(triplet)]))

    def surface(self, triplet: Triplet) -> np.ndarray:
        """(tops, min_areas, bottoms, min_probabilities) scores, cleaned as `triplet` does.

        Of ALL_EMPTY, which does not clean, with the first values of cleaning.
        """
        if triplet.is_all_empty:
            return self.values[:, :, :, 0, 0, :]
        at = self.search.grid.position(triplet)
        return self.values[:, :, :, at.min_component, at.fill_holes, :]

    def _all_empty(self) -> Best:
        return Best(ALL_EMPTY, float(self.search.empty_dice[self.images].mean()))

    def _is_lowest_worthwhile(self, grid: Grid) -> np.ndarray:
        """Whether an image threshold is the lowest at which masks are worthwhile.

        Broadcasts to the grid's (bottoms, min_components, fill_holes, min_probabilities); True
        if there is no image threshold to choose.
        """
        tried = np.array(grid.min_probabilities)
        if self.p_positive is None or len(tried) == 1:
            return np.array(True)
        positive = self.images & (self.search.empty_dice == 0)
        cleaning = [
            [whole.index(value) for value in values]
            for whole, values in list(zip(self.search.grid.axes, grid.axes, strict=True))[2:5]
        ]
        dice = self.search.dice[positive][:, *np.ix_(*cleaning)]
        worth = is_worthwhile(tried, self.p_positive[positive], dice)
        return np.moveaxis(worth & (worth.cumsum(0) == 1), 0, -1)

    def _gain(self, triplet: Triplet) -> Gain:
        empty_dice = self.search.empty_dice[self.images]
        gains = self.search.image_dice(triplet, self.p_positive)[self.images] - empty_dice
        within = gains.copy()
        for group in (empty_dice == 0, empty_dice == 1):
            within[group] -= gains[group].mean() if group.any() else 0
        error, error_within = (float(each.std() / np.sqrt(len(gains))) for each in (gains, within))
        return Gain(float(gains.mean()), error, error_within)


def is_worthwhile(
    probabilities: np.ndarray, p_positive: np.ndarray, dice: np.ndarray
) -> np.ndarray:
    """(P, ...) bool: whether masks are worth more than empty ones at these probabilities.

    With SIIM Dice a mask gains its Dice on a positive image and costs 1 on a negative one. On an
    image of probability p it gains p * Dice - (1 - p) on average, which is more than nothing if
    p * (1 + Dice) is above 1. (A mask without a pixel costs nothing; it counts with a Dice of 0,
    which makes the threshold slightly too high.) The lowest such p follows from two smooth
    curves, the calibration and the Dice expected at p. The threshold that scores highest follows
    from the few images near it, and scores less on others (benchmarks/RESULTS.md).

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
    slope = np.zeros(dice.shape[1:])
    if np.ptp(p_positive) > SMALLEST:
        slope = np.maximum(np.tensordot(from_mean, dice, 1) / (from_mean @ from_mean), 0)
    return np.clip(dice.mean(0) + slope * (p - p_positive.mean()), 0, 1)


def _highest(values: np.ndarray) -> Position:
    """Of equal values the first."""
    index = np.unravel_index(int(values.round(DECIMALS).argmax()), values.shape)
    return Position(*(int(place) for place in index))


def _middle(weights: np.ndarray, grid: Grid) -> Position:
    """The mean position, rounded, with the bottom threshold not above the top one.

    Args:
        weights: one axis per field of Position, with a sum of 1.
    """
    means = []
    for axis, length in enumerate(weights.shape):
        others = tuple(other for other in range(weights.ndim) if other != axis)
        means.append(float(weights.sum(axis=others) @ np.arange(length)))
    at = Position(*(int(place) for place in np.rint(np.round(means, DECIMALS))))
    allowed = int(np.searchsorted(grid.bottoms, grid.tops[at.top], side="right")) - 1
    return at._replace(bottom=min(at.bottom, allowed))
