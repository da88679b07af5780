"""Radiographs -> overlays, masks, a table and, on request, segmentation objects.

The networks see each image exactly as stages 00 and 03 would show it to them, and masks
are made with the thresholds of stage 04. Batches are cut from the list of all files, not
of the missing ones, so that a killed and resumed call gives the results of an
undisturbed one.
"""

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from pneumothorax import dicom, png, rle
from pneumothorax.compute import precisions
from pneumothorax.data import raster
from pneumothorax.data.dataset import to_network
from pneumothorax.errors import BadInput
from pneumothorax.inference import dicom_seg, overlay, page, results
from pneumothorax.inference.reading import Listed, RadiographFile
from pneumothorax.inference.settled import Settled
from pneumothorax.masks import calibration, postprocess
from pneumothorax.pipeline import atomic, records
from pneumothorax.pipeline.journal import Journal
from pneumothorax.pipeline.progress import show_progress
from pneumothorax.prediction import probability_maps
from pneumothorax.prediction.probability_maps import Predictor

VERSION = 5  # raise it when results would change: earlier ones are then made again

Entry = dict[str, Any]


@dataclass(frozen=True)
class FolderTask:
    """What is written, where, and how it is computed."""

    folder: Path
    settled: Settled
    with_segmentation: bool
    batch_size: int
    device: torch.device
    precision: str  # fp32, bf16 or fp16

    def key(self, file: RadiographFile) -> str:
        """Everything a file's results are made from."""
        run, version = self.settled.run, self.settled.version
        made_by = VERSION, run, version, self.precision, self.with_segmentation
        return hashlib.sha256(repr((made_by, file.source, file.sha256)).encode()).hexdigest()


class DecodedFile(NamedTuple):
    """A decoded file."""

    file: RadiographFile
    pixels: np.ndarray  # (H, W) uint8
    pixel_area_mm2: float | None  # None where unknown
    spacing: str  # the tag that the area comes from
    narrow: bool  # less than a tenth of the grey range is used


def predict(
    listed: Listed, task: FolderTask, load: Callable[[], Mapping[int, Predictor]]
) -> pd.DataFrame:
    """Write the missing results; files that cannot be decoded are added to `listed.rejected`.

    Args:
        load: gives the run's networks by fold; called only where something is missing.

    Returns rows of results.PREDICTIONS in the order of the files.
    """
    for kind in (results.overlay, results.mask, results.radiograph, results.segmentation):
        atomic.sweep((task.folder / kind("x")).parent)
    networks = functools.cache(load)
    rows = []
    with (
        Journal(task.folder / results.JOURNAL) as journal,
        show_progress(total=len(listed.files), title="predicting") as bar,
    ):
        for start in range(0, len(listed.files), task.batch_size):
            batch = listed.files[start : start + task.batch_size]
            if not all(_is_done(journal.entries.get(file.image_id), task, file) for file in batch):
                _predict_batch(batch, networks, task, listed, journal)
            for file in batch:
                entry = journal.entries.get(file.image_id)
                if entry and entry.get("key") == task.key(file):
                    rows.append(entry["row"])
                    listed.narrow += [file.source] if entry["narrow"] else []
                    if entry["refused"]:
                        reason = f"no segmentation object: {entry['refused']}"
                        listed.reject(file.source, "BAD_HEADER", reason)
            bar.update(len(batch))
    return pd.DataFrame(rows, columns=list(results.PREDICTIONS.columns))


