"""SIIM-ACR run lengths: column-major, gaps counted from the end of the previous run.

A row is a list of `gap length` pairs. Pixels are numbered from 0, down the columns and then left
to right. `-1` is an empty mask. (SIIM-ACR Pneumothorax Segmentation, data description;
the worked example is in tests/test_rle.py.)
"""

import re

import numpy as np

from pneumothorax.errors import BadInput

EMPTY = "-1"
KAGGLE_SHAPE = (1024, 1024)  # (H, W) of every SIIM-ACR image
_PAIRS = re.compile(r"\d{1,12} \d{1,12}(?: \d{1,12} \d{1,12})*", re.ASCII)


def encode(mask: np.ndarray) -> str:
    """(H, W) array, nonzero = inside -> "gap length gap length ...", or EMPTY.

    Works on the mask's bounding box only: real masks cover about 1 % of a radiograph. C and
    Fortran order are equally fast; other views are copied.
    """
    import cv2  # here, so that importing the module stays quick

    if mask.ndim != 2:
        raise ValueError(f"a mask is (H, W), got shape {mask.shape}")
    is_bytes = mask.dtype in (np.bool_, np.uint8)
    inside = mask.view(np.uint8) if is_bytes else (mask != 0).view(np.uint8)
    by_column = inside.T
    if by_column.flags.c_contiguous:  # Fortran order, as most decoders return masks: no copy
        top, left, height, width = cv2.boundingRect(by_column)
    else:
        left, top, width, height = cv2.boundingRect(np.ascontiguousarray(inside))
    if width == 0:
        return EMPTY
    columns = np.zeros((width, height + 2), dtype=bool)  # a 0 above and below each column
    columns[:, 1:-1] = by_column[left : left + width, top : top + height]
    flat = columns.ravel()
    # start, end, start, end, ...: no run crosses a column here
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    column, row = np.divmod(edges, height + 2)
    edges = (column + left) * mask.shape[0] + row + top
    # where a run continues at the top of the next column
    joins = np.flatnonzero(edges[1:-1:2] == edges[2::2])
    edges = np.delete(edges, np.concatenate([2 * joins + 1, 2 * joins + 2]))
    return " ".join(map(str, np.diff(edges, prepend=0).tolist()))


def encode_checked(mask: np.ndarray, image_id: str) -> str:
    """(H, W) mask of 0 and 1 -> `encode`, decoded again: RuntimeError if that is not the mask."""
    text = encode(mask)
    if not np.array_equal(decode(text, mask.shape), mask):
        raise RuntimeError(f"{image_id}: the run lengths do not decode to the mask")
    return text


def runs(text: str, n_pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """One row -> (starts, ends) of its pixel runs.

    int64, `end` exclusive, within 0 .. n_pixels. Raises BadInput for anything but pairs
    of whole numbers, for a run of length 0 and for a run past the last pixel.
    """
    gaps_lengths = numbers(text)
    edges = np.cumsum(gaps_lengths)
    if not gaps_lengths[1::2].all():
        raise BadInput(f"a run of length 0 (pair {int(np.argmin(gaps_lengths[1::2])) + 1})")
    if edges[-1] > n_pixels:
        message = f"a run ends at pixel {edges[-1]}, past the image's {n_pixels} pixels"
        if look_absolute(gaps_lengths, n_pixels):
            message += (
                "; its starts look absolute (0- or 1-based)"
                " instead of counted from the end of the previous run"
            )
        raise BadInput(message)
    return edges[0::2], edges[1::2]


def numbers(text: str) -> np.ndarray:
    """One row -> its numbers, (2n,) int64. Raises BadInput if they are not pairs."""
    if not _PAIRS.fullmatch(text):
        raise BadInput(f"not pairs of whole numbers 'gap length ...': {text[:60]!r}")
    return np.fromstring(text, dtype=np.int64, sep=" ")


def look_absolute(pairs: np.ndarray, n_pixels: int) -> bool:
    """Whether two or more pairs fit the image as 'start length', 0- or 1-based.

    Absolute starts are the usual mistake: they are the format of other competitions.
    """
    starts, lengths = pairs[0::2], pairs[1::2]
    increasing = len(starts) > 1 and bool((np.diff(starts) > 0).all())
    return increasing and bool((starts + lengths).max() <= n_pixels + 1)


def decode(text: str, shape: tuple[int, int]) -> np.ndarray:
    """One row -> (H, W) uint8 mask of 0 and 1. Raises BadInput if it does not fit."""
    import cv2

    height, width = shape
    mask = np.zeros((height, width), dtype=np.uint8)
    if text == EMPTY:
        return mask
    starts, ends = runs(text, height * width)
    left, right = int(starts[0]) // height, int(ends[-1] - 1) // height + 1
    columns = np.zeros((right - left, height), dtype=np.uint8)  # only those that runs reach
    pixels = columns.ravel().data  # assigning bytes to plain memory is fastest per run
    ones = b"\1" * int((ends - starts).max())
    first = left * height
    for start, end in zip((starts - first).tolist(), (ends - first).tolist(), strict=True):
        pixels[start:end] = ones[: end - start]
    mask[:, left:right] = cv2.transpose(columns)
    return mask


def union(rows: tuple[str, ...] | list[str], shape: tuple[int, int]) -> np.ndarray:
    """All rows of one image -> the union of their masks, (H, W) uint8 of 0 and 1."""
    if not rows:
        return np.zeros(shape, dtype=np.uint8)
    mask = decode(rows[0], shape)
    for text in rows[1:]:
        mask |= decode(text, shape)
    return mask
