"""One row per image: what a run predicted, and what is known about the image."""

import pandas as pd

from pneumothorax import metrics
from pneumothorax.errors import bad_list, counted
from pneumothorax.pipeline import artifacts

TEST_FOLD = -1  # in the column `fold`: a test image belongs to no fold


def table(
    images: pd.DataFrame, manifest: pd.DataFrame, folds: pd.DataFrame, run: str
) -> pd.DataFrame:
    """artifacts.PER_IMAGE rows, one per row of `images`, in the same order.

    Args:
        images: artifacts.Submission.out_of_fold rows.
        manifest: artifacts.MANIFEST rows; may hold other images, too.
        folds: artifacts.FOLDS rows. The patient is taken from here, since the manifest only
            has the DICOM tag, which may be empty.

    Raises BadInput if an image is not in the manifest or the folds, or if its fold or label
    is not what the run saw.
    """
    grouped = folds[["image_id", "patient_id", "fold"]].rename(columns={"fold": "fold_today"})
    frame = _known(images, manifest, grouped, run, patients_in="the folds")
    for column, changed in (
        ("fold", frame["fold"] != frame["fold_today"]),
        ("label", (frame["true_px"] > 0) != (frame["positive"] == 1)),
    ):
        if changed.any():
            ids = frame.loc[changed, "image_id"].tolist()
            found = counted(len(ids), "image")
            raise bad_list(f"{found} of {run} had another {column}: {_again(run)}", ids)
    return _scored(frame.assign(run=run))[list(artifacts.PER_IMAGE.columns)]


def test_table(
    images: pd.DataFrame, manifest: pd.DataFrame, patients: pd.DataFrame, run: str
) -> pd.DataFrame:
    """artifacts.TEST_PER_IMAGE rows with `fold` TEST_FOLD, one per row of `images`, in order.

    Args:
        images: artifacts.Submission.test_images rows.
        manifest: artifacts.MANIFEST rows; may hold other images, too. It has no labels of
            test images.
        patients: artifacts.TEST_PATIENTS rows.

    Raises BadInput if an image is not in the manifest or among the patients.
    """
    frame = _known(images, manifest, patients, run, patients_in=artifacts.TEST_PATIENTS.path)
    positive = (frame["true_px"] > 0).astype(int)
    frame = _scored(frame.assign(run=run, fold=TEST_FOLD, positive=positive))
    return frame[[*artifacts.PER_IMAGE.columns, "in_training"]]


def all_empty(frame: pd.DataFrame) -> pd.DataFrame:
    """The same images with an empty mask and probability 0, as run artifacts.ALL_EMPTY."""
    empty = frame.assign(run=artifacts.ALL_EMPTY, predicted_px=0, overlap_px=0, p_positive=0.0)
    return _scored(empty)


def _known(
    images: pd.DataFrame,
    manifest: pd.DataFrame,
    patients: pd.DataFrame,
    run: str,
    *,
    patients_in: str,
) -> pd.DataFrame:
    """`images` without masks, with what the manifest and `patients` say about each."""
    for name, rows in (("the manifest", manifest), (patients_in, patients)):
        missing = sorted(set(images["image_id"]) - set(rows["image_id"]))
        if missing:
            are = counted(len(missing), f"image of {run} is", f"images of {run} are")
            raise bad_list(f"{are} not in {name}: {_again(run)}", missing)
    known = manifest[["image_id", "view", "sex", "height", "width", "positive"]]
    frame = images.drop(columns=["dice", "rle"], errors="ignore")
    frame = frame.merge(known, on="image_id", how="left", validate="one_to_one")
    return frame.merge(patients, on="image_id", how="left", validate="one_to_one")


def _again(run: str) -> str:
    return f"run 04_submit.py --name {run}"


def _scored(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows with their scores, and all their other columns."""
    columns = (frame[column].to_numpy() for column in ("true_px", "predicted_px", "overlap_px"))
    return frame.assign(**metrics.image_scores(*columns))
