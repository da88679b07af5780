"""One DICOM file: is it a radiograph we can use, what are the few tags we keep, and its grey image.

Nothing is ever read with `force=True`, no tag outside the whitelist is kept, and sizes are checked before memory is
taken for pixels. A file that cannot be used raises `Rejected` with a code.
"""

import io
import math
import re
import stat
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import BytesLengthException
from pydicom.filereader import read_dataset, read_preamble
from pydicom.tag import Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from pneumothorax import pixels
from pneumothorax.errors import BadInput

MAX_PIXELS = 64 * 1024 * 1024
MAX_FILE_BYTES = 512 * 1024 * 1024
IMAGE_ID = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,64}")

_IDENTITY = ("SOPInstanceUID", "PatientID", "PatientSex", "PatientAge", "ViewPosition")
_PIXEL_TAGS = (
    *(
        "Rows",
        "Columns",
        "NumberOfFrames",
        "SamplesPerPixel",
        "PhotometricInterpretation",
        "PlanarConfiguration",
    ),
    *(
        "BitsAllocated",
        "BitsStored",
        "HighBit",
        "PixelRepresentation",
        "RescaleSlope",
        "RescaleIntercept",
    ),
    *(
        "ModalityLUTSequence",
        "WindowCenter",
        "WindowWidth",
        "VOILUTFunction",
        "VOILUTSequence",
        "PixelData",
    ),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
)
SPACINGS = (
    "PixelSpacing",
    "ImagerPixelSpacing",
)  # in the patient; at the detector, where everything is larger
WHITELIST = [*_IDENTITY, *_PIXEL_TAGS, *SPACINGS]


class Rejected(BadInput):
    """A DICOM file that cannot be used; `code` is one of those listed in the README."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type["Rejected"], tuple[str, str]]:
        return type(self), (
            self.code,
            str(self),
        )  # exceptions with two arguments do not cross processes otherwise


@dataclass(frozen=True)
class Header:
    """The tags we keep. `patient_id` is the raw PatientID: hash it before it is written anywhere."""

    image_id: str  # SOPInstanceUID
    patient_id: str
    view: str  # PA, AP, LL, ... or ""
    sex: str  # M, F, O or ""
    age: str  # whole years, or ""
    height: int
    width: int


@dataclass(frozen=True)
class Radiograph:
    """A whole file: its header, its image (H, W) uint8 with white = dense, and what decoded it."""

    header: Header
    image: np.ndarray
    decoder: str
    colour: bool  # the file held RGB or YBR

    @property
    def image_id(self) -> str:
        return self.header.image_id


def read(path: Path | str) -> Radiograph:
    """Read and decode one DICOM file. Raises Rejected."""
    header, dataset = open_header(Path(path))
    return decode(header, dataset)


def open_header(path: Path) -> tuple[Header, pydicom.Dataset]:
    """The header and the data set with its pixels still encoded. Raises Rejected."""
    data = _read_file(path)
    with warnings.catch_warnings(), pydicom.config.disable_value_validation():
        warnings.simplefilter("ignore")  # stage-2 files have ids that are no legal UIDs
        try:
            dataset = pydicom.dcmread(io.BytesIO(_inflated(data)), specific_tags=WHITELIST)
            syntax = dataset.file_meta.get("TransferSyntaxUID")
        except Rejected:
            raise
        except (EOFError, struct.error, BytesLengthException) as error:
            raise Rejected(
                "TRUNCATED", f"the file ends inside its header or pixels ({short_error(error)})"
            ) from error
        except (
            Exception
        ) as error:  # the library raises whatever a broken file makes it stumble over
            raise Rejected(
                "BAD_HEADER", f"the header cannot be read ({short_error(error)})"
            ) from error
        if not len(dataset):
            raise Rejected(
                "TRUNCATED", "the file ends inside its header: no data element was found"
            )
        if syntax is None:
            raise Rejected("BAD_HEADER", "no transfer syntax in the file meta information")
        return _header(dataset), dataset


def decode(header: Header, dataset: pydicom.Dataset) -> Radiograph:
    """Decode the pixels of a data set that `open_header` gave. Raises Rejected."""
    with warnings.catch_warnings(), pydicom.config.disable_value_validation():
        warnings.simplefilter("ignore")
        try:
            image, decoder, colour = pixels.decode(dataset)
        except pixels.Undecodable as error:
            raise Rejected(error.code, str(error)) from error
        except MemoryError:
            raise Rejected("TOO_LARGE", "the image does not fit into memory") from None
        except Exception as error:
            raise Rejected(
                "BAD_HEADER", f"the pixels cannot be decoded ({short_error(error)})"
            ) from error
    return Radiograph(header, image, decoder, colour)


def whole_header(path: Path) -> pydicom.Dataset:
    """Every tag but the pixels, for an object that refers to this file: the only place where all identifiers are read.

    For files that `open_header` accepted; raises Rejected, or whatever pydicom raises where the rest is broken.
    """
    data = _inflated(_read_file(path))
    with warnings.catch_warnings(), pydicom.config.disable_value_validation():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)


def pixel_area_mm2(dataset: pydicom.Dataset) -> tuple[float | None, str]:
    """(square millimetres of a pixel, the tag that says so); (None, "") where no tag does."""
    with warnings.catch_warnings(), pydicom.config.disable_value_validation():
        warnings.simplefilter(
            "ignore"
        )  # values are converted when they are asked for, and odd ones quoted
        for name in SPACINGS:
            try:
                height, width = (float(value) for value in dataset.get(name) or ())
            except Exception:  # noqa: S112 (no numbers, or not two of them: as good as none)
                continue
            if 0 < height < math.inf and 0 < width < math.inf:
                return height * width, name
    return None, ""


def is_image_id(text: str) -> bool:
    """Ids become file names: letters, digits, `.`, `_`, `-`, at most 64, not beginning with a dot."""
    return IMAGE_ID.fullmatch(text) is not None


def _read_file(path: Path) -> bytes:
    """The bytes of a regular file that begins like DICOM part 10."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise Rejected("NOT_A_FILE", "not a regular file")
        if found.st_size > MAX_FILE_BYTES:
            raise Rejected("TOO_LARGE", f"{found.st_size} bytes; at most {MAX_FILE_BYTES} are read")
        data = path.read_bytes()
    except OSError as error:
        raise Rejected("IO", f"cannot be read: {error.strerror or error}") from error
    if data[128:132] != b"DICM":
        raise Rejected(
            "NOT_DICOM", "no DICOM preamble ('DICM' at byte 128)" if data else "the file is empty"
        )
    return data


