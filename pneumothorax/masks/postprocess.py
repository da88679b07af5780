"""From a probability map to a mask at label resolution: triplet thresholds, then cleaning.

The triplet comes from SIIM-ACR's first-place solution. An image with fewer
than `min_area` pixels above the top threshold is empty; in any other image the mask is
everything above the bottom threshold. Cleaning fills holes, if asked to, and then removes
small connected components. Areas are in pixels of the competition's 1024 x 1024 grid and
scale with the image's own size.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from pneumothorax.rle import KAGGLE_SHAPE


@dataclass(frozen=True)
class Triplet:
    """The three thresholds and the cleaning that goes with them.

    Thresholds are in [0, 1), areas in pixels of a 1024 x 1024 image.
    """

    top: float
    min_area: float
    bottom: float
    min_component: float = 0.0  # smaller connected components are removed
    fill_holes: bool = False
    min_probability: float = 0.0  # images with a lower image-level probability are empty

    def __post_init__(self) -> None:
        ordered = 0 <= self.bottom <= self.top < 1
        if not (ordered and self.min_area >= 0 and self.min_component >= 0):
            raise ValueError(f"needs 0 <= bottom <= top < 1 and areas of at least 0, got {self}")
        if not 0 <= self.min_probability < 1:
            raise ValueError(f"needs 0 <= min_probability < 1, got {self}")

    @property
    def is_all_empty(self) -> bool:
        """Whether every image is empty: the minimum area is larger than any image."""
        return self.min_area > math.prod(KAGGLE_SHAPE)

    def described(self) -> str:
        """In words, for terminal and figures."""
        if self.is_all_empty:
            return "every image is empty, since no thresholds beat that by more than noise"
        words = [f"bottom {self.bottom:g}"]
        if self.min_area:  # without one, the top threshold changes nothing
            words = [f"top {self.top:g}, minimum area {self.min_area:.7g}", *words]
        if self.min_component:
            words.append(f"components below {self.min_component:.7g} pixels removed")
        if self.fill_holes:
            words.append("holes filled")
        if self.min_probability:
            words.append(f"images with a probability below {self.min_probability:g} empty")
        return ", ".join(words)


ALL_EMPTY = Triplet(top=0.0, min_area=math.prod(KAGGLE_SHAPE) + 1.0, bottom=0.0)


@dataclass(frozen=True)
class Window:
    """Part of a probability map at label resolution; every pixel outside it is lower.

    Args:
        values: (h, w) uint8.
        row, column: where the window's top left corner lies.
    """

    values: np.ndarray
    row: int
    column: int

    @property
    def slices(self) -> tuple[slice, slice]:
        height, width = self.values.shape
        return slice(self.row, self.row + height), slice(self.column, self.column + width)


def quantise(probabilities: np.ndarray) -> np.ndarray:
    """float in [0, 1] -> uint8, probability x 255 rounded: how probability maps are stored."""
    return np.rint(probabilities * 255).astype(np.uint8)


def level(threshold: float) -> int:
    """The integer that a stored value exceeds exactly when its probability exceeds `threshold`."""
    return int(np.floor(threshold * 255 + 1e-9))


def mask(
    stored: np.ndarray, triplet: Triplet, shape: tuple[int, int], p_positive: float = 1.0
) -> np.ndarray:
    """The mask of one image.

    Args:
        stored: (h, w) uint8 probability map; resized bilinearly to `shape`.
        shape: (H, W) of the labels.
        p_positive: the image-level probability, compared with `triplet.min_probability`.

    Returns (H, W) uint8 of 0 and 1.
    """
    result = np.zeros(shape, dtype=np.uint8)
    if p_positive < triplet.min_probability:
        return result
    window = upsample(stored, shape, above=level(triplet.bottom))
    if window is None:
        return result
    area = int(np.count_nonzero(window.values > level(triplet.top)))
    if area < scaled(triplet.min_area, shape):
        return result
    inside = (window.values > level(triplet.bottom)).view(np.uint8)
    if triplet.fill_holes:
        inside = fill_holes(inside)
    result[window.slices] = remove_small_components(inside, scaled(triplet.min_component, shape))
    return result


def scaled(area: float, shape: tuple[int, int]) -> float:
    """An area in pixels of 1024 x 1024 -> the same area in pixels of `shape`."""
    return area * math.prod(shape) / math.prod(KAGGLE_SHAPE)


def upsample(stored: np.ndarray, shape: tuple[int, int], *, above: int) -> Window | None:
    """The part of the bilinearly upsampled map that can exceed `above`; None if nothing does.

    An upsampled pixel never exceeds its source neighbours, so upsampling their bounding box
    is enough, and most maps are almost empty. The result equals the same part of the whole
    upsampled map.
    """
    left, top, width, height = cv2.boundingRect((stored > above).view(np.uint8))
    if width == 0:
        return None
    if stored.shape == shape:
        return Window(stored[top : top + height, left : left + width], top, left)
    if shape[0] % stored.shape[0] or shape[1] % stored.shape[1]:
        large = cv2.resize(stored, shape[::-1], interpolation=cv2.INTER_LINEAR)
        left, top, width, height = cv2.boundingRect((large > above).view(np.uint8))
        return Window(large[top : top + height, left : left + width], top, left) if width else None
    rows, row = _span(top, height, stored.shape[0], shape[0])
    columns, column = _span(left, width, stored.shape[1], shape[1])
    source = stored[row.start : row.stop, column.start : column.stop]
    factor = shape[0] // stored.shape[0], shape[1] // stored.shape[1]
    size = source.shape[1] * factor[1], source.shape[0] * factor[0]
    large = cv2.resize(source, size, interpolation=cv2.INTER_LINEAR)
    inner = large[
        rows.start - row.start * factor[0] : rows.stop - row.start * factor[0],
        columns.start - column.start * factor[1] : columns.stop - column.start * factor[1],
    ]
    return Window(inner, rows.start, columns.start)


def _span(first: int, length: int, n: int, large_n: int) -> tuple[range, range]:
    """Along one axis: the upsampled pixels that source pixels first..first+length reach, and
    the source pixels needed to compute them.
    """
    factor = large_n // n
    reached = range(max(0, first - 1) * factor, min(n, first + length + 1) * factor)
    needed = range(max(0, first - 2), min(n, first + length + 2))
    return reached, needed


def bounding_box(values: np.ndarray, *, above: int) -> tuple[slice, slice] | None:
    """(h, w) uint8 -> the box around all values that exceed `above`; None if none does."""
    left, top, width, height = cv2.boundingRect((values > above).view(np.uint8))
    return (slice(top, top + height), slice(left, left + width)) if width else None


def fill_holes(inside: np.ndarray) -> np.ndarray:
    """(H, W) uint8 mask of 0 and 1 -> the same with the holes of its components filled.

    A hole is background that an 8-connected component encloses.
    """
    outlines, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return cv2.drawContours(np.zeros_like(inside), outlines, -1, color=1, thickness=cv2.FILLED)


def remove_small_components(inside: np.ndarray, min_px: float) -> np.ndarray:
    """(H, W) uint8 mask of 0 and 1 -> the same without components of fewer than `min_px` pixels."""
    if min_px <= 1:
        return inside
    component, areas = connected_components(inside)
    kept = areas >= min_px
    return inside if kept[1:].all() else kept[component].view(np.uint8)


def connected_components(inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 8-connected components of an (H, W) uint8 mask.

    Returns the number of each pixel's component, (H, W), 0 for background; and the pixels
    of each component, (K,), with 0 for the background.
    """
    _, component, stats, _ = cv2.connectedComponentsWithStats(inside, connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0
    return component, areas
