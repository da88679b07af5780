"""Fit everything that turns probability maps into masks, and score it on images it did not see.

A fit has three parts, each depending on those before: the weights of the runs, the calibration
of the image-level probability, and the thresholds. It is repeated for every held-out fold and
once for the test images (see nested.py).

    score        a run's score of an image as a whole, in [0, 1], before calibration
    candidate    weights that a fit may choose
    blend        the weights and the calibration of one fit
    rule         how one image's maps become its mask
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pneumothorax import metrics, rle
from pneumothorax.masks import blending, calibration, nested, postprocess, thresholds
from pneumothorax.masks.blending import Moments, Weights
from pneumothorax.masks.calibration import Calibration
from pneumothorax.masks.nested import HeldOut, NestedThresholds
from pneumothorax.masks.postprocess import Triplet
from pneumothorax.masks.predicted import Image, Predicted
from pneumothorax.masks.thresholds import Grid, Profile, Search
from pneumothorax.pipeline.engine import Engine, in_order

IMAGES_PER_TASK = 32


class Rule(NamedTuple):
    """How one image's maps become its mask: blended with `weights`, then post-processed.

    `p_positive` is the image-level probability, which `triplet` may ask for.
    """

    weights: Weights
    triplet: Triplet
    p_positive: float

    def mask(self, image: Image, maps: Sequence[np.ndarray]) -> np.ndarray:
        """(h, w) uint8 probability maps, one per run -> (H, W) uint8 mask of 0 and 1."""
        blended = blending.blend(maps, self.weights)
        return postprocess.mask(blended, self.triplet, image.shape, self.p_positive)


@dataclass(frozen=True)
class Blend:
    """How one fit combines the runs' scores of an image into its image-level probability."""

    weights: Weights
    calibration: Calibration

    def p_positive(self, scores: np.ndarray) -> np.ndarray:
        """(N, runs) scores -> (N,) calibrated probabilities in [0, 1]."""
        return self.calibration(scores @ np.array(self.weights))


@dataclass(frozen=True)
class Fits:
    """All fits of a single run or of several runs together: one per held-out fold, one final.

    Args:
        blends: by held-out fold; None for the test images.
        thresholds: likewise, with their scores.
    """

    blends: dict[HeldOut, Blend]
    thresholds: NestedThresholds

    def rules(self, scores: np.ndarray) -> list[Rule]:
        """For test images with (N, runs) scores: the final fit."""
        blend = self.blends[None]
        p_positive = blend.p_positive(scores).tolist()
        return [Rule(blend.weights, self.thresholds.final, p) for p in p_positive]

    def out_of_fold_rules(self, predicted: Predicted) -> list[Rule]:
        """For training images: the fit that held out the image's fold."""
        p_positive = {
            fold: blend.p_positive(predicted.scores) for fold, blend in self.blends.items()
        }
        return [
            Rule(
                self.blends[fold].weights, self.thresholds.by_fold[fold], float(p_positive[fold][n])
            )
            for n, fold in enumerate(predicted.fold.tolist())
        ]

    def out_of_fold_scores(self, predicted: Predicted) -> np.ndarray:
        """(N,) scores of training images, blended by the fit that held out the image's fold."""
        weights = [self.blends[fold].weights for fold in predicted.fold.tolist()]
        return (predicted.scores * weights).sum(axis=1)


@dataclass(frozen=True)
class Evaluation:
    """A single run or several runs together: what was fitted, and how it scores.

    Args:
        fits: of every held-out fold, and the final one.
        images: artifacts.Submission.out_of_fold rows; `rle` only for the blend of all runs.
        uncalibrated: (N,) the images' scores in [0, 1] before calibration.
    """

    fits: Fits
    images: pd.DataFrame
    uncalibrated: np.ndarray

    @property
    def thresholds(self) -> NestedThresholds:
        return self.fits.thresholds


def evaluate(
    predicted: Predicted, grid: Grid, *, engine: Engine, weights: Weights | None
) -> tuple[Evaluation, list[Evaluation]]:
    """Fit and score the blend of all runs and, if there are several, each run alone.

    Args:
        predicted: out-of-fold images of at least two folds.
        weights: of the runs; None to fit them: of `blending.candidates`, each fit takes
            those that score best on the images it sees.
    """
    n_runs = predicted.scores.shape[1]
    run_alone = [blending.alone(run, n_runs) for run in range(n_runs)] if n_runs > 1 else []
    if weights is None:
        candidates = _candidates(predicted, engine)
    else:
        candidates = {held_out: [weights] for held_out in predicted.held_out_folds}
    tried = [one for candidates_of_fit in candidates.values() for one in candidates_of_fit]
    searches = search(predicted.images, [*tried, *run_alone], grid, engine)

    chosen = {
        held_out: _best(predicted, held_out, candidates[held_out], searches)
        for held_out in candidates
    }
    all_fits = [_fit(predicted, chosen, searches)]
    all_fits += [_fit(predicted, dict.fromkeys(candidates, one), searches) for one in run_alone]
    blend, *single_runs = _score(predicted, all_fits, engine)
    return blend, single_runs


