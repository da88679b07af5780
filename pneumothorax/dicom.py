"""One DICOM file: whether we can use it, the few tags we keep, and its grey image.

Nothing is ever read with `force=True`, no tag outside the whitelist is kept, and sizes
are checked before memory is taken for pixels. A file that cannot be used raises
`Rejected` with a code. PS3.x are the parts of the DICOM standard.
"""

import io
import math
import re
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import BytesLengthException
from pydicom.filereader import read_dataset, read_preamble
from pydicom.tag import Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from pneumothorax import pixels
from pneumothorax.errors import BadInput

MAX_PIXELS = 64 * 1024 * 1024
MAX_FILE_BYTES = 512 * 1024 * 1024
IMAGE_ID = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,64}")
ID_RULE = "1 to 64 of A-Z a-z 0-9 . _ - without spaces or accents"
SUFFIXES = (".dcm", ".dicom", ".dicm")  # in any case

# In the patient (PS3.3 10.7); at the detector, where everything is larger (PS3.3 C.8.11.4).
SPACINGS = ("PixelSpacing", "ImagerPixelSpacing")
WHITELIST = [
    Tag(name)  # dcmread would look all of them up, for every file
    for name in (
        *"SOPInstanceUID PatientID PatientSex PatientAge ViewPosition".split(),
        # Image Pixel module, PS3.3 C.7.6.3
        *"Rows Columns NumberOfFrames SamplesPerPixel PhotometricInterpretation".split(),
        *"PlanarConfiguration BitsAllocated BitsStored HighBit PixelRepresentation".split(),
        *"PixelData ExtendedOffsetTable ExtendedOffsetTableLengths".split(),
        # Modality LUT and VOI LUT modules, PS3.3 C.11.1 and C.11.2
        *"RescaleSlope RescaleIntercept ModalityLUTSequence".split(),
        *"WindowCenter WindowWidth VOILUTFunction VOILUTSequence".split(),
        *SPACINGS,
        # What kind of image it is
        *"SOPClassUID Modality ImagePositionPatient SliceThickness".split(),
    )
]
# Modality of images that X-rays project onto a detector, PS3.3 C.7.3.1.1.1: radiography,
# mammography, dental images, fluoroscopy, angiography. DR is not in the standard, but in use.
PROJECTIONS = frozenset("CR DX DR RG MG IO PX RF XA".split())
# The classes of such images, PS3.4 B.5. A secondary capture may show anything: SIIM-ACR's
# radiographs are some.
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
PROJECTION_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.1",  # computed and digital radiography, mammography, intra-oral
    "1.2.840.10008.5.1.4.1.1.12",  # angiography, fluoroscopy
    SECONDARY_CAPTURE,
)
# In the standard's names of classes without pixels that are found beside radiographs
NO_IMAGE = re.compile(r"Presentation State|\bSR\b|Document|Encapsulated|Directory|Waveform")


