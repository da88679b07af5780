"""The pixels of a DICOM data set -> (H, W) uint8 grey, white = dense.

Two steps. Stored values: 8-bit JPEG baseline frames go straight to libjpeg-turbo, all
others through pydicom's decoders. Grey values, in the order of DICOM PS3.4 N.2:
modality LUT (PS3.3 C.11.1), window or VOI LUT (PS3.3 C.11.2), inversion of MONOCHROME1
(PS3.3 C.7.6.3.1.2), then the fixed range of possible values to 0..255. Plain 8-bit
values pass unchanged, and nothing is stretched to the range of one image.
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

# Pillow before the others: it uses libjpeg-turbo and OpenJPEG and notices frames cut short.
PLUGIN_ORDER = ("pydicom", "pillow", "pylibjpeg", "pyjpegls", "gdcm")
_START_OF_SCAN = b"\xff\xda"  # of JPEG
_END_OF_IMAGE = b"\xff\xd9"  # of JPEG and of JPEG 2000
INSTALL = "python -m pip install -r requirements-dicom.txt"


class Undecodable(Exception):
    """Pixels that cannot be decoded; `code` as in dicom.Rejected."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def decode(dataset: pydicom.Dataset) -> tuple[np.ndarray, str, bool]:
    """(image (H, W) uint8, name of the decoder, whether the file held colour).

    A constant image becomes zeros. Raises Undecodable.
    """
    kind = str(dataset.get("PhotometricInterpretation", "")).strip()
    if kind not in GREY + COLOUR:
        expected = ", ".join(GREY)
        raise Undecodable(
            "BAD_HEADER", f"not the photometric interpretation of a radiograph ({expected})"
        )
    if dataset.get("BitsAllocated") == 1:
        raise Undecodable(
            "BAD_HEADER", "1 bit per pixel: a segmentation or an overlay, not a radiograph"
        )
    stored, decoder = _stored_values(dataset)
    if stored.dtype.itemsize > 2:
        bits = 8 * stored.dtype.itemsize
        raise Undecodable("BAD_HEADER", f"{bits} bits per pixel; at most 16 are supported")
    if kind in COLOUR:
        image = to_8_bits(cv2.cvtColor(stored, cv2.COLOR_RGB2GRAY), *_stored_range(dataset))
    else:
        image = _grey(stored, dataset, inverted=kind == "MONOCHROME1")
    return zeros_if_constant(image), decoder, kind in COLOUR


def zeros_if_constant(image: np.ndarray) -> np.ndarray:
    """(H, W), unchanged unless all values are equal: every empty exposure looks the same."""
    low, high, _, _ = cv2.minMaxLoc(image)
    return np.zeros_like(image) if low == high else image


def is_whole_jpeg(data: bytes) -> bool:
    """Whether a JPEG has an end behind its last scan, whatever follows.

    OpenCV 4 fills the rest of a file cut short with grey. A preview in the header also
    has an end, but the scan comes after it.
    """
    end = data.rfind(_END_OF_IMAGE)
    return end >= 0 and data.find(_START_OF_SCAN, end) < 0


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
    """The one encoded frame of encapsulated pixel data (PS3.5 A.4)."""
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
    """A baseline JPEG -> (H, W) uint8: the same pixels as Pillow's, faster."""
    if not is_whole_jpeg(frame):
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
    """As `_stored_values`, by the first installed plugin of PLUGIN_ORDER."""
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise Undecodable(
            "UNSUPPORTED_SYNTAX", f"{syntax} is not a transfer syntax of images"
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
    """Refuse uncompressed pixel data (PS3.5 8.1) that is too short."""
    samples, bits = dataset.get("SamplesPerPixel", 1), dataset.get("BitsAllocated", 8)
    needed = dataset.Rows * dataset.Columns * samples * bits // 8
    if str(dataset.PhotometricInterpretation) == "YBR_FULL_422":
        needed = needed * 2 // 3  # two pixels share their colour differences
    found = len(dataset.PixelData)
    if found < needed:
        raise Undecodable("TRUNCATED", f"{found} bytes of pixels, {needed} are needed")


def _check_frame_size(frame: bytes, height: int, width: int) -> None:
    """Refuse a JPEG or JPEG 2000 frame of another size before it is decoded."""
    found = _jpeg_size(frame) or _jpeg2000_size(frame)
    if found is None:  # for example a PNG, which OpenCV would decode at any size
        raise Undecodable("TRUNCATED", "the frame does not begin like a JPEG or JPEG 2000 image")
    if found != (height, width):
        code = "TOO_LARGE" if found[0] * found[1] > 4 * height * width else "BAD_HEADER"
        message = f"the frame is {found[1]} x {found[0]}, the header says {width} x {height}"
        raise Undecodable(code, message)


def _jpeg_size(frame: bytes) -> tuple[int, int] | None:
    """(height, width) from the start-of-frame segment (ISO 10918-1, B.2.2), or None."""
    if frame[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(frame) and frame[at] == 0xFF:
        marker, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4], "big")
        start_of_frame = 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)
        if start_of_frame or marker == 0xF7:  # F7: JPEG-LS
            height, width = struct.unpack(">HH", frame[at + 5 : at + 9])
            return height, width
        at += 1 if marker == 0xFF else 2 + length  # 0xFF may be repeated as fill
    return None


def _jpeg2000_size(frame: bytes) -> tuple[int, int] | None:
    """(height, width) from the SIZ segment (ISO 15444-1, A.5.1), or None."""
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
    return to_8_bits(low + high - values if inverted else values, low, high)


def _output_range(dataset: pydicom.Dataset) -> tuple[float, float]:
    """(lowest, highest) value that modality LUT and window can give, by the header.

    The third value of a LUTDescriptor is the number of bits of a table's entries (PS3.3
    C.11.1.1 and C.11.2.1.1). A window keeps the range of its input (pydicom scales to
    it).
    """
    windowed = dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None
    if "VOILUTSequence" in dataset and not windowed:
        return 0.0, 2.0 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1
    if "ModalityLUTSequence" in dataset:
        return 0.0, 2.0 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    slope = float(dataset.get("RescaleSlope") or 1)
    intercept = float(dataset.get("RescaleIntercept") or 0)
    low, high = (value * slope + intercept for value in _stored_range(dataset))
    return min(low, high), max(low, high)


def _stored_range(dataset: pydicom.Dataset) -> tuple[float, float]:
    """(lowest, highest) value of BitsStored bits, signed or not (PS3.3 C.7.6.3.1)."""
    bits = int(dataset.BitsStored)
    if dataset.get("PixelRepresentation", 0) == 1:
        return -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1
    return 0.0, 2.0**bits - 1


def to_8_bits(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values in low..high -> uint8 in 0..255, rounded and clipped."""
    if values.dtype == np.uint8 and (low, high) == (0.0, 255.0):
        return values
    scaled = values.astype(np.float32)  # changed in place: a large image takes 256 MB
    scaled -= np.float32(low)
    scaled *= np.float32(255.0 / (high - low))
    np.rint(scaled, out=scaled)
    return np.clip(scaled, 0, 255, out=scaled).astype(np.uint8)
