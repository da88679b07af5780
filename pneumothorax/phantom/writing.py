"""Writing the demo data set: the same phantoms in one of two layouts of the SIIM-ACR data.

Writes below --to (a new or empty folder)
    phantoms.txt    a note; stage 00 looks for it, so that the report can say that no patient
                    was imaged
and the images, labels and tables of siim_dicom or siim_png.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import joblib
import numpy as np

from pneumothorax import rle
from pneumothorax.data import discovery
from pneumothorax.errors import BadInput
from pneumothorax.phantom import siim_dicom, siim_png
from pneumothorax.phantom.plan import Plan, Radiograph, plan
from pneumothorax.phantom.radiograph import draw
from pneumothorax.pipeline.progress import show_progress


class Layout(Protocol):
    """A module that says which files a data set has; paths are relative to its folder."""

    FORMAT: str

    def paths(self, plan: Plan) -> dict[Radiograph, tuple[Path, ...]]:
        """The files of each radiograph that is written."""

    def contents(
        self, radiograph: Radiograph, image: np.ndarray, rows: list[str]
    ) -> tuple[bytes, ...]:
        """The bytes of these files, from the (H, W) uint8 image and its label rows."""

    def tables(self, plan: Plan, rows: Mapping[Radiograph, list[str]]) -> dict[Path, list[str]]:
        """The lines of each table."""


LAYOUTS: dict[str, Layout] = {"siim-dicom": siim_dicom, "siim-png": siim_png}


@dataclass(frozen=True)
class Written:
    """What was written; numbers of images and patients."""

    folder: Path
    train_images: int
    positive_images: int
    patients: int
    test_images: int
    unlabelled_images: int


def write_dataset(
    folder: Path,
    *,
    layout: str = "siim-dicom",
    train_images: int = 240,
    test_images: int = 60,
    unlabelled_images: int = 3,
    seed: int = 42,
    size: int = 1024,
    workers: int | None = None,
) -> Written:
    """Writes a whole data set or nothing: it is built next to `folder` and renamed at the end.

    The same arguments give the same bytes with any number of workers (default: all available
    cores), and the same ids, pixels and masks in every layout. Raises BadInput if `folder` is
    not empty.
    """
    folder = Path(folder)
    _require_room(folder)
    _require_numbers(train_images, test_images, unlabelled_images, size)
    planned = plan(train_images, unlabelled_images, test_images, seed=seed, size=size)
    written = LAYOUTS[layout].paths(planned)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.parent / f".{folder.name}.partial-{os.getpid()}"
    partial.mkdir()
    try:
        rows = _write_radiographs(partial, written, layout, workers or joblib.cpu_count())
        _write_tables(partial, LAYOUTS[layout], planned, rows)
        if folder.exists():
            folder.rmdir()  # empty: a rename onto an existing folder fails on Windows
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return Written(
        folder=folder,
        train_images=len(planned.train),
        positive_images=sum(radiograph.positive for radiograph in planned.train),
        patients=len({radiograph.patient for radiograph in planned.train}),
        test_images=len(planned.test),
        unlabelled_images=sum(radiograph in written for radiograph in planned.unlabelled),
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
    folder: Path, written: Mapping[Radiograph, tuple[Path, ...]], layout: str, workers: int
) -> dict[Radiograph, list[str]]:
    """Draws and writes every radiograph below `folder`; returns the label rows of each."""
    # Not in the workers: after an interruption, one that still runs must not recreate a folder.
    for paths in written.values():
        for path in paths:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
    jobs = (
        joblib.delayed(_write_radiograph)(folder, radiograph, paths, layout)
        for radiograph, paths in written.items()
    )
    done = joblib.Parallel(n_jobs=workers, return_as="generator")(jobs)
    done = show_progress(done, total=len(written), title="drawing", unit="radiograph")
    return dict(zip(written, done, strict=True))


def _write_radiograph(
    folder: Path, radiograph: Radiograph, paths: tuple[Path, ...], layout: str
) -> list[str]:
    """Draws one radiograph, writes its files below `folder` and returns its label rows."""
    phantom = draw(
        radiograph.seed,
        pneumothorax=radiograph.positive,
        size=radiograph.size,
        patient=radiograph.patient.number,
    )
    rows = label_rows(
        phantom.masks,
        np.random.default_rng([radiograph.seed, 3]),
        double_reading=radiograph.double_reading,
    )
    contents = LAYOUTS[layout].contents(radiograph, phantom.image, rows)
    for path, data in zip(paths, contents, strict=True):
        (folder / path).write_bytes(data)
    return rows


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


def _write_tables(
    folder: Path, layout: Layout, planned: Plan, rows: Mapping[Radiograph, list[str]]
) -> None:
    note = f"Chest phantoms in {layout.FORMAT} files: demo data, not radiographs of patients."
    texts = {**layout.tables(planned, rows), Path(discovery.PHANTOM_NOTE): [note]}
    for path, lines in texts.items():
        (folder / path).write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
