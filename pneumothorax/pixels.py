"""The pixels of a DICOM data set -> (H, W) uint8 grey, white = dense.

`frames` gives the words that the file stores, `greyscale` computes their grey levels;
here are the tags between the two. Numbers that are empty or not finite say nothing: they
count as absent. Plain 8-bit values pass unchanged.
"""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import pydicom

from pneumothorax import frames, greyscale
from pneumothorax.frames import Undecodable
from pneumothorax.greyscale import Bits, Rescale, Table, Window

GREY = ("MONOCHROME2", "MONOCHROME1")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
# As C libraries write them; Windows has "1.#QNAN" and "1.#INF", and newer ones "-nan(ind)"
NOT_FINITE = re.compile(r"\s*[-+]?(nan|inf|1\.#)", re.IGNORECASE)
TRANSFORMS = ("RescaleSlope", "ModalityLUTSequence", "WindowCenter", "VOILUTSequence")


class Decoded(NamedTuple):
    """The pixels of a data set."""

    image: np.ndarray  # (H, W) uint8
    decoder: str  # its name
    colour: bool  # whether the file held colour
    grey_range: int  # highest minus lowest value of the image


def decode(dataset: pydicom.Dataset) -> Decoded:
    """Decode and transform the pixels. A constant image becomes zeros.

    Raises Undecodable, also if values that vary would become a constant image.
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
    stored, decoder, word_bits = frames.stored_words(dataset)
    if stored.ndim != (3 if kind in COLOUR else 2):
        found = f"SamplesPerPixel is {dataset.get('SamplesPerPixel')} in an image of {kind}"
        raise Undecodable("BAD_HEADER", found)
    words, bits = stored, _bits(dataset, stored, word_bits)
    if bits.stored < 8 * words.itemsize and _is_lossy_jpeg(dataset):
        words = np.minimum(words, 2**bits.stored - 1)  # cut off, the next bit would give black
    if kind in COLOUR:
        image = _grey_of_colour(words, bits)
    else:
        image = _grey(words, bits, dataset, inverted=kind == "MONOCHROME1")
    image, grey_range = zeros_if_constant(image)
    # A wrong HighBit shifts values out that are in the lowest bits.
    if grey_range == 0 and (_varies(bits.cut(words)) or _varies(stored & (2**bits.stored - 1))):
        message = "the stored values vary, but the header's bits or transforms make them one grey"
        raise Undecodable("BAD_HEADER", message)
    return Decoded(image, decoder, kind in COLOUR, grey_range)


def zeros_if_constant(image: np.ndarray) -> tuple[np.ndarray, int]:
    """((H, W), unchanged unless all values are equal; highest minus lowest value).

    Every empty exposure looks the same.
    """
    low, high, _, _ = cv2.minMaxLoc(image)
    return np.zeros_like(image) if low == high else image, int(high - low)


def _varies(values: np.ndarray) -> bool:
    """Whether any channel of (H, W) or (H, W, 3) has different values."""
    channels = values.reshape(-1, values.shape[2] if values.ndim == 3 else 1)
    return bool((channels.min(axis=0) != channels.max(axis=0)).any())


def _bits(dataset: pydicom.Dataset, words: np.ndarray, word_bits: int) -> Bits:
    """Where the values are in their words.

    Args:
        word_bits: the bits of a word that the frame can hold. A frame that holds values
            alone has no unused bits, whatever the header says of the file it was made from.
    """
    stored = frames.whole_number(dataset, "BitsStored", default=word_bits)
    if stored < 1:
        raise Undecodable("BAD_HEADER", f"BitsStored is {stored}")
    stored = min(stored, word_bits)
    high = stored - 1
    if _is_lossy_jpeg(dataset):
        return Bits(stored, high, signed=False)
    if stored < word_bits:  # a HighBit that cannot be is ignored
        declared = frames.whole_number(dataset, "HighBit", default=high)
        high = declared if high <= declared < word_bits else high
    signed = words.ndim == 2 and dataset.get("PixelRepresentation") == 1
    return Bits(stored, high, signed)


def _is_lossy_jpeg(dataset: pydicom.Dataset) -> bool:
    """Whether the frame holds unsigned values alone (PS3.5 8.2.1), which may be rounded up."""
    return dataset.file_meta.TransferSyntaxUID in frames.LOSSY_JPEG


def _grey_of_colour(words: np.ndarray, bits: Bits) -> np.ndarray:
    """(H, W, 3) RGB -> (H, W) uint8. Windows and tables are for grey values only."""
    grey = cv2.cvtColor(bits.cut(words), cv2.COLOR_RGB2GRAY)
    return greyscale.to_8_bits(grey, bits.stored)


def _grey(words: np.ndarray, bits: Bits, dataset: pydicom.Dataset, *, inverted: bool) -> np.ndarray:
    """(H, W) words -> (H, W) uint8."""
    is_plain = not any(name in dataset for name in TRANSFORMS)
    if is_plain and words.dtype == np.uint8 and bits.stored == 8 and not bits.signed:
        return cv2.bitwise_not(words) if inverted else words
    every_word = np.arange(np.iinfo(words.dtype).max + 1, dtype=words.dtype)
    modality, voi = _modality(dataset), _voi(dataset)
    try:
        levels = greyscale.grey_levels(
            bits.values(every_word), bits.span, modality=modality, voi=voi, inverted=inverted
        )
    except ValueError as error:
        raise Undecodable("BAD_HEADER", f"the grey values cannot be computed: {error}") from error
    return greyscale.look_up(levels, words)


def _modality(dataset: pydicom.Dataset) -> Rescale | Table:
    """The modality LUT module: a table comes before slope and intercept (PS3.3 C.11.1)."""
    if tables := _tables(dataset, "ModalityLUTSequence"):
        return tables[0]
    slope, intercept = (_numbers(dataset, f"Rescale{name}")[0] for name in ("Slope", "Intercept"))
    # A slope of 0 would make one grey of every image: it says as little as an empty one.
    return Rescale(1.0 if slope in (None, 0) else slope, intercept or 0.0)


def _voi(dataset: pydicom.Dataset) -> Window | Table | None:
    """The VOI LUT module (PS3.3 C.11.2): the first usable window, else the first table."""
    pairs = zip(_numbers(dataset, "WindowCenter"), _numbers(dataset, "WindowWidth"), strict=False)
    for centre, width in pairs:
        if centre is not None and width is not None and width >= 1:
            return Window(centre, width, _voi_function(dataset))
    tables = _tables(dataset, "VOILUTSequence")
    return tables[0] if tables else None


def _voi_function(dataset: pydicom.Dataset) -> str:
    values = dataset.get("VOILUTFunction") or "LINEAR"
    function = str(values if isinstance(values, str) else values[0]).strip(" \0").upper()
    if function not in ("", *greyscale.FUNCTIONS):
        message = f"VOILUTFunction is none of {', '.join(greyscale.FUNCTIONS)}"
        raise Undecodable("BAD_HEADER", message)
    return function or "LINEAR"


def _tables(dataset: pydicom.Dataset, name: str) -> list[Table]:
    """The tables of a sequence; items without a descriptor or without data are none."""
    is_little_endian = dataset.file_meta.TransferSyntaxUID.is_little_endian
    tables = []
    for item in dataset.get(name) or ():
        descriptor, data = (
            _bytes(item, tag, is_little_endian) for tag in ("LUTDescriptor", "LUTData")
        )
        if descriptor and data:
            tables.append(_table(descriptor, data))
    return tables


def _table(descriptor: bytes, data: bytes) -> Table:
    """A table from the little-endian bytes of its descriptor and its data."""
    if len(descriptor) != 6:
        raise Undecodable("BAD_HEADER", "a LUTDescriptor does not hold three numbers")
    length, first, bits = np.frombuffer(descriptor, "<u2").tolist()
    length = length or 0x10000
    is_packed = len(data) < 2 * length and len(data) <= length + 1  # one byte per entry
    entries = np.frombuffer(data, np.uint8 if is_packed else "<u2", len(data) // (2 - is_packed))
    if len(entries) < length:
        raise Undecodable("BAD_HEADER", f"a table of {length} entries has {len(data)} bytes")
    return Table(first, bits, entries[:length])


def _bytes(item: pydicom.Dataset, name: str, is_little_endian: bool) -> bytes:
    """The value of 16-bit words (VR US, SS or OW) as little-endian bytes; b"" without one."""
    value = item.get(name)
    if value is None or value == "":
        return b""
    if not isinstance(value, bytes):
        words = np.atleast_1d(np.asarray(value, np.int64)) & 0xFFFF
        return words.astype("<u2").tobytes()
    if is_little_endian or item[name].VR != "OW":
        return value
    return np.frombuffer(value, ">u2").astype("<u2").tobytes()


def _numbers(dataset: pydicom.Dataset, name: str) -> list[float | None]:
    """The decimal strings of a tag, at least one; None for what is empty or not finite."""
    value: Any = dataset.get(name)
    if isinstance(value, str):  # text that pydicom does not convert
        value = value.split("\\")
    is_list = isinstance(value, Sequence) and not isinstance(value, bytes)
    values = list(value) if is_list else [value]
    return [_finite(value, name) for value in values] or [None]


def _finite(value: Any, name: str) -> float | None:
    if value is None or value == "":
        return None
    if NOT_FINITE.match(str(value)):
        return None
    try:
        number = float(str(value).replace(",", "."))  # some programs write decimal commas
    except (TypeError, ValueError):  # the text might name somebody: it is not quoted
        raise Undecodable("BAD_HEADER", f"{name} is not a number") from None
    return number if math.isfinite(number) else None
