"""Out-of-fold maps and labels -> everything that turns maps into masks, fitted nested, and the tables of scores.

What a fold is scored with was fitted on the other folds: the weights of a blend, the calibration of the image's own
probability, and the thresholds, each resting on those before it. What the test images get is fitted on all folds.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pneumothorax import metrics, rle
from pneumothorax.masks import blending, calibration, postprocess, thresholds
from pneumothorax.masks.blending import Moments, Weights
from pneumothorax.masks.calibration import Calibration
from pneumothorax.masks.postprocess import Triplet
from pneumothorax.masks.predicted import Image, Predicted
from pneumothorax.masks.thresholds import Exclusion, Fitted, Grid, Profile, Search
from pneumothorax.pipeline import artifacts
from pneumothorax.pipeline.engine import Engine, in_order
from pneumothorax.scores import curves

IMAGES_PER_TASK = 32


@dataclass(frozen=True)
class Rule:
    """How an image's maps become its mask: blended, thresholded by `triplet`; `p_positive` is the image's own."""

    weights: Weights
    triplet: Triplet
    p_positive: float


@dataclass(frozen=True)
class Evaluation:
    """A run or a blend: what was fitted, and how it scores.

    Args:
        weights, calibrations: by the fold that they leave out (None: for the test images).
        images: artifacts.Submission.out_of_fold rows, in the order of the images; `rle` of the blend only.
        score: (N,) each image's own score in [0, 1] before calibration.
    """

    weights: dict[Exclusion, Weights]
    calibrations: dict[Exclusion, Calibration]
    fitted: Fitted
    images: pd.DataFrame
    score: np.ndarray

    def rules(self, scores: np.ndarray) -> list[Rule]:
        """For test images with (N, R) scores."""
        p_positive = self.calibrations[None](scores @ np.array(self.weights[None]))
        return [Rule(self.weights[None], self.fitted.final, p) for p in p_positive.tolist()]


def profiles(image: Image, grid: Grid, mixtures: Sequence[Weights]) -> list[Profile]:
    """The image's profile under each way to blend its maps."""
    maps, truth = image.maps(), image.truth()
    return [thresholds.profile(blending.blend(maps, weights), truth, grid) for weights in mixtures]


def moments(image: Image) -> Moments:
    return blending.moments(image.maps(), image.truth())


def mask_row(image: Image, rule: Rule) -> str:
    """The image's predicted mask as run lengths, decoded again here: RuntimeError when they are not the mask."""
    return _row(image, _mask(image, image.maps(), rule))


def compare(image: Image, rules: Sequence[Rule]) -> list[dict[str, Any]]:
    """For each rule the pixel counts of the image's mask against the truth; of the first its run lengths too."""
    maps, truth = image.maps(), image.truth()
    rows: list[dict[str, Any]] = []
    for rule in rules:
        predicted = _mask(image, maps, rule)
        true_px, predicted_px, overlap_px = metrics.counts(truth, predicted)
        dice = float(
            metrics.image_dice(
                np.array([true_px]), np.array([predicted_px]), np.array([overlap_px])
            )[0]
        )
        pixels = {"true_px": true_px, "predicted_px": predicted_px, "overlap_px": overlap_px}
        rows.append(
            {"image_id": image.image_id, "p_positive": rule.p_positive, **pixels, "dice": dice}
        )
        if len(rows) == 1:
            rows[0]["rle"] = _row(image, predicted)
    return rows


def _mask(image: Image, maps: Sequence[np.ndarray], rule: Rule) -> np.ndarray:
    return postprocess.mask(
        blending.blend(maps, rule.weights), rule.triplet, image.shape, rule.p_positive
    )


def _row(image: Image, predicted: np.ndarray) -> str:
    text = rle.encode(predicted)
    if not np.array_equal(rle.decode(text, image.shape), predicted):
        raise RuntimeError(f"{image.image_id}: the run lengths do not decode to the mask")
    return text


