"""Scores, worked out by hand on masks of a few pixels and against scikit-learn on many."""

import math
import subprocess
import sys

import numpy as np
import pytest
from sklearn import metrics as sk

from pneumothorax import metrics
from pneumothorax.pipeline import artifacts
from tests.helpers.stages import ROOT

EMPTY = np.zeros((2, 2), np.uint8)
FULL = np.ones((2, 2), np.uint8)
LEFT = np.array([[1, 0], [1, 0]], np.uint8)
TOP = np.array([[1, 1], [0, 0]], np.uint8)
CORNER = np.array([[1, 0], [0, 0]], np.uint8)


def scores(truths, predictions, p=None):
    """All scores of two lists of masks; the image's probability is 1 where a pixel is predicted."""
    columns = np.array([metrics.counts(t, q) for t, q in zip(truths, predictions, strict=True)]).T
    return metrics.scores(
        *columns, np.array([float(q.any()) for q in predictions]) if p is None else np.asarray(p)
    )


@pytest.mark.parametrize(
    ("truth", "prediction", "dice"),
    [
        (EMPTY, EMPTY, 1),
        (EMPTY, CORNER, 0),
        (CORNER, EMPTY, 0),
        (FULL, FULL, 1),
        (LEFT, TOP, 0.5),  # 2 * 1 / (2 + 2)
        (FULL, CORNER, 0.4),  # 2 * 1 / (4 + 1)
        (LEFT, CORNER, 2 / 3),  # 2 * 1 / (2 + 1)
        (LEFT, 1 - LEFT, 0),
    ],
)
def test_dice_of_one_image_by_hand(truth, prediction, dice):
    assert metrics.siim_dice([truth], [prediction]) == pytest.approx(dice)
    assert scores([truth], [prediction])["siim_dice"] == pytest.approx(dice)


def test_siim_dice_is_the_mean_over_images_of_any_iterables_and_types():
    truths, predictions = [EMPTY, LEFT, FULL, EMPTY], [EMPTY, TOP, CORNER, CORNER]
    assert metrics.siim_dice(truths, predictions) == pytest.approx((1 + 0.5 + 0.4 + 0) / 4)
    assert isinstance(metrics.siim_dice(truths, predictions), float)
    generators = (mask.astype(bool) for mask in truths), (mask * 255 for mask in predictions)
    assert metrics.siim_dice(*generators) == pytest.approx(0.475)
    big = [np.ones((1024, 1024), np.uint8)]
    assert metrics.siim_dice(big, big) == 1.0


def test_siim_dice_refuses_different_lengths_different_shapes_and_no_images():
    with pytest.raises(ValueError, match=r"shorter|longer"):
        metrics.siim_dice([EMPTY, EMPTY], [EMPTY])
    with pytest.raises(ValueError, match=r"\(2, 2\).*\(2, 3\)"):
        metrics.siim_dice([EMPTY], [np.zeros((2, 3))])
    with pytest.raises(ValueError, match="no images"):
        metrics.siim_dice([], [])


def test_all_scores_of_four_images_by_hand():
    found = scores([EMPTY, LEFT, FULL, EMPTY], [EMPTY, TOP, EMPTY, CORNER], p=[0.1, 0.9, 0.2, 0.4])
    # Pixels (true, predicted, both): (0, 0, 0), (2, 2, 1), (4, 0, 0), (0, 1, 0); sums 6, 3, 1;
    # unions 0, 3, 4, 1. AUC: of the pairs (0.9, 0.1), (0.9, 0.4), (0.2, 0.1), (0.2, 0.4)
    # three are in order.
    assert found == pytest.approx(
        {
            "siim_dice": (1 + 0.5 + 0 + 0) / 4,
            "positive_dice": (0.5 + 0) / 2,
            "pooled_dice": 2 / 9,
            "pooled_precision": 1 / 3,
            "pooled_recall": 1 / 6,
            "pooled_iou": 1 / 8,
            "image_precision": (1 + 1 / 2 + 0 + 0) / 4,
            "image_recall": (1 + 1 / 2 + 0 + 0) / 4,
            "image_iou": (1 + 1 / 3 + 0 + 0) / 4,
            "auc": 3 / 4,
            "sensitivity": 1 / 2,
            "specificity": 1 / 2,
            "ppv": 1 / 2,
        }
    )


def test_scores_of_each_image_by_hand_and_with_the_empty_rule():
    # (true, predicted, both): both empty; only predicted; only true; disjoint; 2 of 4 true
    # and 2 of 5 predicted pixels.
    found = metrics.image_scores(
        np.array([0, 0, 4, 4, 4]), np.array([0, 3, 0, 5, 5]), np.array([0, 0, 0, 0, 2])
    )
    assert found["dice"] == pytest.approx([1, 0, 0, 0, 4 / 9])
    assert found["precision"] == pytest.approx([1, 0, 0, 0, 2 / 5])
    assert found["recall"] == pytest.approx([1, 0, 0, 0, 2 / 4])
    assert found["iou"] == pytest.approx([1, 0, 0, 0, 2 / 7])


