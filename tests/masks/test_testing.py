"""Labelled test images: scored with the submission's masks, and what their own thresholds claim."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from pneumothorax import rle
from pneumothorax.masks import evaluation, testing, thresholds
from pneumothorax.masks.postprocess import Triplet
from pneumothorax.masks.predicted import Predicted
from pneumothorax.pipeline.artifacts import ALL_EMPTY, TEST_ALL, TEST_CLAIMED, TEST_UNSEEN
from pneumothorax.pipeline.engine import Engine
from tests.helpers.maps import stored_images

GRID = thresholds.Grid(min_components=(0, 100), min_probabilities=(0.0, 0.3, 0.6))
ROWS = [
    TEST_ALL,
    TEST_UNSEEN,
    f"{ALL_EMPTY}, {TEST_ALL}",
    f"{ALL_EMPTY}, {TEST_UNSEEN}",
    TEST_CLAIMED,
]


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    """(fits of 24 out-of-fold images, 20 test images without labels, their label rows).

    Every second image has a disc.
    """
    folder = tmp_path_factory.mktemp("maps")
    (folder / "oof").mkdir()
    oof = stored_images(folder / "oof", 24, seed=1)
    blend, _ = evaluation.evaluate(oof, GRID, engine=Engine(1), weights=(0.25, 0.75))
    labelled = stored_images(folder, 20, seed=2)
    rows = {image.image_id: image.label_rows for image in labelled.images}
    images = [replace(image, label_rows=()) for image in labelled.images]
    return blend.fits, Predicted(images, np.full(20, -1), labelled.scores), rows


@pytest.fixture(scope="module")
def compared(tested):
    """(settled, claimed) masks of the 20 images against their truths."""
    fits, images, rows = tested
    return testing.compare(testing.with_labels(images, rows), fits, GRID, Engine(1))


def patients(images, **in_training):
    """artifacts.TEST_PATIENTS rows: three images per patient, in training unless said otherwise."""
    ids = [str(number) for number in range(images)]
    return pd.DataFrame(
        {
            "image_id": ids,
            "patient_id": [f"patient{number // 3}" for number in range(images)],
            "in_training": [in_training.get(f"image{image_id}", 1.0) for image_id in ids],
        }
    )


def by_hand(texts, rows, p_positive):
    """The scores of 64 x 64 masks, image by image."""
    dice, precision, recall, iou, pixels = [], [], [], [], []
    for image_id, text in texts.items():
        truth = np.zeros((64, 64), dtype=bool)
        for own in rows[image_id]:
            truth |= rle.decode(own, (64, 64)) == 1
        mask = rle.decode(text, (64, 64)) == 1
        both, either = (truth & mask).sum(), (truth | mask).sum()
        dice.append(2 * both / (truth.sum() + mask.sum()) if either else 1.0)
        iou.append(both / either if either else 1.0)
        precision.append(both / mask.sum() if mask.any() else float(not either))
        recall.append(both / truth.sum() if truth.any() else float(not either))
        pixels.append((truth.sum(), mask.sum(), both))
    true, predicted, both = np.array(pixels).T
    positive, found = true > 0, predicted > 0
    return {
        "siim_dice": np.mean(dice),
        "positive_dice": np.array(dice)[positive].mean(),
        "pooled_dice": 2 * both.sum() / (true.sum() + predicted.sum()),
        "pooled_precision": both.sum() / predicted.sum(),
        "pooled_recall": both.sum() / true.sum(),
        "pooled_iou": both.sum() / (true.sum() + predicted.sum() - both.sum()),
        "image_precision": np.mean(precision),
        "image_recall": np.mean(recall),
        "image_iou": np.mean(iou),
        "auc": roc_auc_score(positive, p_positive),
        "sensitivity": found[positive].mean(),
        "specificity": (~found)[~positive].mean(),
        "ppv": positive[found].mean(),
    }


def test_every_test_score_equals_one_computed_from_the_rows_of_the_submission(tested, compared):
    fits, images, rows = tested
    settled, claimed = compared
    texts = evaluation.mask_rows(images, fits, Engine(1))
    assert settled.set_index("image_id")["rle"].to_dict() == texts
    assert len({text == "-1" for text in texts.values()}) == 2  # some are empty, some are not
    # The final fit: the blended score, calibrated.
    p = fits.blends[None].calibration(images.scores @ [0.25, 0.75])
    unseen = {"image3": 0.0, "image4": 0.0, "image8": 0.0, "image11": 0.0, "image5": np.nan}
    table = testing.scores(settled, claimed, patients(20, **unseen), seed=0).set_index("row")
    assert table.index.tolist() == ROWS
    chosen = {TEST_ALL: list(range(20)), TEST_UNSEEN: [3, 4, 8, 11]}
    for row, numbers in chosen.items():
        own = {str(number): texts[str(number)] for number in numbers}
        for score, expected in by_hand(own, rows, p[numbers]).items():
            value, low, high = table.loc[row, [score, f"{score}_low", f"{score}_high"]]
            assert value == pytest.approx(expected), (row, score)
            assert low <= value + 1e-9, (row, score)
            assert value <= high + 1e-9, (row, score)
        empty = table.loc[f"{ALL_EMPTY}, {row}"]
        positives = sum(number % 2 for number in numbers)
        assert table.at[row, "positives"] == empty["positives"] == positives
        assert table.at[row, "images"] == empty["images"] == len(numbers)
        assert empty["siim_dice"] == pytest.approx(1 - positives / len(numbers))
        assert empty["siim_dice_low"] < empty["siim_dice"] < empty["siim_dice_high"]
        assert np.isnan(empty["pooled_precision"])  # no pixel is predicted
    wide = table.loc[TEST_ALL, "siim_dice_high"] - table.loc[TEST_ALL, "siim_dice_low"]
    assert wide > 0.01


def test_without_an_unseen_patient_their_rows_have_no_scores(compared):
    settled, claimed = compared
    table = testing.scores(settled, claimed, patients(20, image0=np.nan), seed=0)
    table = table.set_index("row")
    for row in (TEST_UNSEEN, f"{ALL_EMPTY}, {TEST_UNSEEN}"):
        assert table.loc[row, ["images", "positives"]].tolist() == [0, 0]
        assert table.loc[row].drop(["images", "positives"]).isna().all()
    assert "unseen patients: none of the labelled test images" in testing.in_words(
        table.reset_index()
    )


def test_intervals_are_over_patients_and_each_unknown_one_counts_as_one(compared):
    settled, claimed = compared
    known = patients(20)
    one_patient = known.assign(patient_id="same")
    table = testing.scores(settled, claimed, one_patient, seed=0).set_index("row")
    assert np.isnan(table.at[TEST_ALL, "siim_dice_low"])  # one patient cannot be resampled
    unknown = testing.scores(settled, claimed, known.assign(patient_id=""), seed=0)
    alone = testing.scores(
        settled, claimed, known.assign(patient_id=[f"p{n:02}" for n in range(20)]), seed=0
    )
    columns = ["siim_dice_low", "siim_dice_high"]
    widths = [np.diff(frame.set_index("row").loc[TEST_ALL, columns]) for frame in (unknown, alone)]
    np.testing.assert_allclose(widths[0], widths[1], rtol=0.15)


def test_thresholds_of_the_test_images_claim_at_least_the_settled_score(tested, compared):
    """With planted thresholds that empty every image, the gap is that of the whole search."""
    fits, images, rows = tested
    settled, claimed = compared
    assert claimed["dice"].mean() >= settled["dice"].mean()
    poor = replace(fits, thresholds=replace(fits.thresholds, final=Triplet(0.99, 24000, 0.9)))
    labelled = testing.with_labels(images, rows)
    emptied, again = testing.compare(labelled, poor, GRID, Engine(1))
    assert emptied["dice"].mean() == 0.5  # half of the images are negative
    assert again["dice"].tolist() == claimed["dice"].tolist()  # they do not depend on the others
    table = testing.scores(emptied, again, patients(20, image0=0.0), seed=0)
    low, high = table.set_index("row").loc[TEST_ALL, ["siim_dice_low", "siim_dice_high"]]
    score = again["dice"].mean()
    assert score > 0.6
    assert testing.in_words(table) == [
        f"test images: SIIM Dice 0.5000 ({low:.4f} to {high:.4f}), all-empty baseline 0.5000, "
        "20 images",
        # Image 0 is negative. A single patient gives no interval.
        "unseen patients: SIIM Dice 1.0000, all-empty baseline 1.0000, 1 image",
        f"thresholds fitted on the test labels would claim {score:.4f} ({score - 0.5:+.4f})",
    ]


def test_claimed_thresholds_are_the_best_of_the_grid_on_the_test_images(tested, compared):
    fits, images, rows = tested
    labelled = testing.with_labels(images, rows)
    best = max(
        np.mean(
            [
                evaluation.compare(image, [rule._replace(triplet=triplet)])[0]["dice"]
                for image, rule in zip(labelled.images, fits.rules(labelled.scores), strict=True)
            ]
        )
        for top in GRID.tops[::4]
        for bottom in GRID.bottoms[::4]
        if bottom <= top
        for triplet in [Triplet(top, 100.0, bottom)]
    )
    claimed = compared[1]["dice"].mean()
    assert claimed >= best - 1e-12
    assert best > 0.5
    weights = fits.blends[None].weights
    search = evaluation.search(labelled.images, [weights], GRID, Engine(1))[weights]
    p_positive = np.array([rule.p_positive for rule in fits.rules(labelled.scores)])
    scores = search.scores(np.ones(len(labelled.images), dtype=bool), p_positive)
    assert claimed == pytest.approx(scores.values.max())
    assert claimed > scores.choose().siim_dice  # the thresholds that would be used for others


def test_only_labelled_test_images_are_scored_each_with_its_own_labels(tested):
    _, images, rows = tested
    some = {image_id: rows[image_id] for image_id in ("7", "2", "13")}
    labelled = testing.with_labels(images, {**some, "elsewhere": ("0 3",)})
    assert [image.image_id for image in labelled.images] == ["2", "7", "13"]
    assert [image.label_rows for image in labelled.images] == [(), rows["7"], rows["13"]]
    np.testing.assert_array_equal(labelled.scores, images.scores[[2, 7, 13]])
