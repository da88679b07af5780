"""The demo data like the competition's download: DICOM files and run lengths.

    dicom-images-train/<study>/<series>/<sop>.dcm   training images, and a few without a label
    train-rle.csv                                   their labels, spaced as in Kaggle's file
    stage_2_images/ID_xxxxxxxxx.dcm                 test images
    test-rle.csv                                    their labels, which nobody trains on
    stage_2_sample_submission.csv                   the ids of the test images
    patients.csv                                    the patient of each labelled image

The pixels are JPEG; all other values are invented.
"""

import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import cv2
import numpy as np
from pydicom import config as pydicom_config
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, JPEGBaseline8Bit, SecondaryCaptureImageStorage

from pneumothorax import rle
from pneumothorax.phantom.plan import Plan, Radiograph

FORMAT = "DICOM"
JPEG_QUALITY = 90
IMPLEMENTATION_UID = UID("2.25.297862417340984261587406295134870618375")


def paths(plan: Plan) -> dict[Radiograph, tuple[Path, ...]]:
    """The file of every radiograph."""
    return {
        radiograph: (_path(radiograph),)
        for radiograph in (*plan.train, *plan.unlabelled, *plan.test)
    }


def _path(radiograph: Radiograph) -> Path:
    name = f"{radiograph.image_id}.dcm"
    if radiograph.test:
        return Path("stage_2_images", name)
    return Path("dicom-images-train", radiograph.study_uid, radiograph.series_uid, name)


def contents(radiograph: Radiograph, image: np.ndarray, rows: list[str]) -> tuple[bytes, ...]:
    """(H, W) uint8 -> a JPEG-baseline DICOM file with the tags of a SIIM-ACR file."""
    dataset = _tags(radiograph)
    dataset.Rows, dataset.Columns = image.shape
    dataset.PixelData = encapsulate([jpeg(image)])
    dataset["PixelData"].is_undefined_length = True
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return (buffer.getvalue(),)


def jpeg(image: np.ndarray) -> bytes:
    """(H, W) uint8 -> the JPEG that holds its pixels in a DICOM file."""
    encoded, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not encoded:
        raise RuntimeError(f"OpenCV cannot write an image of shape {image.shape} as JPEG")
    return data.tobytes()


def tables(plan: Plan, rows: Mapping[Radiograph, list[str]]) -> dict[Path, list[str]]:
    """The lines of each table; without test images there is none of them."""
    of_training = {
        Path("train-rle.csv"): _label_lines(plan.train, rows),
        Path("patients.csv"): patient_lines(plan),
    }
    if not plan.test:
        return of_training
    sample = (f"{radiograph.image_id},{rle.EMPTY}" for radiograph in plan.test)
    return of_training | {
        Path("test-rle.csv"): _label_lines(plan.test, rows),
        Path("stage_2_sample_submission.csv"): ["ImageId,EncodedPixels", *sample],
    }


def _label_lines(
    radiographs: Iterable[Radiograph], rows: Mapping[Radiograph, list[str]]
) -> list[str]:
    """One line per row, with a space after the comma as in Kaggle's file."""
    lines = (
        f"{radiograph.image_id}, {text}" for radiograph in radiographs for text in rows[radiograph]
    )
    return ["ImageId, EncodedPixels", *lines]


def patient_lines(plan: Plan) -> list[str]:
    """Every patient, also those of test images, which the DICOM files do not name."""
    labelled = [*plan.train, *plan.test]
    lines = (f"{radiograph.image_id},{radiograph.patient.identifier}" for radiograph in labelled)
    return ["ImageId,PatientId", *lines]


def _tags(radiograph: Radiograph) -> Dataset:
    """Everything but the pixels."""
    rng = np.random.default_rng([radiograph.seed, 4])
    view = "AP" if rng.random() < 0.4 else "PA"
    spacing = float(rng.choice([0.139, 0.143, 0.168, 0.171]))
    identifier = "" if radiograph.test else radiograph.patient.identifier
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
    # As in the competition's files: neither ID_... as a UID nor an age without a unit is legal.
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
    dataset.StudyInstanceUID = radiograph.study_uid
    dataset.SeriesInstanceUID = radiograph.series_uid
    dataset.StudyID, dataset.SeriesNumber, dataset.InstanceNumber = "", "1", "1"
    dataset.PatientOrientation = ""
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.PixelSpacing = [spacing, spacing]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelRepresentation = 0
    dataset.LossyImageCompression, dataset.LossyImageCompressionMethod = "01", "ISO_10918_1"
    return dataset


def _set_unchecked(dataset: Dataset, keyword: str, representation: str, value: str) -> None:
    dataset[keyword] = DataElement(
        keyword, representation, value, validation_mode=pydicom_config.IGNORE
    )