def test_pixel_counts_of_a_small_integer_type_do_not_overflow():
    pixels = np.full(3, 40_000, dtype=np.uint16)  # 40,000 + 40,000 is past its limit
    found = metrics.scores(pixels, pixels, pixels // 4, np.ones(3))
    assert found["siim_dice"] == found["pooled_dice"] == 0.25  # 2 * 10 / (40 + 40)
    assert found["pooled_iou"] == pytest.approx(1 / 7)  # 10 / (40 + 40 - 10)


def test_the_all_empty_baseline_scores_the_share_of_negatives():
    found = metrics.all_empty(np.array([0, 0, 0, 5]))
    assert found["siim_dice"] == 0.75
    assert found["positive_dice"] == 0
    assert found["image_iou"] == found["image_precision"] == found["image_recall"] == 0.75
    assert found["pooled_dice"] == found["pooled_recall"] == found["pooled_iou"] == 0
    assert found["specificity"] == 1
    assert found["sensitivity"] == 0
    assert found["auc"] == 0.5
    assert math.isnan(found["pooled_precision"])
    assert math.isnan(found["ppv"])


def test_the_all_empty_baseline_on_the_real_labels_scores_as_published():
    # FACTS.md: 12,047 images, 2,669 positive; stage-1 test: 1,372 images, 290 positive.
    assert metrics.all_empty(np.r_[np.zeros(9378), np.ones(2669)])["siim_dice"] == pytest.approx(
        0.7785, abs=5e-5
    )
    assert metrics.all_empty(np.r_[np.zeros(1082), np.ones(290)])["siim_dice"] == pytest.approx(
        1082 / 1372
    )


def test_undefined_scores_are_nan_instead_of_an_error():
    negatives = scores([EMPTY, EMPTY], [EMPTY, EMPTY])
    assert negatives["siim_dice"] == 1
    assert negatives["specificity"] == 1
    undefined = {
        "positive_dice",
        "pooled_dice",
        "pooled_precision",
        "pooled_recall",
        "pooled_iou",
        "auc",
        "sensitivity",
        "ppv",
    }
    assert {name for name, value in negatives.items() if math.isnan(value)} == undefined
    no_images = metrics.scores(*(np.array([], dtype=int) for _ in range(4)))
    assert all(math.isnan(value) for value in no_images.values())


def test_importing_the_metrics_loads_no_large_library():
    code = (
        "import sys; import pneumothorax.metrics; "
        "print([name for name in ('sklearn', 'scipy', 'pandas', 'torch') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_tables_hold_exactly_the_scores_that_have_a_definition():
    assert tuple(metrics.DEFINITIONS) == artifacts.SCORE_COLUMNS
    assert tuple(scores([LEFT], [TOP])) == artifacts.SCORE_COLUMNS
    assert all(metrics.DEFINITIONS.values())


def test_pooled_and_image_level_scores_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    truths = [(rng.random((8, 8)) < 0.3) * (rng.random() < 0.6) for _ in range(60)]
    predictions = [
        np.where(rng.random((8, 8)) < 0.8, truth, 1 - truth) * (rng.random() < 0.7)
        for truth in truths
    ]
    p = rng.random(60)
    found = scores(truths, predictions, p)
    flat = (
        np.concatenate([t.ravel() for t in truths]),
        np.concatenate([q.ravel() for q in predictions]),
    )
    assert found["pooled_dice"] == pytest.approx(sk.f1_score(*flat))
    assert found["pooled_precision"] == pytest.approx(sk.precision_score(*flat))
    assert found["pooled_recall"] == pytest.approx(sk.recall_score(*flat))
    assert found["pooled_iou"] == pytest.approx(sk.jaccard_score(*flat))
    image = np.array([t.any() for t in truths]), np.array([q.any() for q in predictions])
    assert found["auc"] == pytest.approx(sk.roc_auc_score(image[0], p))
    assert found["sensitivity"] == pytest.approx(sk.recall_score(*image))
    assert found["specificity"] == pytest.approx(sk.recall_score(~image[0], ~image[1]))
    assert found["ppv"] == pytest.approx(sk.precision_score(*image))
    # Image-wise means, with scikit-learn's value where only one mask is empty and 1 where both are.
    for name, score in (
        ("siim_dice", sk.f1_score),
        ("image_precision", sk.precision_score),
        ("image_recall", sk.recall_score),
        ("image_iou", sk.jaccard_score),
    ):
        each = [
            1.0 if not (t.any() or q.any()) else score(t.ravel(), q.ravel(), zero_division=0)
            for t, q in zip(truths, predictions, strict=True)
        ]
        assert found[name] == pytest.approx(np.mean(each)), name
