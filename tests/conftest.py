"""What the tests share: stages run by path, small real DICOM files, a tiny complete input, the real data."""

import os
import runpy
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit

ROOT = Path(__file__).resolve().parent.parent
REAL_DATA = Path(os.environ.get("PNEUMOTHORAX_REAL_DATA", ROOT.parent / "shared" / "data"))
CR_IMAGE = "1.2.840.10008.5.1.4.1.1.1"
# A run whose two folds take seconds
TINY = """
model: ica_resunet
model_settings: {encoder: resnet18, encoder_weights: none, decoder_channels: [16, 16, 8, 8, 8]}
image_size: 64
epochs: 2
batch_size: 4
learning_rate: 0.001
"""


def run_stage(script, *args):
    """Stage files start with a digit, so they are run by path, not imported."""
    runpy.run_path(str(ROOT / script), run_name="stage")["main"]([str(argument) for argument in args])


@pytest.fixture(scope="session")
def real_data():
    """The folder of real files (see its README.md)."""
    if not (REAL_DATA / "labels").is_dir():
        pytest.skip(f"no real data at {REAL_DATA}; set PNEUMOTHORAX_REAL_DATA to its folder")
    return REAL_DATA


def write_dicom(path, image, *, jpeg=False, quality=95, syntax=None, pixel_data=None, file_meta=(), **tags):
    """Write a DICOM file around `image`, (H, W) or (H, W, 3) of uint8, uint16 or int16; returns `path`.

    Args:
        jpeg: JPEG baseline, as the competition's files are; otherwise uncompressed.
        pixel_data: bytes to store instead of the image's own (already encapsulated where `syntax` asks for it).
        tags: overrides and additions by keyword; None removes a tag.
    """
    height, width = image.shape[:2]
    bits = 8 * image.dtype.itemsize
    dataset = Dataset()
    values = {
        "SOPClassUID": CR_IMAGE,
        "SOPInstanceUID": path.stem,
        "Modality": "CR",
        "PatientID": "patient",
        "PatientSex": "F",
        "PatientAge": "51",
        "ViewPosition": "PA",
        "Rows": height,
        "Columns": width,
        "SamplesPerPixel": 3 if image.ndim == 3 else 1,
        "PhotometricInterpretation": "RGB" if image.ndim == 3 else "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": tags.get("BitsStored", bits) - 1,
        "PixelRepresentation": int(np.issubdtype(image.dtype, np.signedinteger)),
    }
    if image.ndim == 3:
        values["PlanarConfiguration"] = 0
    if pixel_data is None:
        pixel_data = encapsulate([encode_jpeg(image, quality)]) if jpeg else image.tobytes()
    values["PixelData"] = pixel_data + b"\0" * (len(pixel_data) % 2)
    syntax = syntax or (JPEGBaseline8Bit if jpeg else ExplicitVRLittleEndian)
    values.update(tags)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CR_IMAGE
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = syntax
    for name, value in dict(file_meta).items():
        setattr(meta, name, value)
    with warnings.catch_warnings(), pydicom.config.disable_value_validation():
        warnings.simplefilter("ignore")  # the competition's own ids are no legal UIDs
        for name, value in values.items():
            if value is not None:
                setattr(dataset, name, value)
        if syntax.is_encapsulated and "PixelData" in dataset:
            dataset["PixelData"].is_undefined_length = True
        dataset.file_meta = meta
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset.save_as(path, enforce_file_format=True)
    return path


def encode_jpeg(image, quality=95):
    """(H, W) uint8 -> the bytes of a baseline JPEG."""
    done, data = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, quality))
    assert done
    return data.tobytes()


def noise(seed, size=128, *, low=40, high=200):
    """(size, size) uint8: smooth noise, so that JPEG keeps most of it."""
    raw = np.random.default_rng(seed).integers(low, high, (size, size), dtype=np.uint8)
    return cv2.GaussianBlur(raw, (0, 0), 1.5)


def disc(size, row, column, radius):
    """(size, size) uint8 mask of 0 and 1."""
    rows, columns = np.ogrid[:size, :size]
    return ((rows - row) ** 2 + (columns - column) ** 2 <= radius**2).astype(np.uint8)


def plain_encode(mask):
    """Run lengths one pixel at a time, written from the competition's text alone."""
    numbers, run, gap = [], 0, 0
    for column in range(mask.shape[1]):
        for row in range(mask.shape[0]):
            if mask[row, column]:
                run += 1
                continue
            if run:
                numbers += [gap, run]
                gap = run = 0
            gap += 1
    if run:
        numbers += [gap, run]
    return " ".join(map(str, numbers)) or "-1"


