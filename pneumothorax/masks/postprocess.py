"""A probability map -> a mask at the label's resolution: triplet thresholds, then cleaning.

The triplet (first place of the SIIM-ACR competition): an image with fewer than `min_area` pixels above the top
threshold is empty; in the others the mask is what lies above the bottom threshold. Its holes may be filled, and then
small parts are dropped. Areas are in pixels of the competition's 1024 x 1024 grid and scale with an image's own size.
"""

from dataclasses import dataclass

import cv2
import numpy as np

REFERENCE_PX = 1024 * 1024


@dataclass(frozen=True)
class Triplet:
    """The triplet and what goes with it: thresholds in [0, 1), areas in pixels of a 1024 x 1024 image."""

    top: float
    min_area: float
    bottom: float
    min_component: float = 0.0  # connected parts of the mask below this are dropped
    fill_holes: bool = False
    min_probability: float = (
        0.0  # an image whose own probability of a pneumothorax is below this is empty
    )

    def __post_init__(self) -> None:
        if not (
            0 <= self.bottom <= self.top < 1 and self.min_area >= 0 and self.min_component >= 0
        ):
            raise ValueError(f"needs 0 <= bottom <= top < 1 and areas of 0 or more, got {self}")
        if not 0 <= self.min_probability < 1:
            raise ValueError(f"needs a probability of at least 0 and below 1, got {self}")

    def described(self) -> str:
        """For the terminal."""
        told = f"top {self.top:g}, minimum area {self.min_area:.7g}, bottom {self.bottom:g}"
        told += (
            f", parts below {self.min_component:.7g} pixels dropped" if self.min_component else ""
        )
        told += ", holes filled" if self.fill_holes else ""
        return told + (
            f", images below {self.min_probability:g} empty" if self.min_probability else ""
        )


@dataclass(frozen=True)
class Window:
    """Part of a map at label resolution, (h, w) uint8, its top left corner at `row`, `column`; all else is lower."""

    values: np.ndarray
    row: int
    column: int

    @property
    def slices(self) -> tuple[slice, slice]:
        height, width = self.values.shape
        return slice(self.row, self.row + height), slice(self.column, self.column + width)


def quantise(probabilities: np.ndarray) -> np.ndarray:
    """float in [0, 1] -> uint8, probability x 255 rounded: how maps are stored."""
    return np.rint(probabilities * 255).astype(np.uint8)


def level(threshold: float) -> int:
    """A stored value is above this whole number exactly when its probability is above the threshold."""
    return int(np.floor(threshold * 255 + 1e-9))


def mask(
    stored: np.ndarray, triplet: Triplet, shape: tuple[int, int], p_positive: float = 1.0
) -> np.ndarray:
    """(h, w) uint8 map, and the image's own probability -> (H, W) uint8 mask of 0 and 1, bilinear up to `shape`."""
    result = np.zeros(shape, dtype=np.uint8)
    if p_positive < triplet.min_probability:
        return result
    window = upsample(stored, shape, above=level(triplet.bottom))
    if window is None or int(np.count_nonzero(window.values > level(triplet.top))) < scaled(
        triplet.min_area, shape
    ):
        return result
    inside = (window.values > level(triplet.bottom)).view(np.uint8)
    if triplet.fill_holes:
        inside = fill_holes(inside)
    result[window.slices] = drop_small(inside, scaled(triplet.min_component, shape))
    return result


def scaled(area: float, shape: tuple[int, int]) -> float:
    """An area in pixels of 1024 x 1024 -> pixels of `shape`."""
    return area * shape[0] * shape[1] / REFERENCE_PX


def upsample(stored: np.ndarray, shape: tuple[int, int], *, above: int) -> Window | None:
    """The part of the bilinearly upsampled map that can exceed `above`; None when nothing does.

    An upsampled pixel never exceeds its source neighbours, so only their bounding box is upsampled: most maps are
    almost empty. The result equals the same part of the whole map upsampled at once.
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
    part = stored[row.start : row.stop, column.start : column.stop]
    by = shape[0] // stored.shape[0], shape[1] // stored.shape[1]
    large = cv2.resize(
        part, (part.shape[1] * by[1], part.shape[0] * by[0]), interpolation=cv2.INTER_LINEAR
    )
    inner = large[
        rows.start - row.start * by[0] : rows.stop - row.start * by[0],
        columns.start - column.start * by[1] : columns.stop - column.start * by[1],
    ]
    return Window(inner, rows.start, columns.start)


def _span(first: int, length: int, n: int, large_n: int) -> tuple[range, range]:
    """Along one axis: the upsampled pixels that source pixels first..first+length reach, and the source they need."""
    by = large_n // n
    reached = range(max(0, first - 1) * by, min(n, first + length + 1) * by)
    needed = range(max(0, first - 2), min(n, first + length + 2))
    return reached, needed


def narrow(values: np.ndarray, *, above: int) -> tuple[slice, slice] | None:
    """The bounding box of what exceeds `above` in an (h, w) uint8 array; None when nothing does."""
    left, top, width, height = cv2.boundingRect((values > above).view(np.uint8))
    return (slice(top, top + height), slice(left, left + width)) if width else None


def fill_holes(inside: np.ndarray) -> np.ndarray:
    """(H, W) uint8 mask of 0 and 1, with the background that its 8-connected parts enclose."""
    outlines, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return cv2.drawContours(np.zeros_like(inside), outlines, -1, color=1, thickness=cv2.FILLED)


def drop_small(inside: np.ndarray, min_px: float) -> np.ndarray:
    """(H, W) uint8 mask of 0 and 1 without its 8-connected parts of fewer than `min_px` pixels."""
    if min_px <= 1:
        return inside
    number, areas = parts(inside)
    kept = areas >= min_px
    return inside if kept[1:].all() else kept[number].view(np.uint8)


def parts(inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) uint8 mask -> (H, W) number of each pixel's 8-connected part, 0 outside, and (P,) the parts' pixels.

    That of the background, part 0, counts as 0.
    """
    _, number, stats, _ = cv2.connectedComponentsWithStats(inside, connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0
    return number, areas
