"""The images that one or several runs predicted: their maps, checked by hash, and their labels."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from pneumothorax import png, rle
from pneumothorax.errors import BadInput, bad_list
from pneumothorax.pipeline import artifacts


class StoredMap(NamedTuple):
    """A file of stage 03 and what it must hold."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class Image:
    """One image to post-process: each run's map, its size (H, W), its label rows (of negative and test images none)."""

    image_id: str
    stored: tuple[StoredMap, ...]
    shape: tuple[int, int]
    label_rows: tuple[str, ...]

    def maps(self) -> list[np.ndarray]:
        """(h, w) uint8 of each run. Raises BadInput where one is not the map that stage 03 wrote."""
        return [_read(*stored) for stored in self.stored]

    def truth(self) -> np.ndarray:
        """(H, W) uint8 of 0 and 1."""
        return rle.union(self.label_rows, self.shape)


class Predicted(NamedTuple):
    """One split's images in the first run's order, their folds, and what the runs think of each as a whole."""

    images: list[Image]
    fold: np.ndarray  # (N,) int: the fold whose network predicted; -1 for test images
    scores: np.ndarray  # (N, R) in [0, 1]: the classification head's probability where there is one, else the map's highest


def read(output: Path, runs: Sequence[str], split: str) -> Predicted:
    """All that the runs predicted of the split. Raises BadInput when their images differ, or the folds of these."""
    manifest = artifacts.read_table(output, artifacts.MANIFEST)
    shapes = zip(manifest["height"].tolist(), manifest["width"].tolist(), strict=True)
    shape_of = dict(zip(manifest["image_id"], shapes, strict=True))
    rows_of = artifacts.label_rows(output) if split == artifacts.OOF else {}
    tables = [_table(output, run, split, shape_of) for run in runs]
    for run, table in zip(runs[1:], tables[1:], strict=True):
        _check_same(runs[0], tables[0], run, table)
    image_ids = tables[0].index.tolist()
    digests = np.stack([table.loc[image_ids, "sha256"] for table in tables], axis=1)
    images = [
        Image(
            image_id,
            tuple(
                StoredMap(output / artifacts.Run(run).probability_map(split, image_id), digest)
                for run, digest in zip(runs, own, strict=True)
            ),
            shape_of[image_id],
            rows_of.get(image_id, ()),
        )
        for image_id, own in zip(image_ids, digests.tolist(), strict=True)
    ]
    scores = [
        table["p_classification"].fillna(table["p_max"]).loc[image_ids].to_numpy(dtype=float)
        for table in tables
    ]
    return Predicted(
        images, tables[0]["fold"].fillna(-1).to_numpy(dtype=int), np.stack(scores, axis=1)
    )


def _read(path: Path, digest: str) -> np.ndarray:
    try:
        data = path.read_bytes()
    except OSError:
        data = b""
    if hashlib.sha256(data).hexdigest() != digest:
        raise BadInput(f"{path} is not the map that 03_predict.py wrote: run it again")
    return png.decode(data, path)


def _table(output: Path, run: str, split: str, known: Collection[str]) -> pd.DataFrame:
    """The run's rows of the split by image. Raises BadInput that lists those no mask can be made of."""
    file = artifacts.Run(run).predictions
    table = artifacts.read_table(output, file)
    table = table[table["split"] == split].set_index("image_id")
    score = table["p_classification"].fillna(table["p_max"])
    faults = {
        "is no image of the manifest": ~table.index.isin(list(known)),
        "stands there twice": table.index.duplicated(),
        "has no probability from 0 to 1": ~score.between(0, 1).to_numpy(),  # NaN is none
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
    problems = [
        f"{image_id}: predicted by {first} only" for image_id in one.index.difference(other.index)
    ]
    problems += [
        f"{image_id}: predicted by {second} only" for image_id in other.index.difference(one.index)
    ]
    both = one.index.intersection(other.index)
    folds = one.loc[both, "fold"].fillna(-1), other.loc[both, "fold"].fillna(-1)
    problems += [
        f"{image_id}: predicted in other folds"
        for image_id in both[(folds[0] != folds[1]).to_numpy()]
    ]
    if problems:
        raise bad_list(
            f"runs {first} and {second} cannot be blended: {len(problems)} images differ", problems
        )
