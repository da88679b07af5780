"""What each stage's results were made from, checked back to the images.

One function per stage. Each requires its predecessor's record, so that every later
stage notices a change anywhere (a label, an image, the folds, a network) and names the
command to run.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pneumothorax.errors import BadInput
from pneumothorax.pipeline import artifacts, records
from pneumothorax.pipeline.artifacts import TEST, TEST_IMAGES, TRAINING_IMAGES

Hashes = dict[str, str]


def prepared(output: Path) -> dict[str, Any]:
    """Stage 00's record, with the facts TRAINING_IMAGES and TEST_IMAGES."""
    record = records.require(output, artifacts.PREPARED)
    if not {TRAINING_IMAGES, TEST_IMAGES} <= set(record):
        raise BadInput(
            f"{output / artifacts.PREPARED.path} is damaged: run {artifacts.PREPARED.made_by} again"
        )
    return record


def fold_inputs(output: Path) -> Hashes:
    """What stage 01's tables are made from; the folds depend on the training images alone."""
    record = prepared(output)
    return {images: record[images] for images in (TRAINING_IMAGES, TEST_IMAGES)}


def folded(output: Path) -> dict[str, Any]:
    """Stage 01's record; test images may have changed since."""
    return records.require(output, artifacts.FOLDED, _training_images(output))


def train_inputs(output: Path) -> Hashes:
    """What a network was trained on; checkpoints carry it."""
    return {"folds": folded(output)["outputs"][artifacts.FOLDS.path], **_training_images(output)}


def trained(output: Path, run: str, fold: int) -> dict[str, Any]:
    """Stage 02's record of a fold.

    Raises BadInput if the weights of another run that it started from have changed. It
    does not matter if they no longer exist.
    """
    record = records.require(output, artifacts.Run(run).fold(fold).trained, train_inputs(output))
    for path, digest in record["inputs"].items():
        if not path.startswith("runs/") or not (output / path).is_file():
            continue
        if records.sha256(output / path) != digest:
            command = artifacts.Run(run).fold(fold).trained.made_by
            raise BadInput(f"{path} changed since {command} ran: run {command} --overwrite")
        trained(output, Path(path).parts[1], fold)  # and the weights that run started from
    return record


def weights(output: Path, run: str, folds: list[int]) -> Hashes:
    """The best checkpoints of a run's folds."""
    found = {}
    for fold in folds:
        path = artifacts.Run(run).fold(fold).best_weights
        found[path] = trained(output, run, fold)["outputs"][path]
    return found


def predict_inputs(output: Path, run: str, folds: list[int], splits: list[str]) -> Hashes:
    tested = {TEST_IMAGES: prepared(output)[TEST_IMAGES]} if TEST in splits else {}
    return {**weights(output, run, folds), **tested, **train_inputs(output)}


def predicted(output: Path, run: str) -> dict[str, Any]:
    settings = records.read(output, artifacts.Run(run).predicted)["settings"]
    current = predict_inputs(output, run, settings["folds"], settings["splits"])
    return records.require(output, artifacts.Run(run).predicted, current)


def has_test_labels(output: Path) -> bool:
    """Whether stage 00 found labels of test images."""
    return artifacts.TEST_LABELS.path in prepared(output)["outputs"]


def submit_inputs(output: Path, runs: Iterable[str]) -> Hashes:
    made_from = {
        f"predictions of {run}": predicted(output, run)["outputs"][
            artifacts.Run(run).predictions.path
        ]
        for run in runs
    }
    tables = prepared(output)["outputs"]
    if artifacts.SAMPLE_SUBMISSION in tables:
        made_from["sample submission"] = tables[artifacts.SAMPLE_SUBMISSION]
    if has_test_labels(output):
        made_from["test labels"] = tables[artifacts.TEST_LABELS.path]
        current = records.require(output, artifacts.FOLDED, fold_inputs(output))
        made_from["test patients"] = current["outputs"].get(artifacts.TEST_PATIENTS.path, "")
    return {**made_from, **train_inputs(output)}


def submitted(output: Path, name: str) -> dict[str, Any]:
    return records.require(
        output, artifacts.Submission(name).record, submit_inputs(output, runs_of(output, name))
    )


def runs_of(output: Path, name: str) -> dict[str, float | None]:
    """A submission's runs, each with its given weight, or None if that was fitted."""
    record = artifacts.Submission(name).record
    runs = records.read(output, record)["settings"].get("runs")
    if not runs or not isinstance(runs, dict):
        raise BadInput(
            f"{output / record.path} is damaged or from an earlier version: "
            f"run {record.made_by} again"
        )
    return runs


def settings_of(output: Path, name: str) -> dict[str, Any]:
    """A submission's settings; {} without one. Raises BadInput if it is damaged."""
    record = artifacts.Submission(name).record
    path = output / record.path
    if not path.exists():
        return {}
    try:
        settings: dict[str, Any] = records.read(output, record)["settings"]
    except BadInput as error:
        again = f"python 04_submit.py --name {name} with --run or --runs and its other flags"
        raise BadInput(f"{path} is damaged, so its settings are lost: run {again}") from error
    return settings


def _training_images(output: Path) -> Hashes:
    return {TRAINING_IMAGES: prepared(output)[TRAINING_IMAGES]}
