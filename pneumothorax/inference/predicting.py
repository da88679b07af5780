"""Radiographs -> overlays, masks, a table and, on request, segmentation objects.

The networks see each image exactly as stages 00 and 03 would show it to them, and masks
are made with the thresholds of stage 04. Batches are cut from the list of all files, not
of the missing ones, so that a killed and resumed call gives the results of an
undisturbed one. It does not matter here whether PyTorch or a bundle computes the maps.
"""

import functools
import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from pneumothorax import dicom, png, rle
from pneumothorax.data import raster
from pneumothorax.errors import BadInput
from pneumothorax.inference import dicom_seg, overlay, page, results
from pneumothorax.inference.reading import Listed, RadiographFile
from pneumothorax.inference.settled import Settled
from pneumothorax.masks import blending, calibration, postprocess
from pneumothorax.pipeline import atomic, records
from pneumothorax.pipeline.journal import Journal
from pneumothorax.pipeline.progress import show_progress

VERSION = 6  # raise it when results would change: earlier ones are then made again

Entry = dict[str, Any]
T = TypeVar("T")
U = TypeVar("U")


class Networks(Protocol):
    """The networks of a run: their mean over folds, and over images and mirror images."""

    @property
    def image_size(self) -> int:
        """S, the height and width of the images that they take, in pixels."""

    def maps(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """(N, S, S) uint8 -> float32 probabilities (N, S, S) of each pixel, and (N,) of each
        image being positive, or None without a classification head.
        """


class Source(NamedTuple):
    """Where networks come from: a run or a bundle."""

    settled: Settled
    computed_in: str  # the precision, and the library unless it is PyTorch
    load: Callable[[], Sequence[Networks]]  # of each of the runs in `settled`
    memory: AbstractContextManager[None]  # says what to try where memory is not enough


@dataclass(frozen=True)
class FolderTask:
    """What is written, where, and how it is computed."""

    folder: Path
    settled: Settled
    with_segmentation: bool
    batch_size: int
    computed_in: str  # as in Source

    def key(self, file: RadiographFile) -> str:
        """Everything a file's results are made from."""
        how = self.computed_in, self.with_segmentation
        return hashlib.sha256(repr((self.identity(file), how)).encode()).hexdigest()

    def identity(self, file: RadiographFile) -> str:
        """What a mask is made from, however the networks are computed."""
        made_by = VERSION, self.settled.name, self.settled.version
        return hashlib.sha256(repr((made_by, file.source, file.sha256)).encode()).hexdigest()


class DecodedFile(NamedTuple):
    """A decoded file."""

    file: RadiographFile
    pixels: np.ndarray  # (H, W) uint8
    pixel_area_mm2: float | None  # None where unknown
    spacing: str  # the tag that the area comes from
    narrow: bool  # less than a tenth of the grey range is used


def predict(
    listed: Listed, task: FolderTask, load: Callable[[], Sequence[Networks]]
) -> list[Entry]:
    """Write the missing results; files that cannot be decoded are added to `listed.rejected`.

    Args:
        load: gives the networks of each run; called only where something is missing.

    Returns rows of results.PREDICTIONS in the order of the files.
    """
    for kind in (results.overlay, results.mask, results.radiograph, results.segmentation):
        atomic.sweep((task.folder / kind("x")).parent)
    networks = functools.cache(load)
    starts = range(0, len(listed.files), task.batch_size)
    batches = [listed.files[start : start + task.batch_size] for start in starts]
    with (
        Journal(task.folder / results.JOURNAL) as journal,
        show_progress(total=len(listed.files), title="predicting") as bar,
        # Files are read and written beside the networks, in one thread: warnings are
        # switched off for all threads at once.
        ThreadPoolExecutor(1) as beside,
    ):
        read = functools.partial(_read, task=task, listed=listed, journal=journal)
        written: Future[None] | None = None
        for batch, images in zip(batches, _ahead(read, batches, beside), strict=True):
            if images:
                found = masks([image.pixels for image in images], networks(), task.settled)
                if written is not None:
                    written.result()
                written = beside.submit(_write, images, found, task, journal)
            bar.update(len(batch))
        if written is not None:
            written.result()
        return _rows(listed, task, journal)


def _ahead(function: Callable[[T], U], items: Iterable[T], pool: ThreadPoolExecutor) -> Iterator[U]:
    """function(item) of every item; that of the next one is computed beside the caller's work."""
    waiting: deque[Future[U]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > 1:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _rows(listed: Listed, task: FolderTask, journal: Journal) -> list[Entry]:
    """The rows of all files with results; notes what is odd about them in `listed`."""
    rows = []
    for file in listed.files:
        entry = journal.entries.get(file.image_id)
        if entry and entry.get("key") == task.key(file):
            rows.append(entry["row"])
            listed.narrow += [file.source] if entry["narrow"] else []
            if entry["refused"]:
                reason = f"no segmentation object: {entry['refused']}"
                listed.reject(file.source, "BAD_HEADER", reason)
    return rows


def stored_maps(
    images: Sequence[np.ndarray], networks: Networks, cache_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Probability maps (N, S, S) uint8 as stage 03 stores them, and image scores (N,).

    Args:
        images: N radiographs (H, W) uint8 at their own sizes.

    Raises BadInput where the networks give something else.
    """
    size = networks.image_size
    seen = np.stack([png.downsample(png.downsample(image, cache_size), size) for image in images])
    values, classification = networks.maps(seen)
    given = [values] if classification is None else [values, classification]
    if values.shape != seen.shape or not all(((p >= 0) & (p <= 1)).all() for p in given):
        raise BadInput(
            "the networks give values that are not finite probabilities: "
            "train the run again with 02_train.py --overwrite, or get the bundle again"
        )
    return postprocess.quantise(values), calibration.score(values.max(axis=(1, 2)), classification)


def masks(
    images: Sequence[np.ndarray], runs: Sequence[Networks], settled: Settled
) -> list[tuple[np.ndarray, float]]:
    """The mask, (H, W) uint8 of 0 and 1, and the image-level probability of each image.

    Args:
        images: radiographs (H, W) uint8 at their own sizes.
        runs: in the order of `settled.runs`.
    """
    weights = tuple(run.weight for run in settled.runs)
    maps, scores = zip(
        *(stored_maps(images, networks, settled.cache_size) for networks in runs), strict=True
    )
    p_positive = settled.calibration(np.stack(scores, axis=1) @ np.array(weights)).tolist()
    found = []
    for image, of_runs, p in zip(images, zip(*maps, strict=True), p_positive, strict=True):
        blended = blending.blend(of_runs, weights)
        found.append((postprocess.mask(blended, settled.triplet, image.shape, p), p))
    return found


def _read(
    batch: Sequence[RadiographFile], task: FolderTask, listed: Listed, journal: Journal
) -> list[DecodedFile]:
    """The decoded files of a batch; none if the results of all of them exist."""

    def all_done(files: Iterable[RadiographFile]) -> bool:
        return all(_is_done(journal.entries.get(file.image_id), task, file) for file in files)

    if all_done(batch):
        return []
    images = []
    for file in batch:
        try:
            images.append(_decode(file))
        except dicom.Rejected as error:
            listed.reject(file.source, error.code, str(error))
    # Rejected files are tried at every call: a decoder may have been installed since.
    return [] if all_done(image.file for image in images) else images


def _write(
    images: Sequence[DecodedFile],
    found: Sequence[tuple[np.ndarray, float]],
    task: FolderTask,
    journal: Journal,
) -> None:
    """Write the results of a batch and their journal entries."""
    trained_on = "phantoms" if task.settled.phantoms else "radiographs"
    for image, (mask, p) in zip(images, found, strict=True):
        files, refused = _files(image, mask, task)
        for name, data in files.items():
            atomic.write_bytes(task.folder / name, data, sync=False)
        entry = {
            "key": task.key(image.file),
            "row": _row(image, mask, p, trained_on=trained_on),
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
    run, version = task.settled.name, task.settled.version
    try:
        files[results.segmentation(image_id)] = dicom_seg.encode(
            image.file.path,
            mask,
            run=run,
            version=version,
            identity=task.identity(image.file),
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
