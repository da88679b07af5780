"""Stages run by path, on a tiny complete input."""

import os
import runpy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.helpers.dicoms import write_dicom
from tests.helpers.images import disc, noise, plain_encode

ROOT = Path(__file__).resolve().parents[2]
REAL_DATA = Path(os.environ.get("PNEUMOTHORAX_REAL_DATA", ROOT.parent / "shared" / "data"))
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
    runpy.run_path(str(ROOT / script), run_name="stage")["main"](
        [str(argument) for argument in args]
    )


@dataclass
class TinyInput:
    """What `tiny_input` wrote: ids, truth and patients, to compare results with."""

    folder: Path
    masks: dict[str, np.ndarray] = field(
        default_factory=dict
    )  # training images; all 0 where negative
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
            discs += [
                disc(grid, row + 5, column + 5, grid // 8),
                disc(grid, grid - 1, grid - 1, grid // 16),
            ]
        mask = np.bitwise_or.reduce([np.zeros((grid, grid), np.uint8), *discs])
        image = noise(1000 * seed + number, grid)
        image[mask == 1] = 230
        path = (
            made.folder
            / "dicom-images-train"
            / f"study.{number}"
            / f"series.{number}"
            / f"{image_id}.dcm"
        )
        tags = {
            "PatientID": patient,
            "ViewPosition": "PA" if number % 3 else "AP",
            "PatientSex": "FM"[number // 2 % 2],
        }
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
        write_dicom(
            made.folder / "stage_2_images" / f"{image_id}.dcm", image, jpeg=True, PatientID=""
        )
        made.test_ids.append(image_id)
    for number in range(unlabelled):
        image_id = f"1.2.276.9.{seed}.{number}"
        path = (
            made.folder
            / "dicom-images-train"
            / f"study.u{number}"
            / f"series.u{number}"
            / f"{image_id}.dcm"
        )
        write_dicom(
            path, noise(1000 * seed + 900 + number, size), jpeg=True, PatientID=f"stranger-{number}"
        )
        made.unlabelled_ids.append(image_id)
    write_lines(made.folder / "train-rle.csv", lines)
    if test:
        write_lines(
            made.folder / "stage_2_sample_submission.csv",
            ["ImageId,EncodedPixels", *(f"{i},-1" for i in made.test_ids)],
        )
    return made


def write_lines(path, lines):
    """UTF-8 text with LF; returns `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    return path
