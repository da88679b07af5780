"""One row of a submission: the runs of its mask, or what is wrong with it and by which convention it was written."""

from dataclasses import dataclass

import numpy as np

from pneumothorax import rle
from pneumothorax.data import labels
from pneumothorax.errors import BadInput
from pneumothorax.submission import conventions, intervals
from pneumothorax.submission.intervals import Runs

Shape = tuple[int, int]

ABSOLUTE = "absolute starts"
MALFORMED = "not run lengths"
PAST_THE_END = "past the end"
OTHER_SIZE = "another size"


@dataclass(frozen=True)
class Judged:
    """Runs on the image's own grid, none for an empty mask; or a `fault` (its kind), with a message.

    A message without a fault: the row is legal, and odd.
    """

    runs: Runs = intervals.ALL_EMPTY
    fault: str = ""
    message: str = ""


def judge(image_id: str, text: str, shape: Shape) -> Judged:
    """A row's id and run lengths, for an image of (H, W)."""
    problem = (
        "an empty cell: -1 stands for no mask" if not text else labels.cell_problem(image_id, text)
    )
    if problem:
        return Judged(fault=MALFORMED, message=problem)
    if text == rle.EMPTY:
        return Judged()
    try:
        pairs = rle.numbers(text)
    except BadInput as error:
        return Judged(fault=MALFORMED, message=str(error))
    height, width = shape
    absolute = conventions.are_absolute(pairs, shape)
    if absolute:
        return Judged(fault=ABSOLUTE, message=_as_starts(pairs))
    runs = conventions.gaps(pairs)
    size = conventions.encoded_height(runs, shape)
    if runs[1][-1] > height * width:
        return Judged(fault=PAST_THE_END, message=_past_the_end(runs, shape, size))
    if size:
        own, other = intervals.column_agreement(runs, [height, size])
        message = f"{_encoded_at(size, shape)}: of its pixels {other:.0%} have a neighbour {size} pixels on, {own:.0%} "
        return Judged(fault=OTHER_SIZE, message=message + f"one column of this image on ({height})")
    if absolute is None:
        return Judged(
            runs, message="may be absolute starts: its pairs fit the image as 'start length' too"
        )
    return Judged(runs)


def _as_starts(pairs: np.ndarray) -> str:
    """The row's fault, in words."""
    starts, ends = conventions.absolute(pairs)
    overlapping = int((starts[1:] < ends[:-1]).sum())
    also = f", and {overlapping} of its runs overlap the one before" if overlapping else ""
    return f"absolute starts: 'start length' pairs instead of gaps counted from the previous run's end{also}"


def _past_the_end(runs: Runs, shape: Shape, size: int | None) -> str:
    n_pixels = shape[0] * shape[1]
    last = int(runs[1][-1])
    if size:
        guess = f"; {_encoded_at(size, shape)}"
    else:
        guess = "; counted from 1 instead of 0?" if last == n_pixels + 1 else ""
    return f"a run ends at pixel {last}, past the image's {n_pixels} pixels{guess}"


def _encoded_at(size: int, shape: Shape) -> str:
    height, width = shape
    row_major = " or row by row" if size == width else ""
    return f"looks encoded at {size} x {size}{row_major}, the image is {height} x {width}"
