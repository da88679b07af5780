"""Cross-validation folds: all images of a patient together, strata by mask size, and a report that proves it."""

import warnings

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold

from pneumothorax.errors import BadInput, bad_list

NEGATIVE = "negative"


def with_patients(train: pd.DataFrame, patients: dict[str, str]) -> pd.DataFrame:
    """The manifest's training rows with `patient_id` replaced. Raises BadInput when an image has no patient."""
    unknown = [image_id for image_id in train["image_id"] if image_id not in patients]
    if unknown:
        raise bad_list(f"{len(unknown)} training images are not in the patients file", unknown)
    return train.assign(patient_id=train["image_id"].map(patients))


def assign(train: pd.DataFrame, *, n_folds: int, seed: int) -> pd.DataFrame:
    """Training rows of the manifest -> image_id, patient_id, fold, stratum, in the same order.

    The same rows and seed always give the same folds. Raises BadInput when a fold is empty or has no positive.
    """
    stratum = strata(train)
    group = groups(train)
    n_groups = len(np.unique(group))
    if n_groups < n_folds:
        raise BadInput(
            f"{n_groups} patients cannot fill {n_folds} folds: use --folds {max(2, n_groups)} or fewer"
        )
    splitter = StratifiedGroupKFold(n_splits=n_folds, shuffle=True, random_state=seed)
    fold = np.full(len(train), -1)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # strata with fewer images than folds: `_check` judges the result
        for number, (_, validation) in enumerate(splitter.split(train, stratum, group)):
            fold[validation] = number
    table = pd.DataFrame(
        {
            "image_id": train["image_id"],
            "patient_id": train["patient_id"],
            "fold": fold,
            "stratum": stratum,
        }
    )
    _check(table, n_folds)
    return table


def strata(train: pd.DataFrame) -> np.ndarray:
    """(N,) of str: "negative", or the quartile of the mask's share of the image, "area 1" (smallest) to "area 4"."""
    positive = train["positive"].to_numpy() == 1
    share = (train["mask_pixels"] / (train["height"] * train["width"])).to_numpy()
    result = np.full(len(train), NEGATIVE, dtype=object)
    if positive.any():
        edges = np.quantile(share[positive], [0.25, 0.5, 0.75])
        result[positive] = [
            f"area {1 + quartile}" for quartile in np.searchsorted(edges, share[positive])
        ]
    return result


def groups(train: pd.DataFrame) -> np.ndarray:
    """(N,) of int: images of one patient, and images with identical pixels, have the same number.

    An empty patient id says nothing, so each such image is a patient of its own.
    """
    image = np.arange(len(train))
    own = pd.Series([f"image {number}" for number in image], index=train.index)
    patient = pd.factorize(train["patient_id"].where(train["patient_id"] != "", own))[0]
    pixels = pd.factorize(train["sha256"])[0]
    n = len(train)
    # A graph whose nodes are images, patients and pixel hashes; a group is what hangs together in it.
    rows = np.concatenate([image, image])
    columns = np.concatenate([n + patient, 2 * n + pixels])
    links = coo_array((np.ones(2 * n), (rows, columns)), shape=(3 * n, 3 * n))
    return connected_components(links, directed=False)[1][:n]


def leaks(train: pd.DataFrame, table: pd.DataFrame) -> dict[str, int]:
    """How many patients and how many identical images stand in more than one fold; all must be 0."""
    known = table["patient_id"] != ""
    spread = table[known].groupby("patient_id")["fold"].nunique()
    twins = table.groupby(train["sha256"].to_numpy())["fold"].nunique()
    return {
        "patients_in_several_folds": int((spread > 1).sum()),
        "identical_images_in_several_folds": int((twins > 1).sum()),
    }


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Per fold: images, patients, positives, and the share of each stratum in percent."""
    by_fold = table.groupby("fold")
    counts = pd.DataFrame(
        {
            "images": by_fold.size(),
            "patients": by_fold["patient_id"].agg(
                lambda ids: ids[ids != ""].nunique() + int((ids == "").sum())
            ),
            "positives": by_fold["stratum"].agg(lambda column: int((column != NEGATIVE).sum())),
        }
    )
    shares = pd.crosstab(table["fold"], table["stratum"], normalize="index") * 100
    return counts.join(shares.round(2))


def _check(table: pd.DataFrame, n_folds: int) -> None:
    for fold in range(n_folds):
        stratum = table.loc[table["fold"] == fold, "stratum"]
        if stratum.empty:
            raise BadInput(f"fold {fold} is empty: use fewer --folds")
        if (stratum == NEGATIVE).all():
            positives = int((table["stratum"] != NEGATIVE).sum())
            raise BadInput(
                f"fold {fold} has no positive image ({positives} in all): use fewer --folds"
            )
