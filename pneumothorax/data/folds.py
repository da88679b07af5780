"""Cross-validation folds: each patient in one, balanced by mask area; leak report.

Test images are in no fold. Which of them show a patient of the training images is known here.
"""

import warnings

import numpy as np
import pandas as pd

from pneumothorax.errors import BadInput, bad_list, counted

NEGATIVE = "negative"
MAX_NAMED = 5  # images of the one patient who has them all


def with_patients(train: pd.DataFrame, patients: dict[str, str]) -> pd.DataFrame:
    """Training rows with `patient_id` taken from `patients`, {image id: patient id}.

    Raises BadInput when an image has no patient.
    """
    unknown = [image_id for image_id in train["image_id"] if image_id not in patients]
    if unknown:
        are = counted(len(unknown), "training image is", "training images are")
        raise bad_list(f"{are} not in the patients file", unknown)
    return train.assign(patient_id=train["image_id"].map(patients))


def are_doubtful(train: pd.DataFrame) -> bool:
    """Whether the ids of patients may not identify them.

    Some are missing, or nearly every image has a different one, as in SIIM-ACR's files.
    """
    n_groups = len(np.unique(groups(train)))
    return bool(n_groups > 0.9 * len(train) or (train["patient_id"] == "").any())


def seen_in_training(
    train: pd.DataFrame, test: pd.DataFrame, *, doubtful: bool = False
) -> pd.DataFrame:
    """artifacts.TEST_PATIENTS rows, one per manifest row of `test`, in the same order.

    `in_training` is 1 if the patient, or an image with the same pixels, is among the
    training images; else 0; NA if that cannot be known, because the patient of this image
    or of a training image is unknown.

    Args:
        doubtful: the ids of patients may not identify them: different ones say nothing.
    """
    group = groups(pd.concat([train, test], ignore_index=True))
    seen = np.isin(group[len(train) :], group[: len(train)])
    known = not doubtful and bool((train["patient_id"] != "").all())
    unknown = (test["patient_id"] == "").to_numpy() | (not known)
    in_training = pd.Series(seen, index=test.index).astype("Int64").mask(unknown & ~seen)
    return test[["image_id", "patient_id"]].assign(in_training=in_training)


def count_seen(tested: pd.DataFrame) -> dict[str, int]:
    """How many test images show a patient of the training images.

    Args:
        tested: rows of `seen_in_training`.

    Returns the numbers of `images`, of those with the `patient_in_training`, an `unseen` or an
    `unknown` patient, and of different `patients_in_training`.
    """
    seen = tested["in_training"] == 1
    return {
        "images": len(tested),
        "patient_in_training": int(seen.sum()),
        "unseen": int((tested["in_training"] == 0).sum()),
        "unknown": int(tested["in_training"].isna().sum()),
        "patients_in_training": count_patients(tested.loc[seen.fillna(False), "patient_id"]),
    }


def seen_in_words(seen: dict[str, int], *, training_images: int) -> str:
    """`count_seen` for the terminal."""
    images, of_training = seen["images"], seen["patient_in_training"]
    who_are = counted(seen["patients_in_training"], "patient who is", "patients who are")
    line = (
        f"{counted(training_images + images, 'image')}: {training_images} training, {images} test; "
        f"{counted(of_training, 'test image')} of {who_are} also in training, "
        f"{seen['unseen']} of unseen patients, {seen['unknown']} of unknown ones"
    )
    warning = f"warning: test scores of {counted(of_training, 'image')} are optimistic"
    return f"{line}\n{warning}: their patients are in training" if of_training else line


