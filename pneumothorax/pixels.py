"""The pixels of a DICOM data set -> (H, W) uint8 grey, white = dense.

Two steps. Stored values: 8-bit JPEG baseline frames go straight to libjpeg-turbo, all else through pydicom's
decoders. Grey: modality LUT, then window, then inversion of MONOCHROME1, then the output's fixed range to 0..255, in
the order of DICOM PS3.4 N.2. Plain 8-bit values pass unchanged; nothing is stretched to an image's own range.
"""

import struct

import cv2
import numpy as np
import pydicom
from pydicom.encaps import generate_frames
from pydicom.pixels import apply_modality_lut, apply_voi_lut, get_decoder
from pydicom.uid import JPEGBaseline8Bit, RLELossless

GREY = ("MONOCHROME2", "MONOCHROME1")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")

# Pillow first: it uses libjpeg-turbo and OpenJPEG and notices files that are cut short.
PLUGIN_ORDER = ("pydicom", "pillow", "pylibjpeg", "pyjpegls", "gdcm")
_END_OF_IMAGE = b"\xff\xd9"  # of JPEG and of JPEG 2000
INSTALL = "python -m pip install -r requirements-dicom.txt"


class Undecodable(Exception):
    """Pixels that cannot be turned into an image; `code` as in dicom.Rejected."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def decode(dataset: pydicom.Dataset) -> tuple[np.ndarray, str, bool]:
    """-> (image (H, W) uint8, name of the decoder, whether the file held colour). Raises Undecodable."""
    kind = str(dataset.get("PhotometricInterpretation", "")).strip()
    if kind not in GREY + COLOUR:
        raise Undecodable(
            "BAD_HEADER",
            f"another photometric interpretation than a radiograph's ({', '.join(GREY)})",
        )
    if dataset.get("BitsAllocated") == 1:
        raise Undecodable(
            "BAD_HEADER", "1 bit per pixel: a segmentation or an overlay, no radiograph"
        )
    stored, decoder = _stored_values(dataset)
    if stored.dtype.itemsize > 2:
        raise Undecodable(
            "BAD_HEADER", f"{8 * stored.dtype.itemsize} bits per pixel; at most 16 are known"
        )
    if kind in COLOUR:
        image = _to_8_bits(cv2.cvtColor(stored, cv2.COLOR_RGB2GRAY), *_stored_range(dataset))
    else:
        image = _grey(stored, dataset, inverted=kind == "MONOCHROME1")
    low, high, _, _ = cv2.minMaxLoc(image)
    if low == high:
        image = np.zeros_like(image)  # nothing to see: one value for every empty exposure
    return image, decoder, kind in COLOUR


def _stored_values(dataset: pydicom.Dataset) -> tuple[np.ndarray, str]:
    """(H, W) or (H, W, 3) array of what the file stores, and the decoder's name."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        frame = _single_frame(dataset)
        if syntax != RLELossless:
            _check_frame_size(frame, dataset.Rows, dataset.Columns)
        if syntax == JPEGBaseline8Bit and dataset.get("SamplesPerPixel", 1) == 1:
            return _jpeg(frame, dataset.Rows, dataset.Columns), "libjpeg-turbo"
    else:
        _check_length(dataset)
    return _by_pydicom(dataset)


def _single_frame(dataset: pydicom.Dataset) -> bytes:
    try:
        frames = list(generate_frames(dataset.PixelData, number_of_frames=1))
    except Exception as error:
        raise Undecodable(
            "TRUNCATED", "the encapsulated pixel data is cut short or broken"
        ) from error
    if not frames or not frames[0]:
        raise Undecodable("NO_PIXELS", "the encapsulated pixel data is empty")
    return frames[0]


