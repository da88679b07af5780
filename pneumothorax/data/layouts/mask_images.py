"""Mask images, read strictly: the size of their image, and two values."""

import functools
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from pneumothorax.data import raster
from pneumothorax.dicom import Rejected

BAD_MASK = "BAD_MASK"
SIZE_MISMATCH = "SIZE_MISMATCH"


def read(paths: Sequence[Path], shape: tuple[int, int], *, threshold: int | None) -> np.ndarray:
    """The union of one image's mask files -> (H, W) uint8 of 0 and 1.

    A mask is 0 outside and any one other value inside; of colours, the highest channel
    counts.

    Args:
        paths: at least one PNG or JPEG file.
        shape: (H, W) of the image.
        threshold: 1 to 255. From this value on, on the scale 0 to 255, a pixel of a
            JPEG file or of a file with more values is inside; None refuses such files.

    Raises Rejected, naming the file, with BAD_MASK, SIZE_MISMATCH, or a code of `raster`.
    """
    return functools.reduce(cv2.bitwise_or, (_read(path, shape, threshold) for path in paths))


def _read(path: Path, shape: tuple[int, int], threshold: int | None) -> np.ndarray:
    """As `read`, for one file."""
    try:
        values, decoder = raster.read_values(path)
    except Rejected as error:
        raise Rejected(error.code, f"mask {path.name}: {error}") from error
    if values.shape[:2] != shape:
        found, wanted = (f"{width} x {height}" for height, width in (values.shape[:2], shape))
        raise Rejected(SIZE_MISMATCH, f"mask {path.name} is {found}, its image is {wanted}")
    if values.ndim == 3:
        values = _highest_channel(values, path)
    if decoder == raster.PNG and _has_two_values(values):
        return _above(values, 0)
    unit = np.iinfo(values.dtype).max // 255  # 1, or 257 of 16 bits
    if threshold is None:
        highest = int(values.max()) // unit
        middle = 128 if highest >= 128 else max(1, (highest + 1) // 2)
        message = f"mask {path.name} {_description(values, decoder)}"
        raise Rejected(BAD_MASK, f"{message}: --mask-threshold {middle} says how to read it")
    return _above(values, threshold * unit - 1)


def _highest_channel(values: np.ndarray, path: Path) -> np.ndarray:
    """(H, W, 3) -> (H, W).

    Raises Rejected where two colours, or transparency alone, draw the mask.
    """
    first, second, third = cv2.split(values)
    highest = cv2.max(cv2.max(first, second), third)
    low, high, _, _ = cv2.minMaxLoc(highest)
    if low == high:
        if any(cv2.minMaxLoc(channel)[0] < high for channel in (first, second, third)):
            colours = len(np.unique(values.reshape(-1, 3), axis=0))
            if colours > 1:
                message = f"mask {path.name} has {colours} colours, and none of them is black"
                raise Rejected(BAD_MASK, f"{message}: save it as black and white")
        with Image.open(path) as image:
            opaque = image.convert("RGBA").getchannel("A").getextrema()
        if opaque[0] != opaque[1]:
            message = f"mask {path.name} has one colour and is partly transparent"
            raise Rejected(BAD_MASK, f"{message}: save it as black and white")
    return highest


def _has_two_values(values: np.ndarray) -> bool:
    """Whether all values but 0 are equal: then each is the highest, and so is their mean."""
    _, highest, _, _ = cv2.minMaxLoc(values)
    return cv2.sumElems(values)[0] == highest * cv2.countNonZero(values)


def _above(values: np.ndarray, limit: int) -> np.ndarray:
    """(H, W) uint8: 1 where a value is above the limit."""
    _, mask = cv2.threshold(values, limit, 1, cv2.THRESH_BINARY)
    return mask.astype(np.uint8, copy=False)


def _description(values: np.ndarray, decoder: str) -> str:
    if decoder == raster.JPEG:
        return "is a JPEG file, which blurs edges"
    return f"has {len(np.unique(values))} grey values"
