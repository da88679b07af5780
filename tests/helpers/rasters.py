"""PNG files chunk by chunk, in forms that no library writes."""

import struct
import zlib

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, COLOUR, PALETTE, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 3, 4, 6  # PNG specification, 11.2.1
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
PASSES += ((0, 1, 1, 2),)  # first column and row, steps to the right and down; 8.2


def chunk(name, data):
    """A chunk with its right sum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def rows(image, bits=8):
    """(H, W) or (H, W, channels) values -> the bytes of all rows, each without a filter."""
    if bits < 8:
        digits = np.unpackbits(image.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits :]
        packed = np.packbits(digits.reshape(len(image), -1), axis=1)
    else:
        packed = image.astype(">u2" if bits == 16 else np.uint8)
    return b"".join(b"\0" + row.tobytes() for row in packed)


def interlaced_rows(image):
    """(H, W) uint8 -> the rows of the seven passes of Adam7."""
    passes = (image[row::down, column::right] for column, row, right, down in PASSES)
    return b"".join(rows(part) for part in passes if part.size)


def encode(shape, raw, *, bits=8, kind=GREY, interlaced=False, palette=b"", packed=None):
    """The bytes of a PNG.

    Args:
        shape: (H, W) for the header.
        raw: the rows.
        packed: compressed rows, instead of `raw`.
    """
    header = struct.pack(">IIBBBBB", shape[1], shape[0], bits, kind, 0, 0, int(interlaced))
    chunks = [chunk(b"IHDR", header)]
    if palette:
        chunks.append(chunk(b"PLTE", palette))
    chunks += [chunk(b"IDAT", zlib.compress(raw) if packed is None else packed)]
    return SIGNATURE + b"".join([*chunks, chunk(b"IEND", b"")])