def assign(train: pd.DataFrame, *, n_folds: int, seed: int) -> pd.DataFrame:
    """Training rows of the manifest -> image_id, patient_id, fold, stratum, in order.

    The same rows and seed always give the same folds. Raises BadInput when a fold is
    empty or has no positive, or would be for want of patients.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    stratum, group = strata(train), groups(train)
    require_patients(train, group, n_folds=n_folds)
    splitter = StratifiedGroupKFold(n_splits=n_folds, shuffle=True, random_state=seed)
    fold = np.full(len(train), -1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a stratum smaller than n_folds: see `check`
        for number, (_, validation) in enumerate(splitter.split(train, stratum, group)):
            fold[validation] = number
    table = train[["image_id", "patient_id"]].assign(fold=fold, stratum=stratum)
    check(table, n_folds)
    return table


def require_patients(train: pd.DataFrame, group: np.ndarray, *, n_folds: int) -> None:
    """Raises BadInput unless there are patients, and patients with a positive, for every fold.

    Args:
        group: `groups(train)`.
    """
    positive = (train["positive"] == 1).to_numpy()
    if not positive.any():
        raise BadInput("no training image is positive: folds need positives of several patients")
    for kind, rows in (("training", np.full(len(train), True)), ("positive", positive)):
        patients = np.unique(group[rows])
        if len(patients) == 1:
            images = train[rows]
            name = images["patient_id"].iloc[0] or "unknown"
            raise bad_list(
                f"all {kind} images ({len(images)}) are of one patient ({name}), and a patient "
                "is in one fold only: add images of other patients, or pass --patients if this "
                "PatientID stands for many people; they are",
                list(images["image_id"]),
                limit=MAX_NAMED,
            )
        if len(patients) < n_folds:
            raise BadInput(
                f"the {kind} images are of {len(patients)} patients, who cannot fill {n_folds} "
                f"folds: use at most --folds {len(patients)}"
            )


def check(table: pd.DataFrame, n_folds: int) -> None:
    """Raises BadInput when a fold is empty or has no positive image."""
    for fold in range(n_folds):
        stratum = table.loc[table["fold"] == fold, "stratum"]
        if stratum.empty:
            raise BadInput(f"fold {fold} is empty: use fewer --folds")
        if (stratum == NEGATIVE).all():
            positives = int((table["stratum"] != NEGATIVE).sum())
            total = f"{positives} in all folds together"
            raise BadInput(
                f"fold {fold} has no positive image ({total}): use another --seed or fewer --folds"
            )


def strata(train: pd.DataFrame) -> np.ndarray:
    """(N,) of str: "negative", or the quartile of the mask's share of the image.

    The quartiles are named "area 1" (smallest) to "area 4".
    """
    positive = train["positive"].to_numpy() == 1
    share = (train["mask_pixels"] / (train["height"] * train["width"])).to_numpy()
    result = np.full(len(train), NEGATIVE, dtype=object)
    if positive.any():
        edges = np.quantile(share[positive], [0.25, 0.5, 0.75])
        quartiles = 1 + np.searchsorted(edges, share[positive])
        result[positive] = [f"area {quartile}" for quartile in quartiles]
    return result


def groups(images: pd.DataFrame) -> np.ndarray:
    """(N,) of int: one number per patient, shared by images with identical pixels.

    An empty patient id means "unknown": each such image counts as a patient.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(images)
    image = np.arange(n)
    alone = pd.Series([f"image {number}" for number in image], index=images.index)
    patient = pd.factorize(images["patient_id"].where(images["patient_id"] != "", alone))[0]
    pixels = pd.factorize(images["sha256"])[0]
    # A graph of images, patients and pixel hashes, in which a group is a connected component.
    rows = np.concatenate([image, image])
    columns = np.concatenate([n + patient, 2 * n + pixels])
    links = coo_array((np.ones(2 * n), (rows, columns)), shape=(3 * n, 3 * n))
    return connected_components(links, directed=False)[1][:n]


def leaks(train: pd.DataFrame, table: pd.DataFrame) -> dict[str, int]:
    """The numbers of patients and identical images in several folds; both must be 0."""
    known = table["patient_id"] != ""
    spread = table[known].groupby("patient_id")["fold"].nunique()
    twins = table.groupby(train["sha256"].to_numpy())["fold"].nunique()
    return {
        "patients_in_several_folds": int((spread > 1).sum()),
        "identical_images_in_several_folds": int((twins > 1).sum()),
    }


def require_no_leaks(train: pd.DataFrame, table: pd.DataFrame) -> dict[str, int]:
    """The leak report. Raises BadInput unless it is all 0."""
    found = leaks(train, table)
    if any(found.values()):
        raise BadInput(f"the folds leak: {found}")
    return found


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Per fold: images, patients, positives, each stratum in percent of the images."""
    by_fold = table.groupby("fold")
    counts = pd.DataFrame(
        {
            "images": by_fold.size(),
            "patients": by_fold["patient_id"].agg(count_patients),
            "positives": by_fold["stratum"].agg(lambda column: int((column != NEGATIVE).sum())),
        }
    )
    shares = pd.crosstab(table["fold"], table["stratum"], normalize="index") * 100
    return counts.join(shares.round(2))


def count_patients(ids: pd.Series) -> int:
    """The number of different patient ids; each "", an unknown patient, counts as one."""
    return ids[ids != ""].nunique() + int((ids == "").sum())
