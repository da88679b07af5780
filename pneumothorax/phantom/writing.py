"""The built-in demo data: drawn chest radiographs written as real files in the layout of the SIIM-ACR competition.

Writes below --to (a folder that does not exist yet, or is empty)
    dicom-images-train/<study>/<series>/<sop>.dcm   training images, and a few without a label
    train-rle.csv                                   their labels, spaced as in Kaggle's file
    stage_2_images/ID_xxxxxxxxx.dcm                 test images
    stage_2_sample_submission.csv                   the test images' ids
    phantoms.txt                                says what they are; stage 00 tells the report
"""

import io
import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import joblib
import numpy as np
from pydicom import config as pydicom_config
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, JPEGBaseline8Bit, SecondaryCaptureImageStorage
from tqdm import tqdm

from pneumothorax import rle
from pneumothorax.data import discovery
from pneumothorax.errors import BadInput
from pneumothorax.phantom.radiograph import draw

POSITIVE_SHARE = 0.3
IMAGES_PER_PATIENT = (1, 1, 2, 2, 3, 4)  # drawn from these
DOUBLE_READING = 5  # of so many positives, one was outlined by two readers whose rows overlap
JPEG_QUALITY = 90
TRAIN_FOLDER = "dicom-images-train"
TEST_FOLDER = "stage_2_images"
IMPLEMENTATION_UID = UID("2.25.297862417340984261587406295134870618375")


@dataclass(frozen=True)
class Patient:
    """An invented person; `number` seeds the anatomy."""

    number: int
    identifier: str
    sex: str
    age: int


@dataclass(frozen=True)
class Radiograph:
    """One file to write: where, whose, and what is on it."""

    path: Path
    image_id: str
    study_uid: str
    series_uid: str
    sop_uid: str
    patient: Patient
    anonymous: bool
    seed: int
    size: int
    positive: bool
    double_reading: bool


@dataclass(frozen=True)
class Written:
    """What a data set holds."""

    folder: Path
    train_images: int
    positive_images: int
    label_rows: int
    patients: int
    test_images: int
    unlabelled_images: int


