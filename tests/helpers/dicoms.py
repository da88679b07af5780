"""Small real DICOM files."""

import warnings

import cv2
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit

CR_IMAGE = "1.2.840.10008.5.1.4.1.1.1"


def write_dicom(
    path, image, *, jpeg=False, quality=95, syntax=None, pixel_data=None, file_meta=(), **tags
):
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
