"""DICOM files that no stage has prepared -> overlay, mask, a row of numbers and, if asked for, a segmentation object.

The networks see each image exactly as stages 00 and 03 would show it to them, and the mask is made with the thresholds
that stage 04 settled. Batches are cut from the list of files, not from what is left to do, and so the results of a run
that was killed and started again are those of an undisturbed one.
"""

import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from pneumothorax import dicom, png, rle
from pneumothorax.compute import runtime
from pneumothorax.data.dataset import to_network
from pneumothorax.errors import BadInput
from pneumothorax.inference import dicom_seg, overlay
from pneumothorax.inference.reading import DicomFile, Listed
from pneumothorax.masks import postprocess
from pneumothorax.masks.calibration import Calibration
from pneumothorax.masks.postprocess import Triplet
from pneumothorax.pipeline import artifacts, atomic, lineage, records
from pneumothorax.pipeline.journal import Journal
from pneumothorax.prediction import probability_maps
from pneumothorax.prediction.probability_maps import Predictor

VERSION = (
    1  # raise it whenever a result would come out differently: earlier ones are then made again
)

Entry = dict[str, Any]


@dataclass(frozen=True)
class Settled:
    """What stages 00 to 04 settled for a run: its networks' folds, thresholds, calibration, the size of the cache.

    Args:
        trained_on: ids of the training images.
    """

    run: str
    folds: list[int]
    triplet: Triplet
    calibration: Calibration
    cache_size: int
    version: str  # hash of all that and of the networks
    trained_on: frozenset[str]


@dataclass(frozen=True)
class Task:
    """Where results go, and which."""

    folder: Path
    settled: Settled
    with_segmentation: bool
    batch_size: int
    device: torch.device
    bf16: bool

    def key(self, file: DicomFile) -> str:
        """Everything a file's results are made from."""
        made_by = VERSION, self.settled.run, self.settled.version, self.bf16, self.with_segmentation
        return hashlib.sha256(repr((made_by, file.source, file.sha256)).encode()).hexdigest()


class Image(NamedTuple):
    """A decoded file: (H, W) uint8, square millimetres of a pixel (None where unknown) and the tag that says so."""

    file: DicomFile
    pixels: np.ndarray
    pixel_area_mm2: float | None
    spacing: str