class Rejected(BadInput):
    """A file that cannot be used; `code` is one of those in rejected.csv."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type["Rejected"], tuple[str, str]]:
        """Needed for an exception with two arguments to travel between processes."""
        return type(self), (self.code, str(self))


@dataclass(frozen=True)
class Header:
    """The tags we keep.

    `patient_id` is the raw PatientID: hash it before it is written anywhere.
    """

    image_id: str  # SOPInstanceUID, else that of the file meta information, else the file's name
    patient_id: str
    view: str  # PA, AP, LL, ... or ""
    sex: str  # M, F, O or ""
    age: str  # whole years, or ""
    height: int  # Rows, pixels
    width: int  # Columns, pixels


@dataclass(frozen=True)
class Radiograph:
    """A decoded file: its header and its image, (H, W) uint8 with white = dense."""

    header: Header
    image: np.ndarray
    decoder: str  # name of the decoder
    colour: bool  # whether the grey values were made from colours
    grey_range: int  # highest minus lowest value of the image

    @property
    def image_id(self) -> str:
        return self.header.image_id

    @property
    def is_narrow(self) -> bool:
        """Whether the image uses less than a tenth of the 255 grey levels.

        The header, or a PNG of 16 bits, then allows for values that the image does not
        have: 12-bit values that are declared as 16 bits, for example.
        """
        return self.grey_range * 10 < 255


def read(path: Path | str) -> Radiograph:
    """Read and decode one DICOM file. Raises Rejected."""
    header, dataset = open_header(Path(path))
    return decode(header, dataset)


def open_header(path: Path) -> tuple[Header, pydicom.Dataset]:
    """The header, and the data set with its pixels still encoded. Raises Rejected."""
    data = _read_file(path)
    with _tolerant():
        try:
            dataset = pydicom.dcmread(io.BytesIO(_inflatable(data)), specific_tags=WHITELIST)
            syntax = dataset.file_meta.get("TransferSyntaxUID")
        except Rejected:
            raise
        except (EOFError, struct.error, BytesLengthException) as error:
            message = f"the file ends inside its header or pixels ({short_error(error)})"
            raise Rejected("TRUNCATED", message) from error
        except Exception as error:  # a broken file can make the library raise anything
            message = f"the header cannot be read ({short_error(error)})"
            raise Rejected("BAD_HEADER", message) from error
        _refuse_without_image(dataset)
        if not len(dataset):
            raise Rejected("TRUNCATED", "the file ends inside its header: no data element found")
        if syntax is None:
            raise Rejected("BAD_HEADER", "no transfer syntax in the file meta information")
        return _header(dataset, path), dataset


def decode(header: Header, dataset: pydicom.Dataset) -> Radiograph:
    """Decode the pixels of a data set that `open_header` gave. Raises Rejected."""
    with _tolerant():
        try:
            image, decoder, colour, grey_range = pixels.decode(dataset)
        except pixels.Undecodable as error:
            raise Rejected(error.code, str(error)) from error
        except MemoryError:
            raise Rejected("TOO_LARGE", "the image does not fit into memory") from None
        except Exception as error:
            message = f"the pixels cannot be decoded ({short_error(error)})"
            raise Rejected("BAD_HEADER", message) from error
    return Radiograph(header, image, decoder, colour, grey_range)


def whole_header(path: Path) -> pydicom.Dataset:
    """Every tag but the pixels, for an object that refers to this file.

    The only place where all identifiers are read. For files that `open_header`
    accepted; raises Rejected, or pydicom's own errors if the rest is broken.
    """
    data = _inflatable(_read_file(path))
    with _tolerant():
        return pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)


def pixel_area_mm2(dataset: pydicom.Dataset) -> tuple[float | None, str]:
    """(area of a pixel in mm^2, the tag it comes from); (None, "") if unknown."""
    with _tolerant():
        for name in SPACINGS:
            try:
                values = (str(value).replace(",", ".") for value in dataset.get(name) or ())
                height, width = map(float, values)
            except Exception:  # noqa: S112 (not two numbers: the same as no tag)
                continue
            if 0 < height < math.inf and 0 < width < math.inf:
                return height * width, name
    return None, ""


def not_a_radiograph(dataset: pydicom.Dataset) -> str:
    """Why the header shows something else than an X-ray projection; "" if it does not.

    A header that says nothing, as after some anonymisers, may be one of a radiograph.
    """
    with _tolerant():
        modality, kind = _said(dataset, "Modality").upper(), _class_of(dataset)
        is_placed = _said(dataset, "ImagePositionPatient") != ""
        try:
            is_slice = is_placed and 0 < float(_said(dataset, "SliceThickness")) < math.inf
        except ValueError:  # empty, or not a number
            is_slice = False
    is_other = modality not in ("", *PROJECTIONS)
    if is_other and re.fullmatch("[A-Z]{2}", modality):  # longer text might name somebody
        return f"Modality {modality}"
    if name := _class_of_another_kind(kind):
        return name
    if is_other:
        return "a Modality that is not one of a radiograph"
    if not modality and kind == SECONDARY_CAPTURE:
        return "a secondary capture without a Modality"
    return "a slice, with a position in the patient and a thickness" if is_slice else ""


def read_regular_file(path: Path) -> bytes:
    """The bytes of a file of any kind. Raises Rejected: NOT_A_FILE, TOO_LARGE or IO."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise Rejected("NOT_A_FILE", "not a regular file")
        if found.st_size > MAX_FILE_BYTES:
            raise Rejected("TOO_LARGE", f"{found.st_size} bytes; at most {MAX_FILE_BYTES} are read")
        return path.read_bytes()
    except OSError as error:
        raise Rejected("IO", f"cannot be read: {error.strerror or error}") from error


