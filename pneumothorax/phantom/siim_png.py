"""The demo data like the PNG copy of the competition's data that most people have today.

    siim-acr-pneumothorax/png_images/<number>_<train|test>_<0|1>_.png    grey, 8 bit
    siim-acr-pneumothorax/png_masks/  the same names                     0 and 255, empty ones too
    siim-acr-pneumothorax/stage_1_train_images.csv, stage_1_test_images.csv
                                         new_filename, ImageId and label of each image
    siim-acr-pneumothorax/patients.csv   the patient of each labelled image

Ids and pixels are those of the DICOM files (siim_dicom); images without a label are left out.
"""

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from pneumothorax import png, rle
from pneumothorax.phantom import siim_dicom
from pneumothorax.phantom.plan import Plan, Radiograph

FORMAT = "PNG"
FOLDER = Path("siim-acr-pneumothorax")


def paths(plan: Plan) -> dict[Radiograph, tuple[Path, ...]]:
    """The image and the mask of every radiograph with a label."""
    return {
        radiograph: (FOLDER / "png_images" / name, FOLDER / "png_masks" / name)
        for radiographs in (plan.train, plan.test)
        for radiograph, name in _names(radiographs).items()
    }


def _names(radiographs: list[Radiograph]) -> dict[Radiograph, str]:
    """File names that give number, split and label, but not the id."""
    names = {}
    for number, radiograph in enumerate(radiographs):
        split = "test" if radiograph.test else "train"
        names[radiograph] = f"{number}_{split}_{radiograph.positive:d}_.png"
    return names


def contents(radiograph: Radiograph, image: np.ndarray, rows: list[str]) -> tuple[bytes, ...]:
    """(H, W) uint8 -> two PNG files: the pixels as decoded from the DICOM's JPEG, the mask."""
    data = np.frombuffer(siim_dicom.jpeg(image), np.uint8)
    decoded = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)
    assert decoded is not None  # just encoded
    height, width = image.shape
    mask = rle.union([text for text in rows if text != rle.EMPTY], (height, width))
    return png.encode_small(decoded), png.encode_small(mask * np.uint8(255))


def tables(plan: Plan, rows: Mapping[Radiograph, list[str]]) -> dict[Path, list[str]]:
    """The lines of each table."""
    return {
        FOLDER / "stage_1_train_images.csv": _image_lines(plan.train),
        FOLDER / "stage_1_test_images.csv": _image_lines(plan.test),
        FOLDER / "patients.csv": siim_dicom.patient_lines(plan),
    }


def _image_lines(radiographs: list[Radiograph]) -> list[str]:
    lines = (
        f"{name},{radiograph.image_id},{radiograph.positive:d}"
        for radiograph, name in _names(radiographs).items()
    )
    return ["new_filename,ImageId,has_pneumo", *lines]