def _jpeg(frame: bytes, height: int, width: int) -> np.ndarray:
    """libjpeg-turbo by way of OpenCV: the same pixels as a full decode by Pillow, faster."""
    if _END_OF_IMAGE not in frame[-64:]:  # libjpeg fills what is missing with grey and only warns
        raise Undecodable("TRUNCATED", "the JPEG frame has no end-of-image marker: cut short")
    image = cv2.imdecode(np.frombuffer(frame, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise Undecodable("TRUNCATED", "the JPEG frame cannot be decoded")
    if image.shape != (height, width):
        raise Undecodable(
            "BAD_HEADER", f"the JPEG frame is {image.shape}, the header says {(height, width)}"
        )
    return image


def _by_pydicom(dataset: pydicom.Dataset) -> tuple[np.ndarray, str]:
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise Undecodable(
            "UNSUPPORTED_SYNTAX", f"the transfer syntax {syntax} is not an image's"
        ) from None
    if not decoder.is_available:
        message = f"no decoder for {syntax.name} is installed: {INSTALL}"
        raise Undecodable("UNSUPPORTED_SYNTAX", message)
    plugin = next((name for name in PLUGIN_ORDER if name in decoder.available_plugins), "")
    try:
        array, _ = decoder.as_array(dataset, decoding_plugin=plugin)
    except RuntimeError as error:
        whole = _END_OF_IMAGE in dataset.PixelData[-64:]
        message = f"{plugin or 'pydicom'} cannot decode this {syntax.name} frame"
        raise Undecodable("UNSUPPORTED_SYNTAX" if whole else "TRUNCATED", message) from error
    return array, f"pydicom/{plugin}" if plugin else "pydicom"


def _check_length(dataset: pydicom.Dataset) -> None:
    needed = (
        dataset.Rows
        * dataset.Columns
        * dataset.get("SamplesPerPixel", 1)
        * dataset.get("BitsAllocated", 8)
        // 8
    )
    if str(dataset.PhotometricInterpretation) == "YBR_FULL_422":
        needed = needed * 2 // 3
    if len(dataset.PixelData) < needed:
        raise Undecodable(
            "TRUNCATED", f"{len(dataset.PixelData)} bytes of pixels, {needed} are needed"
        )


def _check_frame_size(frame: bytes, height: int, width: int) -> None:
    """Refuse a JPEG or JPEG 2000 frame whose own header disagrees, before its pixels are decoded into memory."""
    found = _jpeg_size(frame) or _jpeg2000_size(frame)
    if found is None:  # a PNG, say, which OpenCV would decode whatever its size
        raise Undecodable(
            "TRUNCATED", "the encoded frame does not begin as a JPEG or JPEG 2000 image does"
        )
    if found != (height, width):
        code = "TOO_LARGE" if found[0] * found[1] > 4 * height * width else "BAD_HEADER"
        raise Undecodable(
            code,
            f"the encoded frame is {found[1]} x {found[0]}, the header says {width} x {height}",
        )


def _jpeg_size(frame: bytes) -> tuple[int, int] | None:
    """(height, width) from the start-of-frame segment (ISO 10918-1, B.2.2), None when there is none."""
    if frame[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(frame) and frame[at] == 0xFF:
        marker, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4], "big")
        if (
            0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)
        ) or marker == 0xF7:  # SOFn; F7 is JPEG-LS
            height, width = struct.unpack(">HH", frame[at + 5 : at + 9])
            return height, width
        at += 1 if marker == 0xFF else 2 + length  # 0xFF may be repeated as fill
    return None


def _jpeg2000_size(frame: bytes) -> tuple[int, int] | None:
    """(height, width) from the SIZ segment (ISO 15444-1, A.5.1), None when there is none."""
    start = frame.find(b"\xff\x4f\xff\x51", 0, 4096)
    if start < 0 or len(frame) < start + 24:
        return None
    right, bottom, left, top = struct.unpack(">IIII", frame[start + 8 : start + 24])
    return bottom - top, right - left


def _grey(stored: np.ndarray, dataset: pydicom.Dataset, *, inverted: bool) -> np.ndarray:
    """(H, W) stored values -> (H, W) uint8."""
    plain = not any(
        name in dataset
        for name in ("RescaleSlope", "ModalityLUTSequence", "WindowCenter", "VOILUTSequence")
    )
    if plain and stored.dtype == np.uint8 and dataset.get("BitsStored", 8) == 8:
        return cv2.bitwise_not(stored) if inverted else stored
    values = apply_modality_lut(stored, dataset)
    values = apply_voi_lut(values, dataset, prefer_lut=False)
    low, high = _output_range(dataset)
    return _to_8_bits(low + high - values if inverted else values, low, high)


def _output_range(dataset: pydicom.Dataset) -> tuple[float, float]:
    """The lowest and highest value that modality LUT and window can give, from the header alone (PS3.3 C.11)."""
    windowed = dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None
    if "VOILUTSequence" in dataset and not windowed:
        return 0.0, 2.0 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1
    if "ModalityLUTSequence" in dataset:
        return 0.0, 2.0 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    slope, intercept = (
        float(dataset.get("RescaleSlope") or 1),
        float(dataset.get("RescaleIntercept") or 0),
    )
    low, high = (value * slope + intercept for value in _stored_range(dataset))
    return min(low, high), max(low, high)


def _stored_range(dataset: pydicom.Dataset) -> tuple[float, float]:
    bits = int(dataset.BitsStored)
    if dataset.get("PixelRepresentation", 0) == 1:
        return -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1
    return 0.0, 2.0**bits - 1


def _to_8_bits(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """low..high -> 0..255, rounded and clipped, uint8."""
    if values.dtype == np.uint8 and (low, high) == (0.0, 255.0):
        return values
    scaled = (values.astype(np.float32) - np.float32(low)) * np.float32(255.0 / (high - low))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
