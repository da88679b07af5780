"""Nested thresholds: no image is scored with thresholds that it helped to choose.

held-out fold   the fold that a fit does not see. The fit on all other folds makes and
                scores the masks of this fold. None: the final fit, which sees all folds
                and makes the masks of the test images.
nested score    each fold scored with the thresholds of the fit that held it out
naive score     all images scored with the final thresholds: too high, since they were
                fitted on the same images; the difference is the optimism
step            part of the post-processing, from one threshold alone to all of it
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from pneumothorax.masks.postprocess import Triplet
from pneumothorax.masks.thresholds import Grid, GridScores, Search

HeldOut = int | None
# The axes of the grid that each step adds, after one threshold alone.
STEPS = {
    "image threshold": ("min_probabilities",),
    "triplet": ("tops", "min_areas"),
    "small components removed": ("min_components",),
    "holes filled": ("fill_holes",),
}


class Basis(NamedTuple):
    """What the thresholds of one fit rest on.

    Args:
        search: over all images, their probability maps blended as this fit does.
        p_positive: (N,) image-level probabilities of all images, calibrated by this fit.
    """

    search: Search
    p_positive: np.ndarray

    def scores(self, images: np.ndarray) -> GridScores:
        return self.search.scores(images, self.p_positive)

    def image_dice(self, triplet: Triplet) -> np.ndarray:
        return self.search.image_dice(triplet, self.p_positive)


class Step(NamedTuple):
    """SIIM Dice with part of the post-processing."""

    nested: float
    naive: float


@dataclass(frozen=True)
class NestedThresholds:
    """The thresholds of every fit, and how they score.

    Args:
        by_fold: thresholds that score fold k, from all other folds.
        final: thresholds for the test images, from all folds.
        naive: SIIM Dice of all images with `final`.
        naive_by_fold: the same for the images of each fold.
        surface: (tops, min_areas, bottoms, min_probabilities) naive SIIM Dice, cleaned as
            `final` does; -inf where bottom is above top.
        steps: by name, from one threshold alone to the whole grid.
    """

    by_fold: dict[int, Triplet]
    final: Triplet
    naive: float
    naive_by_fold: dict[int, float]
    surface: np.ndarray
    steps: dict[str, Step]


def fit(bases: Mapping[HeldOut, Basis], fold: np.ndarray) -> NestedThresholds:
    """Thresholds for each held-out fold and for the test images.

    Args:
        bases: by held-out fold, None for the final fit; all searches on the same grid.
        fold: (N,) int, at least two different ones.
    """
    folds = sorted(set(fold.tolist()))
    if len(folds) < 2:
        raise ValueError("nested thresholds need at least two folds")
    nested_scores = {held_out: bases[held_out].scores(fold != held_out) for held_out in folds}
    final_scores = bases[None].scores(np.ones(len(fold), dtype=bool))
    grid = bases[None].search.grid

    def thresholds_of_folds(within: Grid) -> dict[int, Triplet]:
        return {
            held_out: scores.choose(within).triplet for held_out, scores in nested_scores.items()
        }

    steps = {}
    for name, within in grids_of_steps(grid).items():
        dice = np.zeros(len(fold))
        for held_out, triplet in thresholds_of_folds(within).items():
            scored = fold == held_out
            dice[scored] = bases[held_out].image_dice(triplet)[scored]
        steps[name] = Step(float(dice.mean()), final_scores.choose(within).siim_dice)
    final, naive = final_scores.choose()
    naive_dice = bases[None].image_dice(final)
    return NestedThresholds(
        by_fold=thresholds_of_folds(grid),
        final=final,
        naive=naive,
        naive_by_fold={number: float(naive_dice[fold == number].mean()) for number in folds},
        surface=final_scores.surface(final),
        steps=steps,
    )


def grids_of_steps(grid: Grid) -> dict[str, Grid]:
    """{step: part of the grid}: each holds the one before; steps that add nothing are left out."""
    # No image is emptied with a minimum area of 0; the highest top threshold allows every bottom.
    part = Grid(
        tops=grid.tops[-1:],
        min_areas=grid.min_areas[:1],
        bottoms=grid.bottoms,
        min_components=grid.min_components[:1],
        fill_holes=grid.fill_holes[:1],
        min_probabilities=grid.min_probabilities[:1],
    )
    steps = {"one threshold": part}
    for name, axes in STEPS.items():
        added = replace(part, **{axis: getattr(grid, axis) for axis in axes})
        if added != part:
            steps[name] = part = added
    return steps