def evaluate(
    predicted: Predicted, grid: Grid, *, engine: Engine, given: Weights | None
) -> tuple[Evaluation, list[Evaluation]]:
    """Fit and score the blend, and beside it, where there are several, each of its runs alone.

    Args:
        predicted: out-of-fold images of at least two folds.
        given: the blend's weights; None to fit them, nested: of blending.candidates those that score best.
    """
    images, fold = predicted.images, predicted.fold
    n_runs = predicted.scores.shape[1]
    exclusions: list[Exclusion] = [None, *sorted(set(fold.tolist()))]
    singles_of = [blending.alone(run, n_runs) for run in range(n_runs)] if n_runs > 1 else []
    if given is None:
        tried = _candidates(images, fold, exclusions, engine)
    else:
        tried = {left_out: [given] for left_out in exclusions}
    every = list(dict.fromkeys([weights for own in tried.values() for weights in own] + singles_of))
    calls = [(image, grid, every) for image in images]
    found = in_order(profiles, calls, engine, per_task=IMAGES_PER_TASK, title="thresholds")
    searches = {
        weights: Search([own[number] for own in found], grid)
        for number, weights in enumerate(every)
    }
    del found
    chosen = {
        left_out: _best(predicted, left_out, own, searches) for left_out, own in tried.items()
    }
    mixtures = [chosen, *(dict.fromkeys(exclusions, weights) for weights in singles_of)]
    fits = [_fit(predicted, mixture, searches, grid) for mixture in mixtures]

    rules = [
        [
            Rule(mixture[number], fitted.by_fold[number], float(p_positive[number][position]))
            for mixture, (_, p_positive, fitted) in zip(mixtures, fits, strict=True)
        ]
        for position, number in enumerate(fold.tolist())
    ]
    compared = in_order(
        compare,
        list(zip(images, rules, strict=True)),
        engine,
        per_task=IMAGES_PER_TASK,
        title="scores",
    )
    blend, *singles = [
        Evaluation(
            mixture,
            calibrations,
            fitted,
            images=pd.DataFrame(rows).assign(fold=fold),
            score=(predicted.scores * [mixture[number] for number in fold.tolist()]).sum(axis=1),
        )
        for mixture, (calibrations, _, fitted), rows in zip(
            mixtures, fits, zip(*compared, strict=True), strict=True
        )
    ]
    return blend, singles


def _candidates(
    images: list[Image], fold: np.ndarray, exclusions: list[Exclusion], engine: Engine
) -> dict[Exclusion, list[Weights]]:
    """Weights to try, from the images without each fold, and from all."""
    found = in_order(
        moments, [(image,) for image in images], engine, per_task=IMAGES_PER_TASK, title="weights"
    )
    return {
        left_out: blending.candidates(
            [one for one, number in zip(found, fold.tolist(), strict=True) if number != left_out]
        )
        for left_out in exclusions
    }


def _best(
    predicted: Predicted,
    left_out: Exclusion,
    candidates: Sequence[Weights],
    searches: dict[Weights, Search],
) -> Weights:
    """Those with the highest SIIM Dice on the images that are not left out, at the thresholds that suit them there."""
    if len(candidates) == 1:
        return candidates[0]
    used = _used(predicted, left_out)

    def score(weights: Weights) -> float:
        p_positive = _calibrated(predicted, left_out, weights)[1]
        return round(searches[weights].best(used, p_positive)[1], thresholds.DECIMALS)

    return max(candidates, key=score)  # of equal ones the first


def _used(predicted: Predicted, left_out: Exclusion) -> np.ndarray:
    return np.array([number != left_out for number in predicted.fold.tolist()])


def _calibrated(
    predicted: Predicted, left_out: Exclusion, weights: Weights
) -> tuple[Calibration, np.ndarray]:
    """The calibration from the images that are not left out, and (N,) probabilities of all images by it."""
    positive = np.array([bool(image.label_rows) for image in predicted.images])
    score, used = predicted.scores @ np.array(weights), _used(predicted, left_out)
    curve = calibration.fit(score[used], positive[used])
    return curve, curve(score)


def _fit(
    predicted: Predicted,
    mixture: dict[Exclusion, Weights],
    searches: dict[Weights, Search],
    grid: Grid,
) -> tuple[dict[Exclusion, Calibration], dict[Exclusion, np.ndarray], Fitted]:
    """Calibrations, (N,) probabilities of all images under each, and thresholds that rest on both."""
    fits, p_positive = {}, {}
    for left_out, weights in mixture.items():
        fits[left_out], p_positive[left_out] = _calibrated(predicted, left_out, weights)
    own = {left_out: searches[weights] for left_out, weights in mixture.items()}
    return fits, p_positive, thresholds.fit(own, predicted.fold, p_positive, grid)


