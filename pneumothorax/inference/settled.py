"""What stages 00 to 04 settled: runs and their folds, thresholds, calibration and image size."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from pneumothorax.data import cache
from pneumothorax.errors import BadInput
from pneumothorax.masks.calibration import Calibration
from pneumothorax.masks.postprocess import Triplet
from pneumothorax.pipeline import artifacts, lineage, records


class WeightedRun(NamedTuple):
    """A run that predicts."""

    name: str
    weight: float  # of its probability maps, above 0; together 1
    folds: tuple[int, ...]  # whose networks predict


@dataclass(frozen=True)
class Settled:
    """What radiographs outside the data set are predicted with."""

    name: str  # of the run, or of the submission that blends several
    runs: tuple[WeightedRun, ...]
    triplet: Triplet  # the final thresholds
    calibration: Calibration  # the final one
    cache_size: int  # height and width of the cached images, in pixels
    version: str  # hash of all of that, of the networks' weights and of `phantoms`
    phantoms: bool  # a network was trained on phantoms, or started from one that was
    trained_on: frozenset[str] = frozenset()  # ids of the training images, if they are known

    @property
    def warning(self) -> str:
        """That the networks were trained on phantoms; "" if they were not."""
        if not self.phantoms:
            return ""
        return (
            f"warning: the networks of {self.name} were trained on phantoms, the built-in demo "
            "data: what they find on a radiograph means nothing"
        )

    def of_int8_weights(self) -> "Settled":
        """The same for networks with weights of 8 bits, which may give other masks."""
        version = hashlib.sha256(f"{self.version} int8".encode()).hexdigest()[:16]
        return replace(self, version=version)


def read(output: Path, name: str) -> Settled:
    """What was settled for a run, or for a submission by its own name, such as a blend.

    Raises BadInput, naming the command to run, if thresholds are missing or stale.
    """
    record = artifacts.Submission(name).record
    path = output / record.path
    if not path.is_file():
        raise BadInput(
            f"{name} has no thresholds yet ({path} does not exist): "
            f"run python 04_submit.py --run {name}"
        )
    runs = list(lineage.runs_of(output, name))
    if len(runs) == 1 and runs != [name] and (output / artifacts.Run(name).folder).exists():
        raise BadInput(
            f"{path} holds the thresholds of {runs[0]}: run python 04_submit.py --run {name}"
        )
    body = lineage.submitted(output, name)
    try:
        triplet, calibration = Triplet(**body["final"]), Calibration(**body["calibration"]["final"])
        weights = dict(zip(runs, body["weights"]["final"], strict=True))
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{path} is damaged: run {record.made_by} --overwrite") from error
    weighted = [_weighted(output, run, weight) for run, weight in weights.items() if weight > 0]
    phantoms = any(
        records.read(output, artifacts.Run(run.name).fold(fold).trained).get("phantoms")
        for run in weighted
        for fold in run.folds
    )
    cache_size = cache.size(output)
    checkpoints = [_checkpoints(output, run) for run in weighted]
    made_from = repr((weighted, checkpoints, triplet, calibration, cache_size, phantoms))
    return Settled(
        name,
        tuple(weighted),
        triplet,
        calibration,
        cache_size,
        version=hashlib.sha256(made_from.encode()).hexdigest()[:16],
        phantoms=phantoms,
        trained_on=frozenset(artifacts.training_rows(output)["image_id"]),
    )


def _weighted(output: Path, run: str, weight: float) -> WeightedRun:
    folds = records.read(output, artifacts.Run(run).predicted)["settings"]["folds"]
    return WeightedRun(run, float(weight), tuple(folds))


def _checkpoints(output: Path, run: WeightedRun) -> list[str]:
    """The hashes of the run's weights."""
    inputs = records.read(output, artifacts.Run(run.name).predicted)["inputs"]
    return [inputs[artifacts.Run(run.name).fold(fold).best_weights] for fold in run.folds]
