"""SIIM-ACR run lengths: column-major, each gap counted from the previous run's end.

A row is pairs `gap length`; pixels are numbered from 0 down the columns, then left to right. `-1` is an
empty mask. (SIIM-ACR Pneumothorax Segmentation, data description; the worked example is in tests/test_rle.py.)
"""

import re

import cv2
import numpy as np

from pneumothorax.errors import BadInput

EMPTY = "-1"
_PAIRS = re.compile(r"\d{1,12} \d{1,12}(?: \d{1,12} \d{1,12})*", re.ASCII)


def encode(mask: np.ndarray) -> str:
    """(H, W) array, not 0 = inside -> "gap length gap length ...", or EMPTY when nothing is inside.

    Only the bounding box of the mask is looked at: real masks cover about 1 % of a radiograph.
    """
    if mask.ndim != 2:
        raise ValueError(f"a mask is (H, W), got shape {mask.shape}")
    inside = (
        mask.view(np.uint8) if mask.dtype in (np.bool_, np.uint8) else (mask != 0).view(np.uint8)
    )
    left, top, width, height = cv2.boundingRect(np.ascontiguousarray(inside))
    if width == 0:
        return EMPTY
    columns = np.zeros(
        (width, height + 2), dtype=bool
    )  # a 0 above and below each column of the box
    columns[:, 1:-1] = inside[top : top + height, left : left + width].T
    flat = columns.ravel()
    edges = np.flatnonzero(
        flat[1:] != flat[:-1]
    )  # start, end, start, end, ...; no run crosses a column
    column, row = np.divmod(edges, height + 2)
    edges = (column + left) * mask.shape[0] + row + top
    joins = np.flatnonzero(
        edges[1:-1:2] == edges[2::2]
    )  # a run that goes on at the top of the next column
    edges = np.delete(edges, np.concatenate([2 * joins + 1, 2 * joins + 2]))
    return " ".join(map(str, np.diff(edges, prepend=0).tolist()))


def runs(text: str, n_pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """One mask row -> (starts, ends) of its runs, int64, `end` exclusive, within 0 .. n_pixels.

    Raises BadInput for anything but pairs of whole numbers, for an empty run and for one past the last pixel.
    """
    gaps_lengths = numbers(text)
    edges = np.cumsum(gaps_lengths)
    if not gaps_lengths[1::2].all():
        raise BadInput(f"a run of length 0 (pair {int(np.argmin(gaps_lengths[1::2])) + 1})")
    if edges[-1] > n_pixels:
        guess = (
            "; its starts look absolute (0- or 1-based) instead of counted from the previous run's end"
            if look_absolute(gaps_lengths, n_pixels)
            else ""
        )
        raise BadInput(
            f"a run ends at pixel {edges[-1]}, past the image's {n_pixels} pixels{guess}"
        )
    return edges[0::2], edges[1::2]


def numbers(text: str) -> np.ndarray:
    """One mask row -> its numbers as int64, an even count. Raises BadInput for anything but pairs of whole numbers."""
    if not _PAIRS.fullmatch(text):
        raise BadInput(f"not pairs of whole numbers 'gap length ...': {text[:60]!r}")
    return np.fromstring(text, dtype=np.int64, sep=" ")


def look_absolute(pairs: np.ndarray, n_pixels: int) -> bool:
    """Whether two or more pairs fit the image as 'start length', 0- or 1-based and in order: the usual mistake."""
    starts, lengths = pairs[0::2], pairs[1::2]
    increasing = len(starts) > 1 and bool((np.diff(starts) > 0).all())
    return increasing and bool((starts + lengths).max() <= n_pixels + 1)


def decode(text: str, shape: tuple[int, int]) -> np.ndarray:
    """One row -> (H, W) uint8 mask of 0 and 1. Raises BadInput where the row is not legal for that shape."""
    height, width = shape
    mask = np.zeros((height, width), dtype=np.uint8)
    if text == EMPTY:
        return mask
    starts, ends = runs(text, height * width)
    left, right = int(starts[0]) // height, int(ends[-1] - 1) // height + 1
    columns = np.zeros((right - left, height), dtype=np.uint8)  # only those that the runs reach
    pixels, ones = (
        columns.ravel().data,
        b"\1" * int((ends - starts).max()),
    )  # plain memory: fastest per run
    first = left * height
    for start, end in zip((starts - first).tolist(), (ends - first).tolist(), strict=True):
        pixels[start:end] = ones[: end - start]
    mask[:, left:right] = cv2.transpose(columns)
    return mask


def union(rows: tuple[str, ...] | list[str], shape: tuple[int, int]) -> np.ndarray:
    """All rows of one image -> (H, W) uint8 mask of 0 and 1: SIIM-ACR labels are the union of their rows."""
    if not rows:
        return np.zeros(shape, dtype=np.uint8)
    mask = decode(rows[0], shape)
    for text in rows[1:]:
        mask |= decode(text, shape)
    return mask
