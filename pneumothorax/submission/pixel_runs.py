"""Masks as pixel runs: areas and overlaps from (starts, ends), without drawing.

`starts` and `ends` are ascending int64 arrays, `end` exclusive, as `rle.runs` returns
them. Pixels are numbered down the columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Runs = tuple[np.ndarray, np.ndarray]
Shape = tuple[int, int]

EMPTY: Runs = (np.zeros(0, np.int64), np.zeros(0, np.int64))


@dataclass(frozen=True, eq=False)  # arrays have no single truth value
class Mask:
    """A mask's pixel runs, and the (H, W) of its image."""

    runs: Runs
    shape: Shape

    @property
    def area_px(self) -> int:
        return area(self.runs)

    @property
    def share(self) -> float:
        """Share of the image's pixels, 0 to 1."""
        return self.area_px / (self.shape[0] * self.shape[1])


def area(runs: Runs) -> int:
    """Number of pixels in the mask."""
    return int((runs[1] - runs[0]).sum())


def overlap(runs: Runs, other: Runs, shift: int = 0) -> int:
    """Number of pixels of `runs`, each shifted by `shift`, that are in `other`."""
    return int(_overlaps(runs, other, np.array([shift]))[0])


def column_agreement(runs: Runs, heights: Sequence[int], *, every: int = 1) -> np.ndarray:
    """(N,) share of the mask's pixels whose right neighbour is inside too, per height.

    In 0 to 1. The right neighbour is `height` pixels further. Outlines are smooth, so
    the share is near 1 at the height of the image that was encoded and small at others:
    it is at least 0.62 in each of SIIM-ACR's 2,669 training masks.

    Args:
        every: use every n-th run only.
    """
    some = runs[0][::every], runs[1][::every]
    return _overlaps(some, runs, np.asarray(heights)) / area(some)


def _overlaps(runs: Runs, other: Runs, shifts: np.ndarray) -> np.ndarray:
    """(N,) number of pixels of `runs`, shifted, that are in `other`, per shift."""
    starts, ends = other
    if not len(starts):
        return np.zeros(len(shifts), np.int64)
    edges = np.stack([starts, ends], axis=1).ravel()
    # number of pixels of `other` before each edge
    inside = np.stack([np.zeros_like(starts), ends - starts], axis=1).ravel().cumsum()
    before_start, before_end = (np.interp(edge + shifts[:, None], edges, inside) for edge in runs)
    return np.rint((before_end - before_start).sum(axis=1)).astype(np.int64)


def pixels(runs: Runs) -> np.ndarray:
    """(area,) int64: the numbers of all pixels inside, ascending."""
    starts, lengths = runs[0], runs[1] - runs[0]
    return np.arange(lengths.sum()) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
