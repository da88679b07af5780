"""One row per image: what a run predicted, and what is known about the image."""

import pandas as pd

from pneumothorax import metrics
from pneumothorax.errors import bad_list
from pneumothorax.pipeline import artifacts


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
    again = f"run 04_submit.py --name {run}"
    for name, rows in (("the manifest", manifest), ("the folds", folds)):
        missing = sorted(set(images["image_id"]) - set(rows["image_id"]))
        if missing:
            raise bad_list(f"{len(missing)} images of {run} are not in {name}: {again}", missing)
    known = manifest[["image_id", "view", "sex", "height", "width", "positive"]]
    grouped = folds[["image_id", "patient_id", "fold"]].rename(columns={"fold": "fold_today"})
    frame = images[["image_id", "fold", "p_positive", "true_px", "predicted_px", "overlap_px"]]
    frame = frame.merge(known, on="image_id", how="left", validate="one_to_one")
    frame = frame.merge(grouped, on="image_id", how="left", validate="one_to_one")
    for column, changed in (
        ("fold", frame["fold"] != frame["fold_today"]),
        ("label", (frame["true_px"] > 0) != (frame["positive"] == 1)),
    ):
        if changed.any():
            ids = frame.loc[changed, "image_id"].tolist()
            raise bad_list(f"{len(ids)} images of {run} had another {column}: {again}", ids)
    return _scored(frame.assign(run=run))


def all_empty(frame: pd.DataFrame) -> pd.DataFrame:
    """The same images with an empty mask and probability 0, as run artifacts.ALL_EMPTY."""
    empty = frame.assign(run=artifacts.ALL_EMPTY, predicted_px=0, overlap_px=0, p_positive=0.0)
    return _scored(empty)


def _scored(frame: pd.DataFrame) -> pd.DataFrame:
    columns = (frame[column].to_numpy() for column in ("true_px", "predicted_px", "overlap_px"))
    return frame.assign(**metrics.image_scores(*columns))[list(artifacts.PER_IMAGE.columns)]
