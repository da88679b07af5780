"""The report's per-image table: what one run predicted on each training image, beside what is known of the image."""

import pandas as pd

from pneumothorax import metrics
from pneumothorax.errors import bad_list
from pneumothorax.pipeline import artifacts

ALL_EMPTY = "all-empty baseline"


def table(
    images: pd.DataFrame, manifest: pd.DataFrame, folds: pd.DataFrame, run: str
) -> pd.DataFrame:
    """artifacts.PER_IMAGE rows, one per row of `images` and in their order.

    Args:
        images: artifacts.Submission.out_of_fold rows.
        manifest: artifacts.MANIFEST rows; those of other images are not used.
        folds: artifacts.FOLDS rows. The patient is theirs: the manifest's is the DICOM tag, which may say nothing.

    Raises BadInput when an image is missing in the manifest or the folds, or they contradict the run.
    """
    for name, rows in (("the manifest", manifest), ("the folds", folds)):
        missing = sorted(set(images["image_id"]) - set(rows["image_id"]))
        if missing:
            raise bad_list(
                f"{len(missing)} images of {run} are not in {name}: run 04_submit.py --name {run}",
                missing,
            )
    known = manifest[["image_id", "view", "sex", "height", "width", "positive"]]
    grouped = folds[["image_id", "patient_id", "fold"]].rename(columns={"fold": "fold_today"})
    own = images[["image_id", "fold", "p_positive", "true_px", "predicted_px", "overlap_px"]]
    frame = own.merge(known, on="image_id", how="left", validate="one_to_one")
    frame = frame.merge(grouped, on="image_id", how="left", validate="one_to_one")
    for column, moved in (
        ("fold", frame["fold"] != frame["fold_today"]),
        ("label", (frame["true_px"] > 0) != (frame["positive"] == 1)),
    ):
        if moved.any():
            ids = frame.loc[moved, "image_id"].tolist()
            raise bad_list(
                f"{len(ids)} images of {run} had another {column}: run 04_submit.py --name {run}",
                ids,
            )
    return _scored(frame.assign(run=run))


def nothing(frame: pd.DataFrame) -> pd.DataFrame:
    """The same images with an empty mask and probability 0 each, as the run ALL_EMPTY."""
    return _scored(frame.assign(run=ALL_EMPTY, predicted_px=0, overlap_px=0, p_positive=0.0))


def _scored(frame: pd.DataFrame) -> pd.DataFrame:
    columns = (frame[column].to_numpy() for column in ("true_px", "predicted_px", "overlap_px"))
    return frame.assign(**metrics.image_scores(*columns))[list(artifacts.PER_IMAGE.columns)]