def write_dataset(
    folder: Path,
    *,
    train_images: int = 240,
    test_images: int = 60,
    unlabelled_images: int = 3,
    seed: int = 42,
    size: int = 1024,
    workers: int | None = None,
) -> Written:
    """Writes a whole data set, or nothing: it is built beside `folder` and renamed at the end.

    The same numbers and seed give the same bytes for any number of workers (default: all cores this process
    may use). Raises BadInput when `folder` already holds something.
    """
    folder = Path(folder)
    _require_room(folder)
    _require_numbers(train_images, test_images, unlabelled_images, size)
    train, unlabelled, test = _plan(
        train_images, unlabelled_images, test_images, seed=seed, size=size
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.parent / f".{folder.name}.partial-{os.getpid()}"
    partial.mkdir()
    try:
        rows = _write_radiographs(
            partial, [*train, *unlabelled, *test], workers or joblib.cpu_count()
        )
        _write_labels(partial / "train-rle.csv", train, rows[: len(train)])
        _write_sample_submission(partial / "stage_2_sample_submission.csv", test)
        note = "Drawn chests in real DICOM files: demo data, nobody's radiographs.\n"
        (partial / discovery.PHANTOM_NOTE).write_text(note, encoding="utf-8")
        if folder.exists():
            folder.rmdir()  # empty: a rename onto an existing folder fails on Windows
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return Written(
        folder=folder,
        train_images=len(train),
        positive_images=sum(radiograph.positive for radiograph in train),
        label_rows=sum(len(texts) for texts in rows[: len(train)]),
        patients=len({radiograph.patient.number for radiograph in train}),
        test_images=len(test),
        unlabelled_images=len(unlabelled),
    )


def _require_room(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder} is a file: name a folder to write the demo data to")
    if folder.is_dir() and any(folder.iterdir()):
        raise BadInput(
            f"{folder} is not empty: nothing was written; remove it yourself or name another folder"
        )


def _require_numbers(
    train_images: int, test_images: int, unlabelled_images: int, size: int
) -> None:
    if train_images < 1 or test_images < 0 or unlabelled_images < 0:
        raise BadInput(
            f"{train_images} training, {test_images} test, {unlabelled_images} unlabelled images: too few"
        )
    if size < 64 or size % 2:
        raise BadInput(
            f"the radiograph's side must be an even number of pixels, at least 64, got {size}"
        )


def _plan(
    train_images: int, unlabelled_images: int, test_images: int, *, seed: int, size: int
) -> tuple[list[Radiograph], list[Radiograph], list[Radiograph]]:
    """Every radiograph of the data set, before any is drawn: training (sorted by image id), unlabelled, test."""
    rng = np.random.default_rng([seed, 0])
    taken: set[int] = set()

    def radiographs(n_images: int, *, test: bool) -> list[Radiograph]:
        positive = _positives(rng, n_images)
        rank = np.cumsum(positive)
        return [
            _radiograph(
                rng,
                patient,
                size=size,
                test=test,
                positive=bool(positive[index]),
                double_reading=bool(rank[index] % DOUBLE_READING == 1),
            )
            for index, patient in enumerate(_patients(rng, n_images, taken))
        ]

    train = sorted(
        radiographs(train_images, test=False), key=lambda radiograph: radiograph.image_id
    )
    return train, radiographs(unlabelled_images, test=False), radiographs(test_images, test=True)


def _positives(rng: np.random.Generator, n_images: int) -> np.ndarray:
    """(n_images,) bool, POSITIVE_SHARE of them true, in random order."""
    return rng.permutation(n_images) < round(POSITIVE_SHARE * n_images)


def _patients(rng: np.random.Generator, n_images: int, taken: set[int]) -> list[Patient]:
    """The patient of each image: neighbours in the list are often the same person. Adds to `taken`."""
    patients: list[Patient] = []
    while len(patients) < n_images:
        number = int(rng.integers(2**31))
        if number in taken:
            continue
        taken.add(number)
        identifier = str(uuid.UUID(bytes=rng.bytes(16), version=4))
        patient = Patient(
            number, identifier, sex=str(rng.choice(["M", "F"])), age=int(rng.integers(18, 88))
        )
        patients += [patient] * int(rng.choice(IMAGES_PER_PATIENT))
    return patients[:n_images]


def _radiograph(
    rng: np.random.Generator,
    patient: Patient,
    *,
    size: int,
    test: bool,
    positive: bool,
    double_reading: bool,
) -> Radiograph:
    study, series, sop = (f"2.25.{int.from_bytes(rng.bytes(15), 'big')}" for _ in range(3))
    image_id = f"ID_{rng.bytes(5).hex()[:9]}" if test else sop
    path = (
        Path(TEST_FOLDER, f"{image_id}.dcm")
        if test
        else Path(TRAIN_FOLDER, study, series, f"{sop}.dcm")
    )
    return Radiograph(
        path=path,
        image_id=image_id,
        study_uid="" if test else study,
        series_uid="" if test else series,
        sop_uid=sop,
        patient=patient,
        anonymous=test,
        seed=int(rng.integers(2**31)),
        size=size,
        positive=positive,
        double_reading=double_reading,
    )


def _write_radiographs(
    folder: Path, radiographs: Sequence[Radiograph], workers: int
) -> list[list[str]]:
    """Draws and writes every radiograph below `folder`; returns each one's label rows."""
    for radiograph in (
        radiographs
    ):  # here, not in the workers: one still at work must not revive a folder given up
        (folder / radiograph.path).parent.mkdir(parents=True, exist_ok=True)
    jobs = (joblib.delayed(_write_radiograph)(folder, radiograph) for radiograph in radiographs)
    done = joblib.Parallel(n_jobs=workers, return_as="generator")(jobs)
    return list(
        tqdm(done, total=len(radiographs), desc="draw radiographs", unit="radiograph", disable=None)
    )


def _write_radiograph(folder: Path, radiograph: Radiograph) -> list[str]:
    """Draws one radiograph, writes its DICOM below `folder` and returns its label rows."""
    phantom = draw(
        radiograph.seed,
        pneumothorax=radiograph.positive,
        size=radiograph.size,
        patient=radiograph.patient.number,
    )
    (folder / radiograph.path).write_bytes(dicom_bytes(phantom.image, radiograph))
    return label_rows(
        phantom.parts,
        np.random.default_rng([radiograph.seed, 3]),
        double_reading=radiograph.double_reading,
    )


def label_rows(
    parts: list[np.ndarray], rng: np.random.Generator, *, double_reading: bool
) -> list[str]:
    """Run lengths of an image's parts, one row each; their union is the truth.

    With `double_reading` the first part comes from two readers: each outlined one end, both the middle.
    """
    if not parts:
        return [rle.EMPTY]
    if double_reading:
        parts = [*_two_readings(parts[0], rng), *parts[1:]]
    return [rle.encode(part) for part in parts]


def _two_readings(mask: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """(H, W) mask of 0 and 1 -> two masks that overlap and together give it back."""
    rows = np.flatnonzero(mask.any(axis=1))
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    first_ends = top + int(rng.uniform(0.55, 0.8) * (bottom - top)) + 1
    second_starts = top + int(rng.uniform(0.2, 0.45) * (bottom - top))
    first, second = mask.copy(), mask.copy()
    first[first_ends:] = 0
    second[:second_starts] = 0
    return [first, second]


def dicom_bytes(image: np.ndarray, radiograph: Radiograph) -> bytes:
    """(H, W) uint8 -> a JPEG-baseline DICOM file with the tags of a SIIM-ACR file, all values invented."""
    encoded, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not encoded:
        raise RuntimeError(f"OpenCV could not write image {radiograph.image_id} as JPEG")
    dataset = _tags(radiograph)
    dataset.Rows, dataset.Columns = image.shape
    dataset.PixelData = encapsulate([jpeg.tobytes()])
    dataset["PixelData"].is_undefined_length = True
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def _tags(radiograph: Radiograph) -> Dataset:
    """Everything but the pixels."""
    rng = np.random.default_rng([radiograph.seed, 4])
    view = "AP" if rng.random() < 0.4 else "PA"
    spacing = float(rng.choice([0.139, 0.143, 0.168, 0.171]))
    identifier = "" if radiograph.anonymous else radiograph.patient.identifier
    dataset = Dataset()
    dataset.preamble = bytes(128)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.FileMetaInformationGroupLength = 0  # pydicom counts it on writing
    dataset.file_meta.FileMetaInformationVersion = b"\x00\x01"
    dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = UID(radiograph.sop_uid)
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.file_meta.ImplementationClassUID = IMPLEMENTATION_UID
    dataset.file_meta.ImplementationVersionName = "PHANTOM"
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    # As in the competition's files: ID_... is not a legal UID, and an age without unit is not a legal age.
    _set_unchecked(dataset, "SOPInstanceUID", "UI", radiograph.image_id)
    _set_unchecked(dataset, "PatientAge", "AS", str(radiograph.patient.age))
    dataset.StudyDate, dataset.StudyTime = "19010101", "000000.00"
    dataset.AccessionNumber = ""
    dataset.Modality, dataset.ConversionType = "CR", "WSD"
    dataset.ReferringPhysicianName = ""
    dataset.SeriesDescription = f"view: {view}"
    dataset.PatientName = dataset.PatientID = identifier
    dataset.PatientBirthDate = ""
    dataset.PatientSex = radiograph.patient.sex
    dataset.BodyPartExamined, dataset.ViewPosition = "CHEST", view
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = (
        radiograph.study_uid,
        radiograph.series_uid,
    )
    dataset.StudyID, dataset.SeriesNumber, dataset.InstanceNumber = "", "1", "1"
    dataset.PatientOrientation = ""
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.PixelSpacing = [spacing, spacing]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = (
        8,
        8,
        7,
        0,
    )
    dataset.LossyImageCompression, dataset.LossyImageCompressionMethod = "01", "ISO_10918_1"
    return dataset


def _set_unchecked(dataset: Dataset, keyword: str, representation: str, value: str) -> None:
    dataset[keyword] = DataElement(
        keyword, representation, value, validation_mode=pydicom_config.IGNORE
    )


def _write_labels(path: Path, radiographs: Sequence[Radiograph], rows: Sequence[list[str]]) -> None:
    """One line per row, with the space that Kaggle's file has behind the comma."""
    lines = [
        f"{radiograph.image_id}, {text}"
        for radiograph, texts in zip(radiographs, rows, strict=True)
        for text in texts
    ]
    _write_text(path, ["ImageId, EncodedPixels", *lines])


def _write_sample_submission(path: Path, radiographs: Sequence[Radiograph]) -> None:
    ids = sorted(radiograph.image_id for radiograph in radiographs)
    _write_text(path, ["ImageId,EncodedPixels", *(f"{image_id},{rle.EMPTY}" for image_id in ids)])


def _write_text(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
