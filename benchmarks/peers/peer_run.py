"""A peer's results as a run below output/runs/, in the form in which stages 02 and 03 leave ours.

So stage 04 fits and scores its thresholds as for our networks, and stage 05 compares it with
them. The records say which peer it was, its versions and its minutes.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pneumothorax import png
from pneumothorax.data.dataset import RadiographDataset
from pneumothorax.errors import BadInput
from pneumothorax.masks import evaluation, postprocess, predicted
from pneumothorax.masks.postprocess import Triplet
from pneumothorax.pipeline import artifacts, atomic, lineage, records
from pneumothorax.pipeline.records import Record
from pneumothorax.prediction import splits
from pneumothorax.scores import bootstrap, comparison, per_image

COMMAND = "python -m benchmarks.peers"
# How a peer's own users make masks: a probability of 0.5, the same as the likelier of two classes.
OWN_RULE = Triplet(top=0.5, min_area=0, bottom=0.5)


class Trained(NamedTuple):
    """One fold of a peer.

    Args:
        history: rows with some of artifacts.HISTORY_COLUMNS, one per epoch.
        maps: id of an image that was held out, its (S, S) probabilities in [0, 1].
        facts: for the fold's record: `device` and `peak_memory_mib`.
    """

    history: list[dict[str, Any]]
    maps: Iterable[tuple[str, np.ndarray]]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Radiographs:
    """The training images of stage 00 with the folds of stage 01.

    Args:
        rows: manifest rows with `fold`.
        size: height and width of the images that the peer gets.
    """

    output: Path
    rows: pd.DataFrame
    cache_size: int
    size: int

    @property
    def folds(self) -> list[int]:
        return sorted(set(self.rows["fold"].tolist()))

    def read(self, rows: pd.DataFrame) -> Iterable[tuple[str, np.ndarray, np.ndarray]]:
        """image id, image (S, S) uint8 and mask (S, S) uint8 of 0 and 1 of some `rows`."""
        images = RadiographDataset(
            self.output, rows, cache_size=self.cache_size, image_size=self.size
        )
        for position, image_id in enumerate(rows["image_id"]):
            yield image_id, *images.read(position)


def load_radiographs(output: Path, size: int) -> Radiographs:
    """Raises BadInput without stages 00 and 01, or if cached images are damaged."""
    n_folds = lineage.folded(output)["settings"]["folds"]
    images = splits.rows(output, range(n_folds), [artifacts.OOF])
    cache_size = splits.checked_cache(output, images, workers=2)
    return Radiographs(output, images[artifacts.OOF].reset_index(drop=True), cache_size, size)


@dataclass(frozen=True)
class PeerRun:
    """The run `name`; `settings` say what made it: peer, versions, minutes, seed."""

    output: Path
    name: str
    settings: dict[str, Any]

    def claim(self) -> None:
        """Raises BadInput if stage 02 has made a run of this name."""
        config = self.output / artifacts.Run(self.name).config
        if config.exists():
            raise BadInput(f"{config}: run {self.name} is one of ours, choose another --run")

    def weights(self, fold: int) -> Path:
        """Where the peer saves the weights of a fold."""
        path = self.output / artifacts.Run(self.name).fold(fold).best_weights
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def is_finished(self, fold: int) -> bool:
        inputs = lineage.train_inputs(self.output)
        record = artifacts.Run(self.name).fold(fold).trained
        return records.is_current(self.output, record, settings=self.settings, inputs=inputs)

    def add(self, fold: int, trained: Trained) -> None:
        """Write the fold's history, probability maps and record; its weights are there."""
        files = artifacts.Run(self.name).fold(fold)
        history = pd.DataFrame(trained.history).reindex(columns=list(artifacts.HISTORY_COLUMNS))
        artifacts.write_table(self.output, files.history, history)
        predictions = [self._write_map(fold, *one) for one in trained.maps]
        maps = [self._map(row["image_id"]) for row in predictions]
        records.write(
            self.output,
            Record(files.trained.path, COMMAND),
            settings=self.settings,
            inputs=lineage.train_inputs(self.output),
            outputs=[files.best_weights, files.history.path, *maps],
            seconds=float(history["seconds"].sum()),
            predictions=predictions,
            **trained.facts,
        )

    def seal(self, folds: list[int]) -> None:
        """Write the predictions table of all folds, and its record."""
        found = [self.record(fold)["predictions"] for fold in folds]
        table = pd.DataFrame([row for rows in found for row in rows])
        settings = {**self.settings, "splits": [artifacts.OOF], "folds": folds}
        inputs = lineage.predict_inputs(self.output, self.name, folds, [artifacts.OOF])
        splits.seal(self.output, self.name, table, {"settings": settings, "inputs": inputs})

    def record(self, fold: int) -> dict[str, Any]:
        return records.read(self.output, artifacts.Run(self.name).fold(fold).trained)

    def scores_by_own_rule(self, seed: int) -> pd.DataFrame:
        """score, value, low, high of the masks that the peer's users would submit.

        95 % intervals over patients; the row "gain" is SIIM Dice above the all-empty
        baseline, "called_positive" the share of images whose mask is not empty.
        """
        images = predicted.read(self.output, [self.name], artifacts.OOF)
        rule = evaluation.Rule(weights=(1.0,), triplet=OWN_RULE, p_positive=1.0)
        rows = [evaluation.compare(image, [rule])[0] for image in images.images]
        frame = pd.DataFrame(rows).assign(fold=images.fold, p_positive=images.scores[:, 0])
        manifest, folds = (
            artifacts.read_table(self.output, table)
            for table in (artifacts.MANIFEST, artifacts.FOLDS)
        )
        frame = per_image.table(frame, manifest, folds, self.name)
        names = ["siim_dice", "positive_dice", "auc"]
        table = bootstrap.intervals(frame, names, seed=seed)
        gain = comparison.paired(frame, per_image.all_empty(frame), ["siim_dice"], seed=seed)
        gain = gain.rename(columns={"difference": "value"}).assign(score="gain")[list(table)]
        called = {"score": "called_positive", "value": (frame["predicted_px"] > 0).mean()}
        return pd.concat([table, gain, pd.DataFrame([called])], ignore_index=True)

    def _map(self, image_id: str) -> str:
        return artifacts.Run(self.name).probability_map(artifacts.OOF, image_id)

    def _write_map(self, fold: int, image_id: str, probabilities: np.ndarray) -> dict[str, Any]:
        """Write one map as stage 03 does; its row of the predictions table."""
        data = png.encode_small(postprocess.quantise(probabilities))
        atomic.write_bytes(self.output / self._map(image_id), data, sync=False)
        return {
            "image_id": image_id,
            "split": artifacts.OOF,
            "fold": fold,
            "p_max": float(probabilities.max()),
            "p_classification": "",
            "sha256": hashlib.sha256(data).hexdigest(),
        }