def search(
    images: Sequence[Image], tried: Iterable[Weights], grid: Grid, engine: Engine
) -> dict[Weights, Search]:
    """A search over all images for each of the weights; each map is read and blended once."""
    unique = list(dict.fromkeys(tried))
    calls = [(image, grid, unique) for image in images]
    found = in_order(profiles, calls, engine, per_task=IMAGES_PER_TASK, title="thresholds")
    return {
        weights: Search(profiles_of_weights, grid)
        for weights, profiles_of_weights in zip(unique, zip(*found, strict=True), strict=True)
    }


def _candidates(predicted: Predicted, engine: Engine) -> dict[HeldOut, list[Weights]]:
    """The candidates of each fit."""
    calls = [(image,) for image in predicted.images]
    found = in_order(moments, calls, engine, per_task=IMAGES_PER_TASK, title="weights")
    return {
        held_out: blending.candidates(
            [found[position] for position in np.flatnonzero(predicted.seen_without(held_out))]
        )
        for held_out in predicted.held_out_folds
    }


def _best(
    predicted: Predicted,
    held_out: HeldOut,
    candidates: Sequence[Weights],
    searches: dict[Weights, Search],
) -> Weights:
    """The candidate that scores best with its own chosen thresholds; ties go to the first."""
    if len(candidates) == 1:
        return candidates[0]
    seen = predicted.seen_without(held_out)

    def score(weights: Weights) -> float:
        p_positive = _calibrated(predicted, held_out, weights).p_positive(predicted.scores)
        chosen = searches[weights].scores(seen, p_positive).choose()
        return round(chosen.siim_dice, thresholds.DECIMALS)

    return max(candidates, key=score)


def _calibrated(predicted: Predicted, held_out: HeldOut, weights: Weights) -> Blend:
    seen = predicted.seen_without(held_out)
    score = predicted.scores @ np.array(weights)
    return Blend(weights, calibration.fit(score[seen], predicted.positive[seen]))


def _fit(
    predicted: Predicted, weights: dict[HeldOut, Weights], searches: dict[Weights, Search]
) -> Fits:
    """Calibrations and thresholds that rest on the weights of each fit."""
    blends = {held_out: _calibrated(predicted, held_out, one) for held_out, one in weights.items()}
    bases = {
        held_out: nested.Basis(searches[blend.weights], blend.p_positive(predicted.scores))
        for held_out, blend in blends.items()
    }
    return Fits(blends, nested.fit(bases, predicted.fold))


def _score(predicted: Predicted, all_fits: list[Fits], engine: Engine) -> list[Evaluation]:
    """Make every image's masks and compare them with its truth."""
    rules = zip(*(fits.out_of_fold_rules(predicted) for fits in all_fits), strict=True)
    calls = list(zip(predicted.images, rules, strict=True))
    found = in_order(compare, calls, engine, per_task=IMAGES_PER_TASK, title="scores")
    return [
        Evaluation(
            fits,
            images=pd.DataFrame(rows).assign(fold=predicted.fold),
            uncalibrated=fits.out_of_fold_scores(predicted),
        )
        for fits, rows in zip(all_fits, zip(*found, strict=True), strict=True)
    ]


def mask_rows(tested: Predicted, fits: Fits, engine: Engine) -> dict[str, str]:
    """{test image id: its mask as text}, made with the final fit."""
    calls = list(zip(tested.images, fits.rules(tested.scores), strict=True))
    texts = in_order(mask_row, calls, engine, per_task=IMAGES_PER_TASK, title="submission")
    return {image.image_id: text for image, text in zip(tested.images, texts, strict=True)}


# The work on one image; workers call these.


def moments(image: Image) -> Moments:
    return blending.moments(image.maps(), image.truth())


def profiles(image: Image, grid: Grid, tried: Sequence[Weights]) -> list[Profile]:
    """The image's profile for each of the weights."""
    maps, truth = image.maps(), image.truth()
    return [thresholds.profile(blending.blend(maps, one), truth, grid) for one in tried]


def compare(image: Image, rules: Sequence[Rule]) -> list[dict[str, Any]]:
    """The mask of each rule against the truth: artifacts.Submission.out_of_fold cells.

    Only the first rule's mask is also given as text.
    """
    maps, truth = image.maps(), image.truth()
    rows: list[dict[str, Any]] = []
    for rule in rules:
        mask = rule.mask(image, maps)
        true_px, predicted_px, overlap_px = metrics.counts(truth, mask)
        (dice,) = metrics.image_dice(*np.array([[true_px], [predicted_px], [overlap_px]])).tolist()
        rows.append(
            {
                "image_id": image.image_id,
                "p_positive": rule.p_positive,
                "true_px": true_px,
                "predicted_px": predicted_px,
                "overlap_px": overlap_px,
                "dice": dice,
            }
        )
        if len(rows) == 1:
            rows[0]["rle"] = rle.encode_checked(mask, image.image_id)
    return rows


def mask_row(image: Image, rule: Rule) -> str:
    """The image's mask as the text of its submission row."""
    return rle.encode_checked(rule.mask(image, image.maps()), image.image_id)
