"""What stages 00 to 04 settled for a run: its folds, thresholds, calibration and image size."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pneumothorax.data import cache
from pneumothorax.errors import BadInput
from pneumothorax.masks.calibration import Calibration
from pneumothorax.masks.postprocess import Triplet
from pneumothorax.pipeline import artifacts, lineage, records


@dataclass(frozen=True)
class Settled:
    """What radiographs outside the data set are predicted with."""

    run: str
    folds: list[int]  # whose networks predict
    triplet: Triplet  # the final thresholds
    calibration: Calibration  # the final one
    cache_size: int  # height and width of the cached images, in pixels
    version: str  # hash of all of that, of the networks' weights and of `phantoms`
    trained_on: frozenset[str]  # ids of the training images
    phantoms: bool  # a network was trained on phantoms, or started from one that was

    @property
    def warning(self) -> str:
        """That the networks were trained on phantoms; "" if they were not."""
        if not self.phantoms:
            return ""
        return (
            f"warning: the networks of run {self.run} were trained on phantoms, the built-in demo "
            "data: what they find on a radiograph means nothing"
        )


def read(output: Path, run: str) -> Settled:
    """Raises BadInput, naming the command to run, if thresholds are missing or stale."""
    record = artifacts.Submission(run).record
    command = f"python 04_submit.py --run {run}"
    path = output / record.path
    if not path.is_file():
        raise BadInput(f"run {run} has no thresholds yet ({path} does not exist): run {command}")
    runs = list(lineage.runs_of(output, run))
    if len(runs) > 1:
        raise BadInput(f"{run} is a blend: predict with one of its runs ({', '.join(runs)})")
    if runs != [run]:
        raise BadInput(f"{path} holds the thresholds of {', '.join(runs)}: run {command}")
    body = lineage.submitted(output, run)
    try:
        triplet, calibration = Triplet(**body["final"]), Calibration(**body["calibration"]["final"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{path} is damaged: run {command} --overwrite") from error
    predicted = records.read(output, artifacts.Run(run).predicted)
    folds = predicted["settings"]["folds"]
    weights = [predicted["inputs"][artifacts.Run(run).fold(fold).best_weights] for fold in folds]
    trained = [records.read(output, artifacts.Run(run).fold(fold).trained) for fold in folds]
    phantoms = any(record.get("phantoms") for record in trained)
    cache_size = cache.size(output)
    made_from = repr((weights, triplet, calibration, cache_size, phantoms))
    return Settled(
        run,
        folds,
        triplet,
        calibration,
        cache_size,
        version=hashlib.sha256(made_from.encode()).hexdigest()[:16],
        trained_on=frozenset(artifacts.training_rows(output)["image_id"]),
        phantoms=phantoms,
    )