def name_without_suffix(path: Path) -> str:
    """The file's name without the suffix of a DICOM file; other dots belong to the name."""
    return path.stem if path.suffix.lower() in SUFFIXES else path.name


def is_image_id(text: str) -> bool:
    """Ids become file names: 1 to 64 of A-Z, a-z, 0-9, `.`, `_`, `-`, no leading dot."""
    return IMAGE_ID.fullmatch(text) is not None


@contextmanager
def _tolerant() -> Iterator[None]:
    """Without pydicom's validation and warnings.

    Stage 2 ids are not valid UIDs, and a warning may quote what a patient tag holds.
    Values are converted when they are asked for, so reading a tag may raise anything.
    """
    with warnings.catch_warnings(), pydicom.config.disable_value_validation():
        warnings.simplefilter("ignore")
        yield


def _read_file(path: Path) -> bytes:
    """The bytes of a regular file that has "DICM" at byte 128 (PS3.10 7.1)."""
    data = read_regular_file(path)
    if not data:
        raise Rejected("NOT_DICOM", "the file is empty")
    if data[128:132] != b"DICM":
        raise Rejected("NOT_DICOM", "no DICOM preamble ('DICM' at byte 128)")
    return data


def _inflatable(data: bytes) -> bytes:
    """`data`, unchanged. Raises Rejected if it inflates to over 2 * MAX_PIXELS bytes.

    Deflated data sets: PS3.5 A.5. dcmread inflates them without a limit.
    """
    if DeflatedExplicitVRLittleEndian.encode("ascii") not in data:
        return data
    # The group length may be missing or wrong: read the file meta information as dcmread does.
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
    remaining, total = stream.read(), 0
    while remaining and not inflater.eof:
        total += len(inflater.decompress(remaining, 1 << 22))
        remaining = inflater.unconsumed_tail
        if total > MAX_PIXELS * 2:
            raise Rejected("TOO_LARGE", f"a deflated data set of more than {MAX_PIXELS * 2} bytes")
    return data


def _header(dataset: pydicom.Dataset, path: Path) -> Header:
    image_id = _image_id(dataset, path)
    height, width = (_positive(dataset, name) for name in ("Rows", "Columns"))
    if height * width > MAX_PIXELS:
        raise Rejected("TOO_LARGE", f"{width} x {height} pixels; at most {MAX_PIXELS} are decoded")
    if "PixelData" not in dataset:
        raise Rejected("NO_PIXELS", "no PixelData")
    frames = _text(dataset, "NumberOfFrames") or "1"
    number = int(frames) if re.fullmatch(r"\+?\d{1,9}", frames, re.ASCII) else None
    if number not in (0, 1):
        found = "NumberOfFrames is not a number" if number is None else f"{number} frames"
        raise Rejected("MULTI_FRAME", f"{found}; a radiograph has one")
    return Header(
        image_id=image_id,
        patient_id=_text(dataset, "PatientID"),
        view=_word(dataset, "ViewPosition"),
        sex=_word(dataset, "PatientSex"),
        age=_years(_text(dataset, "PatientAge")),
        height=height,
        width=width,
    )