def facts(found: Evaluation) -> dict[str, Any]:
    """What was fitted and how it scores, as postprocess.json holds it; "final" leaves out no fold."""
    fitted, images = found.fitted, found.images

    def by_name(values: dict[Exclusion, Any]) -> dict[str, Any]:
        return {
            "final" if left_out is None else str(left_out): value
            for left_out, value in values.items()
        }

    before = images.assign(p_positive=found.score)
    errors = {
        name: curves.expected_calibration_error(curves.calibration(frame))
        for name, frame in (("calibrated", images), ("uncalibrated", before))
    }
    return {
        "final": vars(fitted.final),
        "by_fold": by_name({fold: vars(triplet) for fold, triplet in fitted.by_fold.items()}),
        "weights": by_name(
            {left_out: list(weights) for left_out, weights in found.weights.items()}
        ),
        "calibration": by_name(
            {left_out: vars(curve) for left_out, curve in found.calibrations.items()}
        ),
        "nested_siim_dice": float(images["dice"].mean()),
        "naive_siim_dice": fitted.naive,
        "expected_calibration_error": errors,
    }


def cross_validation(images: pd.DataFrame, fitted: Fitted) -> pd.DataFrame:
    """Rows of artifacts.Submission.cross_validation: each fold, their mean and standard deviation, all images together, and
    what the all-empty baseline scores on all images and per fold.

    Args:
        images: artifacts.Submission.out_of_fold rows.
    """
    rows = []
    for fold, triplet in sorted(fitted.by_fold.items()):
        part = images[images["fold"] == fold]
        rows.append(
            {
                **_scores(f"fold {fold}", part),
                "naive_siim_dice": fitted.naive_by_fold[fold],
                **_fields(triplet),
            }
        )
    per_fold = pd.DataFrame(rows)
    numbers = [*artifacts.SCORE_COLUMNS, "naive_siim_dice"]
    for name, aggregate in (
        ("mean", per_fold[numbers].mean()),
        ("std", per_fold[numbers].std(ddof=1)),
    ):
        rows.append(
            {
                "row": name,
                "images": len(images),
                "positives": int((images["true_px"] > 0).sum()),
                **aggregate,
            }
        )
    rows.append({**_scores("all", images), "naive_siim_dice": fitted.naive})
    rows.append({"row": artifacts.FINAL, **_counts(images), **_fields(fitted.final)})
    rows.append(_nothing(artifacts.ALL_EMPTY, images))
    rows.extend(
        _nothing(f"{artifacts.ALL_EMPTY}, fold {fold}", part)
        for fold, part in images.groupby("fold")
    )
    return pd.DataFrame(rows, columns=list(artifacts.CROSS_VALIDATION_COLUMNS))


def threshold_surface(fitted: Fitted, grid: Grid) -> pd.DataFrame:
    """Rows of artifacts.Submission.threshold_surface: every triplet of the grid whose bottom is not above its top."""
    triplets = itertools.product(grid.tops, grid.min_areas, grid.bottoms)
    table = pd.DataFrame(triplets, columns=["top", "min_area", "bottom"]).assign(
        siim_dice=fitted.surface.ravel()
    )
    return table[np.isfinite(table["siim_dice"])]


def postprocessing_steps(fitted: Fitted) -> pd.DataFrame:
    """Rows of artifacts.Submission.steps."""
    rows = [(name, nested, naive) for name, (nested, naive) in fitted.steps.items()]
    return pd.DataFrame(rows, columns=list(artifacts.STEP_COLUMNS))


def _scores(name: str, part: pd.DataFrame) -> dict[str, Any]:
    columns = (
        part[column].to_numpy()
        for column in ("true_px", "predicted_px", "overlap_px", "p_positive")
    )
    return {"row": name, **_counts(part), **metrics.scores(*columns)}


def _nothing(name: str, part: pd.DataFrame) -> dict[str, Any]:
    return {"row": name, **_counts(part), **metrics.all_empty(part["true_px"].to_numpy())}


def _counts(part: pd.DataFrame) -> dict[str, int]:
    return {"images": len(part), "positives": int((part["true_px"] > 0).sum())}


def _fields(triplet: Triplet) -> dict[str, float]:
    return {name: float(value) for name, value in vars(triplet).items()}
