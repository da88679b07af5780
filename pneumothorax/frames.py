"""The pixel data of a DICOM data set -> the words that it stores, one per pixel and sample.

8-bit JPEG baseline frames go straight to libjpeg-turbo, all others through pydicom's
decoders. Sizes are checked before memory is taken, and frames that are cut short are
refused: some decoders fill the rest of an image without a word.
"""

import re
import struct
from typing import Any, NamedTuple

import cv2
import numpy as np
import pydicom
from pydicom.encaps import generate_frames
from pydicom.pixels import get_decoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

# Pillow before the others: it uses libjpeg-turbo and OpenJPEG and notices frames cut short.
PLUGIN_ORDER = ("pydicom", "pillow", "pylibjpeg", "pyjpegls", "gdcm")
INSTALL = "python -m pip install -r requirements-dicom.txt"
# What to install for a syntax, where the installed plugins read none or not all of its frames.
PACKAGES = {
    JPEGExtended12Bit: "pylibjpeg pylibjpeg-libjpeg",  # the only one that reads 12 bits
    **dict.fromkeys((JPEGLossless, JPEGLosslessSV1), "python-gdcm"),
    **dict.fromkeys((JPEGLSLossless, JPEGLSNearLossless), "pyjpegls"),
    **dict.fromkeys((JPEG2000, JPEG2000Lossless), "pylibjpeg pylibjpeg-openjpeg"),
    **dict.fromkeys((HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL), "pylibjpeg pylibjpeg-openjpeg"),
}
LOSSY_JPEG = (JPEGBaseline8Bit, JPEGExtended12Bit)
_END_OF_IMAGE = b"\xff\xd9"  # of JPEG and of JPEG 2000
_START_OF_SCAN = b"\xff\xda"  # of JPEG
# The next marker in the coded data of JPEG and JPEG-LS: no stuffed byte, fill or restart.
_MARKER = re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]")


class Undecodable(Exception):
    """Pixels that cannot be decoded; `code` as in dicom.Rejected."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Words(NamedTuple):
    """What the pixel data stores: unused bits are not cut off, signs are not applied."""

    array: np.ndarray  # (H, W) or (H, W, 3), uint8 or uint16
    decoder: str  # its name
    bits: int  # how many bits of a word the encoded frame can hold


class FrameHeader(NamedTuple):
    """What a JPEG or JPEG 2000 frame says of itself."""

    height: int
    width: int
    bits: int  # of a sample


def stored_words(dataset: pydicom.Dataset) -> Words:
    """Decode the one frame of a data set. Raises Undecodable, or what the libraries raise."""
    syntax = dataset.file_meta.TransferSyntaxUID
    bits = None
    if syntax.is_encapsulated:
        frame = _single_frame(dataset)
        if syntax != RLELossless:
            bits = _checked(frame, dataset.Rows, dataset.Columns).bits
        if syntax == JPEGBaseline8Bit and _samples(dataset) == 1:
            return Words(_jpeg(frame, dataset.Rows, dataset.Columns), "libjpeg-turbo", 8)
    else:
        _check_length(dataset)
    array, decoder = _by_pydicom(dataset)
    word_bits = 8 * array.dtype.itemsize
    if word_bits > 16:
        message = f"{word_bits} bits per pixel; at most 16 are supported"
        raise Undecodable("BAD_HEADER", message)
    words = array.astype(array.dtype.newbyteorder("="), copy=False).view(f"u{word_bits // 8}")
    return Words(words, decoder, min(bits or word_bits, word_bits))


def whole_number(dataset: pydicom.Dataset, name: str, *, default: int | None = None) -> int:
    """A tag's value, or the default where it is missing or empty. Raises Undecodable."""
    value = dataset.get(name)
    if value is None or value == "":
        value = default
    if not isinstance(value, int):
        found = f"no {name}" if value is None else f"{name} is not a whole number"
        raise Undecodable("BAD_HEADER", found)
    return value


def _samples(dataset: pydicom.Dataset) -> int:
    is_grey = str(dataset.PhotometricInterpretation).strip().startswith("MONOCHROME")
    return whole_number(dataset, "SamplesPerPixel", default=1 if is_grey else 3)


def is_whole_jpeg(data: bytes) -> bool:
    """Whether a JPEG has an end behind its last scan, whatever follows.

    OpenCV 4 fills the rest of a file cut short with grey. A preview in the header also
    has an end, but the scan comes after it.
    """
    end = data.rfind(_END_OF_IMAGE)
    if end < 0:
        return False
    return data.find(_START_OF_SCAN, end) < 0 or _has_end_of_jpeg(data)