@dataclass
class TinyInput:
    """What `tiny_input` wrote: ids, truth and patients, to compare results with."""

    folder: Path
    masks: dict[str, np.ndarray] = field(default_factory=dict)  # training images; all 0 where negative
    patients: dict[str, str] = field(default_factory=dict)  # training image -> PatientID
    test_ids: list[str] = field(default_factory=list)
    unlabelled_ids: list[str] = field(default_factory=list)

    @property
    def positives(self):
        return [image_id for image_id, mask in self.masks.items() if mask.any()]


def tiny_input(folder, *, train=12, test=3, unlabelled=1, size=128, seed=0):
    """A complete small --input: bright discs as lesions on noise, in every second training image.

    Two images per patient. The second positive has three label rows, two of which overlap; one image is half the
    size, one uncompressed, one MONOCHROME1, one 12 bit, the others JPEG as in the competition.
    """
    made = TinyInput(Path(folder))
    rng = np.random.default_rng(seed)
    lines = ["ImageId, EncodedPixels"]
    for number in range(train):
        image_id, patient = f"1.2.276.0.{seed}.{number}", f"patient-{number // 2}"
        grid = size // 2 if number == 3 else size
        discs = []
        if number % 2 == 0:
            row, column = rng.integers(grid // 4, 3 * grid // 4, 2)
            discs = [disc(grid, row, column, grid // 8 - 4 + number)]
        if number == 2:
            discs += [disc(grid, row + 5, column + 5, grid // 8), disc(grid, grid - 1, grid - 1, grid // 16)]
        mask = np.bitwise_or.reduce([np.zeros((grid, grid), np.uint8), *discs])
        image = noise(1000 * seed + number, grid)
        image[mask == 1] = 230
        path = made.folder / "dicom-images-train" / f"study.{number}" / f"series.{number}" / f"{image_id}.dcm"
        tags = {"PatientID": patient, "ViewPosition": "PA" if number % 3 else "AP", "PatientSex": "FM"[number // 2 % 2]}
        if number == 5:
            write_dicom(path, image, **tags)
        elif number == 6:
            write_dicom(path, 255 - image, PhotometricInterpretation="MONOCHROME1", **tags)
        elif number == 7:
            write_dicom(path, image.astype(np.uint16) * 16, BitsStored=12, **tags)
        else:
            write_dicom(path, image, jpeg=True, **tags)
        lines += [f"{image_id}, {plain_encode(part)}" for part in discs] or [f"{image_id}, -1"]
        made.masks[image_id] = mask
        made.patients[image_id] = patient
    for number in range(test):
        image_id = f"ID_{seed:03x}{number:06x}"
        image = noise(1000 * seed + 500 + number, size)
        if number == 0:
            image[disc(size, size // 2, size // 3, size // 8) == 1] = 230
        write_dicom(made.folder / "stage_2_images" / f"{image_id}.dcm", image, jpeg=True, PatientID="")
        made.test_ids.append(image_id)
    for number in range(unlabelled):
        image_id = f"1.2.276.9.{seed}.{number}"
        path = made.folder / "dicom-images-train" / f"study.u{number}" / f"series.u{number}" / f"{image_id}.dcm"
        write_dicom(path, noise(1000 * seed + 900 + number, size), jpeg=True, PatientID=f"stranger-{number}")
        made.unlabelled_ids.append(image_id)
    write_lines(made.folder / "train-rle.csv", lines)
    if test:
        write_lines(
            made.folder / "stage_2_sample_submission.csv",
            ["ImageId,EncodedPixels", *(f"{i},-1" for i in made.test_ids)],
        )
    return made


@pytest.fixture(scope="module")
def folded(tmp_path_factory):
    """An output folder after stages 00 and 01: 24 images of 64 x 64, half of them positive, in two folds."""
    folder = tmp_path_factory.mktemp("folded")
    made = tiny_input(folder / "input", train=24)
    output = folder / "output"
    run_stage("00_prepare_data.py", "--input", made.folder, "--output", output, "--size", 64, "--workers", 1)
    run_stage("01_make_folds.py", "--output", output, "--folds", 2)
    return output


def write_lines(path, lines):
    """UTF-8 text with LF; returns `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    return path
