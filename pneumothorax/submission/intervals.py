"""Masks as runs: pixels counted from (starts, ends) alone, without drawing the mask.

`starts` and `ends` are int64 and ascending, `end` exclusive, as `rle.runs` gives them; pixels are numbered down the
columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Runs = tuple[np.ndarray, np.ndarray]

ALL_EMPTY: Runs = (np.zeros(0, np.int64), np.zeros(0, np.int64))


@dataclass(frozen=True, eq=False)  # arrays do not compare as one
class Mask:
    """A mask's runs and the image's (H, W) that they are on."""

    runs: Runs
    shape: tuple[int, int]

    @property
    def area_px(self) -> int:
        return area(self.runs)

    @property
    def share(self) -> float:
        """Of the image's pixels, 0 to 1."""
        return self.area_px / (self.shape[0] * self.shape[1])


def area(runs: Runs) -> int:
    """Pixels of the mask."""
    return int((runs[1] - runs[0]).sum())


def overlap(runs: Runs, other: Runs, shift: int = 0) -> int:
    """Pixels of `runs`, each moved on by `shift`, that are in `other`."""
    return int(_overlaps(runs, other, np.array([shift]))[0])


def column_agreement(runs: Runs, heights: Sequence[int], *, every: int = 1) -> np.ndarray:
    """(N,) for each height: share of the mask's pixels, 0 to 1, whose neighbour in the next column is inside too.

    The neighbour is `height` pixels on. Outlines are smooth, so the share is near 1 for the height of the image that
    was encoded and small for others: at least 0.62 in every one of SIIM-ACR's 2,669 training masks.

    Args:
        every: look at the pixels of every so manieth run only.
    """
    some = runs[0][::every], runs[1][::every]
    return _overlaps(some, runs, np.asarray(heights)) / area(some)


def _overlaps(runs: Runs, other: Runs, shifts: np.ndarray) -> np.ndarray:
    """(N,) for each shift: pixels of `runs`, moved on by it, that are in `other`."""
    starts, ends = other
    if not len(starts):
        return np.zeros(len(shifts), np.int64)
    edges = np.stack([starts, ends], axis=1).ravel()
    inside = (
        np.stack([np.zeros_like(starts), ends - starts], axis=1).ravel().cumsum()
    )  # pixels of other up to an edge
    up_to_start, up_to_end = (np.interp(edge + shifts[:, None], edges, inside) for edge in runs)
    return np.rint((up_to_end - up_to_start).sum(axis=1)).astype(np.int64)


def pixels(runs: Runs) -> np.ndarray:
    """(area,) int64: the numbers of all pixels inside, ascending."""
    starts, lengths = runs[0], runs[1] - runs[0]
    return np.arange(lengths.sum()) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