def settled(output: Path, run: str) -> Settled:
    """Raises BadInput, naming the command to run, where the run has no thresholds or they are out of date."""
    record = artifacts.Submission(run).record
    command = f"python 04_submit.py --run {run}"
    path = output / record.path
    if not path.is_file():
        raise BadInput(f"run {run} has no thresholds yet ({path} does not exist): {command}")
    others = list(lineage.runs_of(output, run))
    if len(others) > 1:
        raise BadInput(
            f"{run} is a blend of {', '.join(others)}: predict DICOM files with one of them"
        )
    if others != [run]:
        raise BadInput(f"{path} holds the thresholds of {', '.join(others)}: {command}")
    body = lineage.submitted(output, run)
    try:
        triplet, calibration = Triplet(**body["final"]), Calibration(**body["calibration"]["final"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{path} is damaged: {command} --overwrite") from error
    predicted = records.read(output, artifacts.Run(run).predicted)
    folds = predicted["settings"]["folds"]
    weights = [predicted["inputs"][artifacts.Run(run).fold(fold).best_weights] for fold in folds]
    cache_size = int(lineage.prepared(output)["settings"]["size"])
    version = hashlib.sha256(
        repr((weights, triplet, calibration, cache_size)).encode()
    ).hexdigest()[:16]
    trained_on = frozenset(artifacts.training_rows(output)["image_id"])
    return Settled(run, folds, triplet, calibration, cache_size, version, trained_on)


def predict(listed: Listed, task: Task, load: Callable[[], Sequence[Predictor]]) -> pd.DataFrame:
    """Write the results of every file that has none yet; files that cannot be decoded join `listed.rejected`.

    Args:
        load: gives the run's networks; called where there is something to do.

    Returns artifacts.DICOM_PREDICTIONS rows in the order of the files.
    """
    for kind in (artifacts.dicom_overlay, artifacts.dicom_mask, artifacts.dicom_segmentation):
        atomic.sweep((task.folder / kind("x")).parent)
    networks = functools.cache(load)
    rows = []
    with (
        Journal(artifacts.dicom_journal(task.folder)) as journal,
        tqdm(total=len(listed.files), unit="image") as bar,
    ):
        for start in range(0, len(listed.files), task.batch_size):
            batch = listed.files[start : start + task.batch_size]
            if not all(_is_done(journal.entries.get(file.image_id), task, file) for file in batch):
                _predict_batch(batch, networks, task, listed, journal)
            for file in batch:
                entry = journal.entries.get(file.image_id)
                if entry and entry.get("key") == task.key(file):
                    rows.append(entry["row"])
                    if entry["refused"]:
                        listed.reject(
                            file.source, "BAD_HEADER", f"no segmentation object: {entry['refused']}"
                        )
            bar.update(len(batch))
    return pd.DataFrame(rows, columns=list(artifacts.DICOM_PREDICTIONS.columns))


def forget(folder: Path) -> None:
    """Remove the results that earlier calls wrote to the folder, and nothing else."""
    with Journal(artifacts.dicom_journal(folder)) as journal:
        for entry in journal.entries.values():
            _remove(folder, entry.get("files", ()))
    artifacts.dicom_journal(folder).unlink()


def _remove(folder: Path, names: Iterable[str]) -> None:
    """Files of the folder, by the names in its journal: whatever stands there, nothing outside is touched."""
    for name in names:
        if (folder / name).resolve().is_relative_to(folder.resolve()):
            (folder / name).unlink(missing_ok=True)


def of_earlier_calls(folder: Path, listed: Listed) -> int:
    """How many images the folder has results of that are not among the files."""
    with Journal(artifacts.dicom_journal(folder)) as journal:
        return len(set(journal.entries) - {file.image_id for file in listed.files})


def stored_maps(
    images: Sequence[np.ndarray],
    networks: Sequence[Predictor],
    cache_size: int,
    device: torch.device,
    *,
    bf16: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Native images (H, W) uint8 -> their maps as stage 03 stores them, (N, S, S) uint8, and their scores (N,).

    Raises BadInput where the networks give something else than numbers.
    """
    size = networks[0].image_size
    seen = np.stack([png.downsample(png.downsample(image, cache_size), size) for image in images])
    batch = to_network(torch.from_numpy(seen).unsqueeze(1), device)
    with runtime.autocast(device, enabled=bf16):
        maps, classification = probability_maps.probabilities(
            [one.network for one in networks], batch
        )
    values = maps[:, 0].cpu().numpy()
    if not np.isfinite(values).all():
        raise BadInput("the networks give maps that are not finite numbers: train the run again")
    scores = values.max(axis=(1, 2)) if classification is None else classification.cpu().numpy()
    return postprocess.quantise(values), scores


def _predict_batch(
    batch: Sequence[DicomFile],
    networks: Callable[[], Sequence[Predictor]],
    task: Task,
    listed: Listed,
    journal: Journal,
) -> None:
    images = []
    for file in batch:
        try:
            images.append(_decode(file))
        except dicom.Rejected as error:
            listed.reject(file.source, error.code, str(error))
    if all(
        _is_done(journal.entries.get(image.file.image_id), task, image.file) for image in images
    ):
        return  # what cannot be decoded is tried each time: another decoder may be installed today
    settled, radiographs = task.settled, [image.pixels for image in images]
    maps, scores = stored_maps(
        radiographs, networks(), settled.cache_size, task.device, bf16=task.bf16
    )
    for image, stored, p in zip(images, maps, settled.calibration(scores).tolist(), strict=True):
        mask = postprocess.mask(stored, settled.triplet, image.pixels.shape, p)
        files, refused = _files(image, mask, task)
        for name, data in files.items():
            atomic.write_bytes(task.folder / name, data, sync=False)
        entry = {
            "key": task.key(image.file),
            "row": _row(image, mask, p),
            "refused": refused,
            "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        }
        earlier = journal.entries.get(image.file.image_id, {}).get("files", ())
        _remove(task.folder, set(earlier) - set(files))
        journal.append(image.file.image_id, entry)


def _decode(file: DicomFile) -> Image:
    header, dataset = dicom.open_header(file.path)
    if header.image_id != file.image_id:
        raise dicom.Rejected("IO", "the file changed while it was read")
    return Image(file, dicom.decode(header, dataset).image, *dicom.pixel_area_mm2(dataset))


def _files(image: Image, mask: np.ndarray, task: Task) -> tuple[dict[str, bytes], str]:
    """The results by their path below the folder, and why there is no segmentation object where one was asked for."""
    image_id = image.file.image_id
    files = {
        artifacts.dicom_overlay(image_id): png.encode_small(overlay.draw(image.pixels, mask)),
        artifacts.dicom_mask(image_id): png.encode_small(mask * np.uint8(255)),
    }
    if not task.with_segmentation:
        return files, ""
    run, version = task.settled.run, task.settled.version
    try:
        files[artifacts.dicom_segmentation(image_id)] = dicom_seg.encode(
            image.file.path, mask, run=run, version=version, identity=task.key(image.file)
        )
    except dicom_seg.Refused as error:
        return files, str(error)
    return files, ""


def _row(image: Image, mask: np.ndarray, p_positive: float) -> Entry:
    """A row of artifacts.DICOM_PREDICTIONS. RuntimeError when the run lengths do not decode to the mask again."""
    text = rle.encode(mask)
    if not np.array_equal(rle.decode(text, mask.shape), mask):
        raise RuntimeError(f"{image.file.image_id}: the run lengths do not decode to the mask")
    area_px = int(np.count_nonzero(mask))
    return {
        "image_id": image.file.image_id,
        "source": image.file.source,
        "height": mask.shape[0],
        "width": mask.shape[1],
        "p_positive": p_positive,
        "area_px": area_px,
        "area_mm2": ""
        if image.pixel_area_mm2 is None
        else round(area_px * image.pixel_area_mm2, 2),
        "spacing": image.spacing,
        "rle": text,
    }


def _is_done(entry: Entry | None, task: Task, file: DicomFile) -> bool:
    if entry is None or entry.get("key") != task.key(file):
        return False
    paths = ((task.folder / name, digest) for name, digest in entry["files"].items())
    return all(path.is_file() and records.sha256(path) == digest for path, digest in paths)