def _has_end_of_jpeg(data: bytes) -> bool:
    """As `is_whole_jpeg`, from marker to marker (ISO 10918-1, B.1.1): slower, never fooled."""
    at = 2
    while found := _MARKER.search(data, at):
        at = found.end()
        if data[at - 1] == _END_OF_IMAGE[1]:
            return True
        at += int.from_bytes(data[at : at + 2], "big")  # the segment's length
    return False


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
    image = cv2.imdecode(np.frombuffer(frame, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise Undecodable("TRUNCATED", "the JPEG frame cannot be decoded")
    if image.shape != (height, width):
        raise Undecodable(
            "BAD_HEADER", f"the JPEG frame is {image.shape}, the header says {(height, width)}"
        )
    return image


def _by_pydicom(dataset: pydicom.Dataset) -> tuple[np.ndarray, str]:
    """(what pydicom decodes, the decoder's name), by the first plugin that can."""
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise Undecodable(
            "UNSUPPORTED_SYNTAX", f"{syntax} is not a transfer syntax of images"
        ) from None
    if not decoder.is_available:
        message = f"no decoder for {syntax.name} is installed: {_install(syntax)}"
        raise Undecodable("UNSUPPORTED_SYNTAX", message)
    plugins = [name for name in PLUGIN_ORDER if name in decoder.available_plugins]
    options = _options(dataset)
    errors = []
    for plugin in plugins or [""]:  # uncompressed pixels need no plugin
        try:
            array, _ = decoder.as_array(dataset, decoding_plugin=plugin, **options)
            return array, f"pydicom/{plugin}" if plugin else "pydicom"
        except MemoryError:
            raise
        except Exception as error:  # each plugin has its own
            errors.append(error)
    if not any(isinstance(error, RuntimeError) for error in errors):
        raise errors[0]  # the header is wrong: no plugin was asked
    message = f"{' and '.join(plugins) or 'pydicom'} cannot decode this {syntax.name} frame"
    if syntax == RLELossless or _END_OF_IMAGE not in dataset.PixelData:
        raise Undecodable("TRUNCATED", message) from errors[0]
    advice = f"; another decoder may: {_install(syntax)}" if _has_another(syntax, plugins) else ""
    raise Undecodable("UNSUPPORTED_SYNTAX", message + advice) from errors[0]


def _options(dataset: pydicom.Dataset) -> dict[str, Any]:
    """For pydicom's decoders, which refuse files with tags that are missing or empty."""
    allocated = whole_number(dataset, "BitsAllocated")
    stored = whole_number(dataset, "BitsStored", default=allocated)
    if stored > allocated:
        raise Undecodable("BAD_HEADER", f"BitsStored is {stored}, BitsAllocated only {allocated}")
    return {
        "correct_unused_bits": False,  # pydicom would cut them off for some decoders only
        "allow_excess_frames": False,  # what follows the image does not matter
        "bits_stored": stored,
        "pixel_representation": whole_number(dataset, "PixelRepresentation", default=0),
        "samples_per_pixel": _samples(dataset),
        "planar_configuration": whole_number(dataset, "PlanarConfiguration", default=0),
    }


def _install(syntax: pydicom.uid.UID) -> str:
    """The command that installs a decoder for a transfer syntax."""
    packages = PACKAGES.get(syntax)
    return f"python -m pip install {packages}" if packages else INSTALL


def _has_another(syntax: pydicom.uid.UID, plugins: list[str]) -> bool:
    """Whether the packages for a syntax would add a plugin to the installed ones."""
    packages = PACKAGES.get(syntax, "")
    return bool(packages) and not any(plugin in packages for plugin in plugins)


def _check_length(dataset: pydicom.Dataset) -> None:
    """Refuse uncompressed pixel data (PS3.5 8.1) that is too short."""
    bits = whole_number(dataset, "BitsAllocated")
    needed = dataset.Rows * dataset.Columns * _samples(dataset) * bits // 8
    if str(dataset.PhotometricInterpretation) == "YBR_FULL_422":
        needed = needed * 2 // 3  # two pixels share their colour differences
    found = len(dataset.PixelData)
    if found < needed:
        raise Undecodable("TRUNCATED", f"{found} bytes of pixels, {needed} are needed")


def _checked(frame: bytes, height: int, width: int) -> FrameHeader:
    """Refuse a JPEG or JPEG 2000 frame that is cut, or of another size, before it is decoded."""
    found = _jpeg_header(frame) or _jpeg2000_header(frame)
    if found is None:  # for example a PNG, which OpenCV would decode at any size
        raise Undecodable("TRUNCATED", "the frame does not begin like a JPEG or JPEG 2000 image")
    if (found.height, found.width) != (height, width):
        is_larger = found.height * found.width > 4 * height * width
        message = f"the frame is {found.width} x {found.height}, the header says {width} x {height}"
        raise Undecodable("TOO_LARGE" if is_larger else "BAD_HEADER", message)
    if frame[:2] == b"\xff\xd8" and not is_whole_jpeg(frame):
        raise Undecodable("TRUNCATED", "the JPEG frame has no end-of-image marker: cut short")
    return found


def _jpeg_header(frame: bytes) -> FrameHeader | None:
    """The start-of-frame segment (ISO 10918-1, B.2.2), or None."""
    if frame[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(frame) and frame[at] == 0xFF:
        marker, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4], "big")
        start_of_frame = 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)
        if start_of_frame or marker == 0xF7:  # F7: JPEG-LS
            bits, height, width = struct.unpack(">BHH", frame[at + 4 : at + 9])
            return FrameHeader(height, width, bits)
        at += 1 if marker == 0xFF else 2 + length  # 0xFF may be repeated as fill
    return None


def _jpeg2000_header(frame: bytes) -> FrameHeader | None:
    """The SIZ segment (ISO 15444-1, A.5.1), or None."""
    start = frame.find(b"\xff\x4f\xff\x51", 0, 4096)
    if start < 0 or len(frame) < start + 43:
        return None
    right, bottom, left, top = struct.unpack(">IIII", frame[start + 8 : start + 24])
    return FrameHeader(bottom - top, right - left, (frame[start + 42] & 0x7F) + 1)
