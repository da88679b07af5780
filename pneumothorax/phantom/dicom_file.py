"""A DICOM file like those of the SIIM-ACR competition: JPEG pixels, all other values invented."""

import io

import cv2
import numpy as np
from pydicom import config as pydicom_config
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, JPEGBaseline8Bit, SecondaryCaptureImageStorage

from pneumothorax.phantom.plan import RadiographFile

JPEG_QUALITY = 90
IMPLEMENTATION_UID = UID("2.25.297862417340984261587406295134870618375")


def dicom_bytes(image: np.ndarray, radiograph: RadiographFile) -> bytes:
    """(H, W) uint8 -> a JPEG-baseline DICOM file with the tags of a SIIM-ACR file."""
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


def _tags(radiograph: RadiographFile) -> Dataset:
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
