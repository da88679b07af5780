"""Small real DICOM files."""

import io
import warnings

import cv2
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit

CR_IMAGE = "1.2.840.10008.5.1.4.1.1.1"
PATIENT = {
    "SOPClassUID": CR_IMAGE,
    "Modality": "CR",
    "PatientID": "patient",
    "PatientSex": "F",
    "PatientAge": "51",
    "ViewPosition": "PA",
}


def write_dicom(
    path, image, *, jpeg=False, quality=95, syntax=None, pixel_data=None, file_meta=(), **tags
):
    """Write a DICOM file with the name's stem as SOPInstanceUID -> `path`.

    Args:
        image: (H, W) or (H, W, 3), uint8, uint16 or int16.
        jpeg: JPEG baseline, as in the competition; otherwise uncompressed.
        pixel_data: bytes to store instead of the image's, already encapsulated where
            `syntax` needs that.
        tags: by keyword, in addition or instead; None removes a tag.
    """
    if pixel_data is None:
        pixel_data = encapsulate([encode_jpeg(image, quality)]) if jpeg else image.tobytes()
    values = {**PATIENT, "SOPInstanceUID": path.stem, **_pixel_tags(image), **tags}
    values["HighBit"] = tags.get("HighBit", values["BitsStored"] - 1)
    values.setdefault("PixelData", pixel_data + b"\0" * (len(pixel_data) % 2))
    syntax = syntax or (JPEGBaseline8Bit if jpeg else ExplicitVRLittleEndian)
    dataset = Dataset()
    with warnings.catch_warnings(), pydicom.config.disable_value_validation():
        warnings.simplefilter("ignore")  # ids of the competition are not valid UIDs
        for name, value in values.items():
            if value is not None:
                setattr(dataset, name, value)
        if syntax.is_encapsulated and "PixelData" in dataset:
            dataset["PixelData"].is_undefined_length = True
        dataset.file_meta = _meta(syntax, file_meta)
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset.save_as(path, enforce_file_format=True)
    return path


def _pixel_tags(image):
    """The image pixel module's tags, PS3.3 C.7.6.3."""
    colour, bits = image.ndim == 3, 8 * image.dtype.itemsize
    tags = {
        "Rows": image.shape[0],
        "Columns": image.shape[1],
        "SamplesPerPixel": 3 if colour else 1,
        "PhotometricInterpretation": "RGB" if colour else "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": bits,
        "PixelRepresentation": int(np.issubdtype(image.dtype, np.signedinteger)),
    }
    return tags | ({"PlanarConfiguration": 0} if colour else {})


def _meta(syntax, file_meta):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CR_IMAGE
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = syntax
    for name, value in dict(file_meta).items():
        setattr(meta, name, value)
    return meta


def encode_jpeg(image, quality=95):
    """(H, W) uint8 -> the bytes of a baseline JPEG."""
    done, data = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, quality))
    assert done
    return data.tobytes()


def jpeg_2000(image):
    """(H, W) uint8 or uint16 -> the bytes of a lossless JPEG 2000 code stream."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG2000", irreversible=False, no_jp2=True)
    return buffer.getvalue()
