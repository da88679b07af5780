"""The images that one or several runs predicted, with their probability maps and labels."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from pneumothorax import png, rle
from pneumothorax.errors import BadInput, bad_list, counted
from pneumothorax.masks import calibration
from pneumothorax.pipeline import artifacts


class StoredMap(NamedTuple):
    """A probability map of stage 03 and the hash that its file must have."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class Image:
    """One image to make a mask for.

    Args:
        stored: its probability map by each run.
        shape: (H, W) of the labels.
        label_rows: its masks as text; empty for negative images and test images.
    """

    image_id: str
    stored: tuple[StoredMap, ...]
    shape: tuple[int, int]
    label_rows: tuple[str, ...]

    def maps(self) -> list[np.ndarray]:
        """(h, w) uint8 of each run. Raises BadInput if a file is not the one stage 03 wrote."""
        return [_read(*stored) for stored in self.stored]

    def truth(self) -> np.ndarray:
        """(H, W) uint8 of 0 and 1."""
        return rle.union(self.label_rows, self.shape)


class Predicted(NamedTuple):
    """The images of one split, in the order of the first run's table.

    Args:
        fold: (N,) int, the fold whose network predicted the image; -1 for test images.
        scores: (N, runs) in [0, 1], each run's score of the image as a whole
            (calibration.score).
    """

    images: list[Image]
    fold: np.ndarray
    scores: np.ndarray

    @property
    def positive(self) -> np.ndarray:
        """(N,) bool: the image has a label."""
        return np.array([bool(image.label_rows) for image in self.images])

    @property
    def held_out_folds(self) -> list[int | None]:
        """One for each fit (nested.py): None, which holds out no fold, and every fold."""
        return [None, *sorted(set(self.fold.tolist()))]

    def seen_without(self, held_out: int | None) -> np.ndarray:
        """(N,) bool: the images of all other folds."""
        return np.array([fold != held_out for fold in self.fold.tolist()])


def read(output: Path, runs: Sequence[str], split: str) -> Predicted:
    """All images of a split. Raises BadInput if the runs differ in images or in their folds."""
    manifest = artifacts.read_table(output, artifacts.MANIFEST)
    shape_of = artifacts.image_shapes(manifest)
    rows_of = artifacts.label_rows(output) if split == artifacts.OOF else {}
    tables = [_table(output, run, split, shape_of) for run in runs]
    for run, table in zip(runs[1:], tables[1:], strict=True):
        _check_same(runs[0], tables[0], run, table)
    image_ids = tables[0].index.tolist()
    digests = np.stack([table.loc[image_ids, "sha256"] for table in tables], axis=1).tolist()
    images = []
    for image_id, digests_of_image in zip(image_ids, digests, strict=True):
        stored = tuple(
            StoredMap(output / artifacts.Run(run).probability_map(split, image_id), digest)
            for run, digest in zip(runs, digests_of_image, strict=True)
        )
        images.append(Image(image_id, stored, shape_of[image_id], rows_of.get(image_id, ())))
    fold = tables[0]["fold"].fillna(-1).to_numpy(dtype=int)
    scores = [_scores(table.loc[image_ids]) for table in tables]
    return Predicted(images, fold, np.stack(scores, axis=1))


def _read(path: Path, digest: str) -> np.ndarray:
    try:
        data = path.read_bytes()
    except OSError:
        data = b""
    if hashlib.sha256(data).hexdigest() != digest:
        raise BadInput(f"{path} is not the map that 03_predict.py wrote: run 03_predict.py again")
    return png.decode(data, path)


def _scores(table: pd.DataFrame) -> np.ndarray:
    columns = ("p_max", "p_classification")
    return calibration.score(*(table[column].to_numpy(dtype=float) for column in columns))


def _table(output: Path, run: str, split: str, known: Collection[str]) -> pd.DataFrame:
    """The run's rows of the split by image id. Raises BadInput that lists the unusable ones."""
    file = artifacts.Run(run).predictions
    table = artifacts.read_table(output, file)
    table = table[table["split"] == split].set_index("image_id")
    faults = {
        "is not in the manifest": ~table.index.isin(list(known)),
        "is listed twice": table.index.duplicated(),
        "has no probability from 0 to 1": ~(
            table["p_max"].between(0, 1)  # NaN is not
            & table["p_classification"].fillna(0).between(0, 1)
        ).to_numpy(),
    }
    if split == artifacts.OOF:
        faults["has no fold"] = (~(table["fold"] >= 0) | (table["fold"] % 1 != 0)).to_numpy()
    problems = [
        f"{image_id} {fault}" for fault, wrong in faults.items() for image_id in table.index[wrong]
    ]
    if problems:
        raise bad_list(
            f"{output / file.path} cannot be used: run {file.made_by} --overwrite", problems
        )
    return table


def _check_same(first: str, one: pd.DataFrame, second: str, other: pd.DataFrame) -> None:
    problems = []
    for run, alone in (
        (first, one.index.difference(other.index)),
        (second, other.index.difference(one.index)),
    ):
        problems += [f"{image_id}: predicted by {run} only" for image_id in alone]
    both = one.index.intersection(other.index)
    folds = one.loc[both, "fold"].fillna(-1), other.loc[both, "fold"].fillna(-1)
    moved = both[(folds[0] != folds[1]).to_numpy()]
    problems += [f"{image_id}: predicted in other folds" for image_id in moved]
    if problems:
        differ = counted(len(problems), "image differs", "images differ")
        raise bad_list(f"runs {first} and {second} cannot be blended: {differ}", problems)
