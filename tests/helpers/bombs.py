"""Small files that take gigabytes of memory when they are read carelessly."""

import struct
import zlib

import numpy as np
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGBaseline8Bit

from tests.helpers import rasters
from tests.helpers.dicoms import encode_jpeg, write_dicom

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def jpeg(side):
    """A small grey JPEG whose header says side x side."""
    data = bytearray(encode_jpeg(RAMP))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", side, side)
    return bytes(data)


def packed(first, zeros, repeats):
    """`first`, then `repeats` times that many zeros, deflated (RFC 1951) without the wait.

    After a full flush nothing refers to earlier bytes, so the zeros are packed once.
    """
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    start, block = (
        packer.compress(data) + packer.flush(zlib.Z_FULL_FLUSH) for data in (first, bytes(zeros))
    )
    return start + repeats * block + packer.flush()


def deflated(path, *, group_length):
    """A deflated DICOM of a few MB whose data set inflates to 1.5 GiB of zeros."""
    plain = write_dicom(path, RAMP, syntax=DeflatedExplicitVRLittleEndian)
    data = plain.read_bytes()
    start = 144 + int.from_bytes(data[140:144], "little")
    inner = zlib.decompress(data[start:], -zlib.MAX_WBITS)
    header = inner[: inner.index(b"\xe0\x7f\x10\x00")]
    pixels = b"\xe0\x7f\x10\x00OB\0\0" + struct.pack("<I", 1536 << 20)
    meta = data[:start] if group_length else data[:132] + data[144:start]
    path.write_bytes(meta + packed(header + pixels, 1 << 20, 1536))
    return path


def png(path, side):
    """A small PNG of side x side black pixels, which take 6 bytes each -> `path`."""
    row = 1 + side * 6
    # zlib's format (RFC 1950): a header, and Adler's sum, which is 1 and the number of zeros.
    total = struct.pack(">HH", side * row % 65521, 1)
    data = b"\x78\xda" + packed(b"", row, side) + total
    path.write_bytes(rasters.encode((side, side), b"", bits=16, kind=rasters.COLOUR, packed=data))
    return path


def all_in(folder):
    """Write one of each kind -> their paths."""
    data = jpeg(20000)
    return [
        deflated(folder / "deflated.dcm", group_length=True),
        deflated(folder / "deflated-without-length.dcm", group_length=False),
        write_dicom(
            folder / "jpeg.dcm", RAMP, syntax=JPEGBaseline8Bit, pixel_data=encapsulate([data])
        ),
        write_dicom(folder / "header.dcm", RAMP, Rows=65535, Columns=65535),
        write_dicom(folder / "jpeg-header.dcm", RAMP, jpeg=True, Rows=65535, Columns=65535),
    ]