def stored_maps(
    images: Sequence[np.ndarray],
    networks: Sequence[Predictor],
    cache_size: int,
    device: torch.device,
    *,
    precision: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Probability maps (N, S, S) uint8 as stage 03 stores them, and image scores (N,).

    Args:
        images: N radiographs (H, W) uint8 at their own sizes.

    Raises BadInput where the networks give values that are not finite.
    """
    size = networks[0].image_size
    seen = np.stack([png.downsample(png.downsample(image, cache_size), size) for image in images])
    batch = to_network(torch.from_numpy(seen).unsqueeze(1), device)
    with precisions.autocast(device, precision):
        maps, classification = probability_maps.probabilities(
            [one.network for one in networks], batch
        )
    values = maps[:, 0].cpu().numpy()
    if not np.isfinite(values).all():
        raise BadInput(
            "the networks give probability maps that are not finite: "
            "train the run again with 02_train.py --overwrite"
        )
    of_head = None if classification is None else classification.cpu().numpy()
    return postprocess.quantise(values), calibration.score(values.max(axis=(1, 2)), of_head)


def _predict_batch(
    batch: Sequence[RadiographFile],
    networks: Callable[[], Mapping[int, Predictor]],
    task: FolderTask,
    listed: Listed,
    journal: Journal,
) -> None:
    """Write the results of a batch and their journal entries."""
    images = []
    for file in batch:
        try:
            images.append(_decode(file))
        except dicom.Rejected as error:
            listed.reject(file.source, error.code, str(error))
    if all(
        _is_done(journal.entries.get(image.file.image_id), task, image.file) for image in images
    ):
        return  # rejected files are tried at every call: a decoder may have been installed since
    settled, radiographs = task.settled, [image.pixels for image in images]
    maps, scores = stored_maps(
        radiographs,
        list(networks().values()),
        settled.cache_size,
        task.device,
        precision=task.precision,
    )
    for image, stored, p in zip(images, maps, settled.calibration(scores).tolist(), strict=True):
        mask = postprocess.mask(stored, settled.triplet, image.pixels.shape, p)
        files, refused = _files(image, mask, task)
        for name, data in files.items():
            atomic.write_bytes(task.folder / name, data, sync=False)
        entry = {
            "key": task.key(image.file),
            "row": _row(
                image, mask, p, trained_on="phantoms" if settled.phantoms else "radiographs"
            ),
            "refused": refused,
            "narrow": image.narrow,
            "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        }
        earlier = journal.entries.get(image.file.image_id, {}).get("files", ())
        results.remove(task.folder, set(earlier) - set(files))
        journal.append(image.file.image_id, entry)


def _decode(file: RadiographFile) -> DecodedFile:
    if not file.is_dicom:
        radiograph = raster.read(file.path)
        return DecodedFile(file, radiograph.image, None, "", radiograph.is_narrow)
    header, dataset = dicom.open_header(file.path)
    if header.image_id != file.image_id:
        raise dicom.Rejected("IO", "the file changed while it was read")
    radiograph, area = dicom.decode(header, dataset), dicom.pixel_area_mm2(dataset)
    return DecodedFile(file, radiograph.image, *area, radiograph.is_narrow)


def _files(image: DecodedFile, mask: np.ndarray, task: FolderTask) -> tuple[dict[str, bytes], str]:
    """Path below the folder -> bytes, and why there is no segmentation object, or ""."""
    image_id = image.file.image_id
    phantoms = task.settled.phantoms
    drawn = overlay.draw(image.pixels, mask, caution=overlay.PHANTOMS if phantoms else "")
    files = {
        results.overlay(image_id): png.encode_small(drawn),
        results.mask(image_id): png.encode_small(mask * np.uint8(255)),
        results.radiograph(image_id): page.radiograph(image.pixels),
    }
    if not task.with_segmentation:
        return files, ""
    if not image.file.is_dicom:
        return files, "a PNG or JPEG file names no patient and no study to refer to"
    run, version = task.settled.run, task.settled.version
    try:
        files[results.segmentation(image_id)] = dicom_seg.encode(
            image.file.path,
            mask,
            run=run,
            version=version,
            identity=task.key(image.file),
            phantoms=phantoms,
        )
    except dicom_seg.Refused as error:
        return files, str(error)
    return files, ""


def _row(image: DecodedFile, mask: np.ndarray, p_positive: float, *, trained_on: str) -> Entry:
    """A row of results.PREDICTIONS."""
    height, width = mask.shape
    area_px = int(np.count_nonzero(mask))
    pixel_area = image.pixel_area_mm2
    return {
        "image_id": image.file.image_id,
        "source": image.file.source,
        "height": height,
        "width": width,
        "p_positive": p_positive,
        "area_px": area_px,
        "area_mm2": "" if pixel_area is None else round(area_px * pixel_area, 2),
        "spacing": image.spacing,
        "not_a_radiograph": image.file.not_a_radiograph,
        "trained_on": trained_on,
        "rle": rle.encode_checked(mask, image.file.image_id),
    }


def _is_done(entry: Entry | None, task: FolderTask, file: RadiographFile) -> bool:
    """Whether all results of the file exist, made from its current bytes and this run."""
    if entry is None or entry.get("key") != task.key(file):
        return False
    paths = ((task.folder / name, digest) for name, digest in entry["files"].items())
    return all(path.is_file() and records.sha256(path) == digest for path, digest in paths)