def _inflated(data: bytes) -> bytes:
    """`data` unless it is deflated and inflates to more than 2 * MAX_PIXELS bytes: then Rejected, before dcmread."""
    if DeflatedExplicitVRLittleEndian.encode("ascii") not in data:
        return data
    # The group length element may be missing or wrong, so the file meta information is read as dcmread reads it.
    stream = io.BytesIO(data)
    read_preamble(stream, force=False)
    meta = read_dataset(
        stream,
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=lambda tag, vr, length: tag >> 16 != 2,
    )
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return data
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    left, total = stream.read(), 0
    while left and not inflater.eof:
        total += len(inflater.decompress(left, 1 << 22))
        left = inflater.unconsumed_tail
        if total > MAX_PIXELS * 2:
            raise Rejected("TOO_LARGE", f"a deflated data set of more than {MAX_PIXELS * 2} bytes")
    return data


def _header(dataset: pydicom.Dataset) -> Header:
    image_id = _text(dataset, "SOPInstanceUID")
    if not image_id:
        raise Rejected(_code_of_lack(dataset, "SOPInstanceUID"), "no SOPInstanceUID")
    if not is_image_id(image_id):
        raise Rejected(
            "BAD_ID", f"a SOPInstanceUID of {len(image_id)} characters that cannot name a file"
        )
    height, width = (_positive(dataset, name) for name in ("Rows", "Columns"))
    if height * width > MAX_PIXELS:
        raise Rejected("TOO_LARGE", f"{width} x {height} pixels; at most {MAX_PIXELS} are decoded")
    if "PixelData" not in dataset:
        raise Rejected("NO_PIXELS", "no PixelData")
    frames = _text(dataset, "NumberOfFrames") or "1"
    if frames not in ("0", "1"):
        many = (
            f"{frames} frames"
            if re.fullmatch(r"\d{1,9}", frames, re.ASCII)
            else "NumberOfFrames is no number"
        )
        raise Rejected("MULTI_FRAME", f"{many}; a radiograph has one")
    return Header(
        image_id=image_id,
        patient_id=_text(dataset, "PatientID"),
        view=_word(dataset, "ViewPosition"),
        sex=_word(dataset, "PatientSex"),
        age=_years(_text(dataset, "PatientAge")),
        height=height,
        width=width,
    )


def _text(dataset: pydicom.Dataset, name: str) -> str:
    try:
        return str(dataset.get(name) or "").strip().strip("\0")
    except Exception as error:
        raise Rejected("BAD_HEADER", f"{name} cannot be read ({short_error(error)})") from error


def _word(dataset: pydicom.Dataset, name: str) -> str:
    """A coded value such as PA or F; anything longer than a code is somebody's free text and not kept."""
    text = _text(dataset, name)
    return text if re.fullmatch(r"[A-Z0-9_]{1,4}", text) else ""


def _years(age: str) -> str:
    """PatientAge '064Y' (standard) or '64' (SIIM) -> '64'; months, weeks and days -> '0'; anything else -> ''."""
    found = re.fullmatch(r"(\d{1,3})([YMWD]?)", age)
    if not found:
        return ""
    return (
        str(int(found[1]))
        if found[2] in ("", "Y")
        else str(int(found[1]) // {"M": 12, "W": 52, "D": 365}[found[2]])
    )


def _positive(dataset: pydicom.Dataset, name: str) -> int:
    try:
        value = dataset.get(name)
    except Exception as error:  # a value of the wrong length, in a file cut short for one
        raise Rejected(
            _code_of_lack(dataset, name), f"{name} cannot be read ({short_error(error)})"
        ) from error
    if not isinstance(value, int):
        message = f"no {name}" if value is None else f"{name} is no whole number"
        raise Rejected(_code_of_lack(dataset, name), message)
    if value < 1:
        raise Rejected("BAD_HEADER", f"{name} is {value}")
    return value


def _code_of_lack(dataset: pydicom.Dataset, name: str) -> str:
    """Of a required tag that is not there, or not whole: a file that was cut there has nothing after it."""
    return "TRUNCATED" if max(dataset.keys()) <= Tag(name) else "BAD_HEADER"


def short_error(error: Exception) -> str:
    """An error's kind and first line without what it quotes: file contents (PatientID!) must not reach logs.

    From the first quotation mark to the last: the quoted text may hold some itself.
    """
    lines = str(error).splitlines() or [""]
    unquoted = re.sub(r"""['"](.*['"]|.*$)""", "'...'", lines[0])
    return f"{type(error).__name__}: {unquoted[:120]}".rstrip(": ")