def _image_id(dataset: pydicom.Dataset, path: Path) -> str:
    """SOPInstanceUID. Some anonymisers remove it: then the file meta information's, or the name."""
    for tags, name in (
        (dataset, "SOPInstanceUID"),
        (dataset.file_meta, "MediaStorageSOPInstanceUID"),
    ):
        image_id = _text(tags, name)
        if image_id and not is_image_id(image_id):
            found = f"a {name} of {len(image_id)} characters"
            raise Rejected("BAD_ID", f"{found} that cannot name a file")
        if image_id:
            return image_id
    image_id = name_without_suffix(path)
    if not is_image_id(image_id):
        message = f"no SOPInstanceUID, and a file name that cannot be an image id: use {ID_RULE}"
        raise Rejected(_code_of_lack(dataset, "SOPInstanceUID"), message)
    return image_id


def _refuse_without_image(dataset: pydicom.Dataset) -> None:
    """Reports, presentation states, documents and directories hold no image by their class.

    Disks of clinical systems have some beside the images (PS3.3 A.1.4, PS3.4 B.5).
    """
    if "Rows" not in dataset and "PixelData" not in dataset:
        name = _class_of_another_kind(_class_of(dataset))
        if NO_IMAGE.search(name):
            raise Rejected("NO_PIXELS", f"no image by its class: {name}")


def _class_of(dataset: pydicom.Dataset) -> str:
    """The SOP class, or that of the file meta information; "" if it cannot be read."""
    return _said(dataset, "SOPClassUID") or _said(dataset.file_meta, "MediaStorageSOPClassUID")


def _said(tags: pydicom.Dataset, name: str) -> str:
    """The text of a tag; a value that cannot be read says nothing."""
    try:
        return _text(tags, name)
    except Rejected:
        return ""


def _class_of_another_kind(kind: str) -> str:
    """The standard's name of a SOP class of other images than projections, else ""."""
    is_projection = any(f"{kind}.".startswith(f"{known}.") for known in PROJECTION_CLASSES)
    name = UID(kind).name
    return "" if is_projection or name == kind else name


def _text(dataset: pydicom.Dataset, name: str) -> str:
    try:
        return str(dataset.get(name) or "").strip().strip("\0")
    except Exception as error:
        raise Rejected("BAD_HEADER", f"{name} cannot be read ({short_error(error)})") from error


def _word(dataset: pydicom.Dataset, name: str) -> str:
    """A coded value such as PA or F; "" for longer text, which might name somebody."""
    text = _text(dataset, name)
    return text if re.fullmatch(r"[A-Z0-9_]{1,4}", text) else ""


def _years(age: str) -> str:
    """PatientAge in years: '064Y' (PS3.5 6.2) or '64' (SIIM) -> '64', '018M' -> '1'.

    "" for anything else.
    """
    found = re.fullmatch(r"(\d{1,3})([YMWD]?)", age)
    if not found:
        return ""
    per_year = {"": 1, "Y": 1, "M": 12, "W": 52, "D": 365}
    return str(int(found[1]) // per_year[found[2]])


def _positive(dataset: pydicom.Dataset, name: str) -> int:
    """A required whole number, 1 or more."""
    try:
        value = dataset.get(name)
    except Exception as error:  # a value of the wrong length, for example in a file cut short
        message = f"{name} cannot be read ({short_error(error)})"
        raise Rejected(_code_of_lack(dataset, name), message) from error
    if not isinstance(value, int):
        message = f"no {name}" if value is None else f"{name} is not a whole number"
        raise Rejected(_code_of_lack(dataset, name), message)
    if value < 1:
        raise Rejected("BAD_HEADER", f"{name} is {value}")
    return value


def _code_of_lack(dataset: pydicom.Dataset, name: str) -> str:
    """The code for a required tag that is missing or incomplete.

    Tags are in ascending order (PS3.5 7.1): a file that was cut here has none after it.
    """
    return "TRUNCATED" if max(dataset.keys()) <= Tag(name) else "BAD_HEADER"


def short_error(error: Exception) -> str:
    """An error's kind and first line, without any text that it quotes.

    File contents (PatientID!) must not reach logs. Everything from the first quotation
    mark to the last goes, since the quoted text may contain quotation marks.
    """
    lines = str(error).splitlines() or [""]
    unquoted = re.sub(r"""['"](.*['"]|.*$)""", "'...'", lines[0])
    return f"{type(error).__name__}: {unquoted[:120]}".rstrip(": ")
