"""Writing the demo data set: phantoms as DICOM files in the layout of the SIIM-ACR competition.

Writes below --to (a new or empty folder)
    dicom-images-train/<study>/<series>/<sop>.dcm   training images, and a few without a label
    train-rle.csv                                   their labels, spaced as in Kaggle's file
    stage_2_images/ID_xxxxxxxxx.dcm                 test images
    stage_2_sample_submission.csv                   the ids of the test images
    phantoms.txt                                    a note; stage 00 looks for it, so that the
                                                    report can say that no patient was imaged
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import joblib
import numpy as np
from tqdm import tqdm

from pneumothorax import rle
from pneumothorax.data import discovery
from pneumothorax.errors import BadInput
from pneumothorax.phantom.dicom_file import dicom_bytes
from pneumothorax.phantom.plan import RadiographFile, plan
from pneumothorax.phantom.radiograph import draw

NOTE = "Chest phantoms in DICOM files: demo data, not radiographs of patients."


@dataclass(frozen=True)
class Written:
    """What was written; numbers of images, rows and patients."""

    folder: Path
    train_images: int
    positive_images: int
    label_rows: int
    patients: int
    test_images: int
    unlabelled_images: int


def write_dataset(
    folder: Path,
    *,
    train_images: int = 240,
    test_images: int = 60,
    unlabelled_images: int = 3,
    seed: int = 42,
    size: int = 1024,
    workers: int | None = None,
) -> Written:
    """Writes a whole data set or nothing: it is built next to `folder` and renamed at the end.

    The same arguments give the same bytes with any number of workers (default: all available
    cores). Raises BadInput if `folder` is not empty.
    """
    folder = Path(folder)
    _require_room(folder)
    _require_numbers(train_images, test_images, unlabelled_images, size)
    train, unlabelled, test = plan(
        train_images, unlabelled_images, test_images, seed=seed, size=size
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.parent / f".{folder.name}.partial-{os.getpid()}"
    partial.mkdir()
    try:
        rows = _write_radiographs(
            partial, [*train, *unlabelled, *test], workers or joblib.cpu_count()
        )
        _write_labels(partial / "train-rle.csv", train, rows[: len(train)])
        _write_sample_submission(partial / "stage_2_sample_submission.csv", test)
        _write_text(partial / discovery.PHANTOM_NOTE, [NOTE])
        if folder.exists():
            folder.rmdir()  # empty: a rename onto an existing folder fails on Windows
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return Written(
        folder=folder,
        train_images=len(train),
        positive_images=sum(radiograph.positive for radiograph in train),
        label_rows=sum(len(texts) for texts in rows[: len(train)]),
        patients=len({radiograph.patient.number for radiograph in train}),
        test_images=len(test),
        unlabelled_images=len(unlabelled),
    )


def _require_room(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder} is a file: name a folder to write the demo data to")
    if folder.is_dir() and any(folder.iterdir()):
        raise BadInput(
            f"{folder} is not empty: nothing was written; empty it or name another folder"
        )


def _require_numbers(
    train_images: int, test_images: int, unlabelled_images: int, size: int
) -> None:
    if train_images < 1 or test_images < 0 or unlabelled_images < 0:
        raise BadInput(
            "at least one training image is needed and no number may be negative, got "
            f"{train_images} training, {test_images} test, {unlabelled_images} unlabelled images"
        )
    if size < 64 or size % 2:
        raise BadInput(f"--size must be an even number of pixels and at least 64, got {size}")


def _write_radiographs(
    folder: Path, radiographs: Sequence[RadiographFile], workers: int
) -> list[list[str]]:
    """Draws and writes every radiograph below `folder`; returns the label rows of each."""
    # Not in the workers: after an interruption, one that still runs must not recreate a folder.
    for radiograph in radiographs:
        (folder / radiograph.path).parent.mkdir(parents=True, exist_ok=True)
    jobs = (joblib.delayed(_write_radiograph)(folder, radiograph) for radiograph in radiographs)
    done = joblib.Parallel(n_jobs=workers, return_as="generator")(jobs)
    return list(tqdm(done, total=len(radiographs), desc="drawing", unit="radiograph", disable=None))


def _write_radiograph(folder: Path, radiograph: RadiographFile) -> list[str]:
    """Draws one radiograph, writes its DICOM below `folder` and returns its label rows."""
    phantom = draw(
        radiograph.seed,
        pneumothorax=radiograph.positive,
        size=radiograph.size,
        patient=radiograph.patient.number,
    )
    (folder / radiograph.path).write_bytes(dicom_bytes(phantom.image, radiograph))
    return label_rows(
        phantom.masks,
        np.random.default_rng([radiograph.seed, 3]),
        double_reading=radiograph.double_reading,
    )


def label_rows(
    masks: list[np.ndarray], rng: np.random.Generator, *, double_reading: bool
) -> list[str]:
    """The run-length rows of an image, one per mask; their union is the truth.

    With `double_reading` two readers outlined the first mask: each one end, both the middle.
    """
    if not masks:
        return [rle.EMPTY]
    if double_reading:
        masks = [*_two_readings(masks[0], rng), *masks[1:]]
    return [rle.encode(mask) for mask in masks]


def _two_readings(mask: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """(H, W) mask of 0 and 1 -> two masks that overlap and whose union is the mask."""
    rows = np.flatnonzero(mask.any(axis=1))
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    first_ends = top + int(rng.uniform(0.55, 0.8) * (bottom - top)) + 1
    second_starts = top + int(rng.uniform(0.2, 0.45) * (bottom - top))
    first, second = mask.copy(), mask.copy()
    first[first_ends:] = 0
    second[:second_starts] = 0
    return [first, second]


def _write_labels(
    path: Path, radiographs: Sequence[RadiographFile], rows: Sequence[list[str]]
) -> None:
    """One line per row, with a space after the comma as in Kaggle's file."""
    lines = [
        f"{radiograph.image_id}, {text}"
        for radiograph, texts in zip(radiographs, rows, strict=True)
        for text in texts
    ]
    _write_text(path, ["ImageId, EncodedPixels", *lines])


def _write_sample_submission(path: Path, radiographs: Sequence[RadiographFile]) -> None:
    ids = sorted(radiograph.image_id for radiograph in radiographs)
    _write_text(path, ["ImageId,EncodedPixels", *(f"{image_id},{rle.EMPTY}" for image_id in ids)])


def _write_text(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
