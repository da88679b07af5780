"""The per-image table joins a run's results with the manifest and the folds."""

import pandas as pd
import pytest

from pneumothorax import metrics
from pneumothorax.errors import BadInput
from pneumothorax.pipeline import artifacts
from pneumothorax.scores import per_image


def parts():
    """Out-of-fold, manifest and folds rows of three images; the manifest has a test image, too."""
    images = pd.DataFrame(
        {
            "image_id": ["a", "b", "c"],
            "fold": [0, 1, 1],
            "p_positive": [0.9, 0.4, 0.1],
            "true_px": [10, 0, 0],
            "predicted_px": [5, 0, 2],
            "overlap_px": [4, 0, 0],
            "dice": [8 / 15, 1, 0],
            "rle": ["0 5", "", "7 2"],
        }
    )
    manifest = pd.DataFrame(
        {
            "image_id": ["test", "c", "b", "a"],
            "patient_id": ["from the DICOM"] * 4,
            "view": ["PA", "", "PA", "AP"],
            "sex": ["F", "M", "", "F"],
            "age": ["", "51", "52", "53"],
            "height": [8, 6, 4, 2],
            "width": [9, 7, 5, 3],
            "positive": [0, 0, 0, 1],
        }
    )
    folds = pd.DataFrame(
        {"image_id": ["b", "c", "a"], "patient_id": ["q", "", "p"], "fold": [1, 1, 0]}
    )
    return images, manifest, folds


def test_table_by_hand():
    table = per_image.table(*parts(), "unet")
    assert table.columns.tolist() == list(artifacts.PER_IMAGE.columns)
    scores = ["dice", "precision", "recall", "iou"]
    assert table.drop(columns=scores).to_numpy().tolist() == [
        ["unet", "a", "p", 0, "AP", "F", 2, 3, 1, 0.9, 10, 5, 4],
        ["unet", "b", "q", 1, "PA", "", 4, 5, 0, 0.4, 0, 0, 0],
        ["unet", "c", "", 1, "", "M", 6, 7, 0, 0.1, 0, 2, 0],
    ]
    # a: 2 * 4 / (10 + 5); precision 4/5, recall 4/10, union 10 + 5 - 4 = 11.
    # b: both empty. c: a false alarm.
    assert table[scores].to_numpy().tolist() == [
        pytest.approx([8 / 15, 0.8, 0.4, 4 / 11]),
        [1] * 4,
        [0] * 4,
    ]


def test_test_images_have_no_fold_and_their_truth_is_what_the_run_was_scored_with():
    images, manifest, _ = parts()
    patients = {"image_id": ["c", "a", "b"], "patient_id": ["r", "p", ""]}
    patients = pd.DataFrame({**patients, "in_training": [0, 1, float("nan")]})
    # The manifest has no labels of test images.
    manifest = manifest.assign(positive=0)
    table = per_image.test_table(images.drop(columns="fold"), manifest, patients, "unet")
    assert table["image_id"].tolist() == ["a", "b", "c"]
    assert table["patient_id"].tolist() == ["p", "", "r"]
    assert table["fold"].tolist() == [-1] * 3
    assert table["positive"].tolist() == [1, 0, 0]
    assert table["in_training"].tolist() == pytest.approx([1, float("nan"), 0], nan_ok=True)
    assert table["dice"].tolist() == pytest.approx([8 / 15, 1, 0])
    assert set(artifacts.TEST_PER_IMAGE.columns) <= set(table.columns)
    assert per_image.all_empty(table)["in_training"].tolist()[::2] == [1, 0]
    with pytest.raises(BadInput, match=r"1 image of unet is not in test_patients.csv[^\n]*\n  b$"):
        per_image.test_table(images.drop(columns="fold"), manifest, patients.iloc[:2], "unet")


def test_the_all_empty_run_keeps_the_images_and_scores_like_the_all_empty_baseline():
    table = per_image.all_empty(per_image.table(*parts(), "unet"))
    assert set(table["run"]) == {"all-empty baseline"}
    assert table["image_id"].tolist() == ["a", "b", "c"]
    assert (table[["predicted_px", "overlap_px", "p_positive"]] == 0).all(axis=None)
    for column in ("dice", "precision", "recall", "iou"):
        assert table[column].tolist() == [0, 1, 1]
    pixels = (table[column] for column in ("true_px", "predicted_px", "overlap_px", "p_positive"))
    expected = metrics.all_empty(table["true_px"])
    assert metrics.scores(*pixels) == pytest.approx(expected, nan_ok=True)


def test_images_that_are_not_in_the_manifest_or_the_folds_are_listed():
    images, manifest, folds = parts()
    with pytest.raises(BadInput, match=r"1 image of unet is not in the manifest[^\n]*\n  a$"):
        per_image.table(images, manifest.iloc[:3], folds, "unet")
    with pytest.raises(BadInput, match=r"2 images of unet are not in the folds[^\n]*\n  b\n  c$"):
        per_image.table(images, manifest, folds.iloc[2:], "unet")


def test_folds_and_labels_that_changed_since_the_run_are_refused():
    images, manifest, folds = parts()
    with pytest.raises(
        BadInput, match=r"1 image of unet had another fold: run 04_submit.py --name unet\n  b"
    ):
        per_image.table(images, manifest, folds.assign(fold=[0, 1, 0]), "unet")
    with pytest.raises(BadInput, match=r"1 image of unet had another label[^\n]*\n  c$"):
        per_image.table(images, manifest.assign(positive=[0, 1, 0, 1]), folds, "unet")
