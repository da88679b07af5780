"""Run lengths that were written by another convention or at another size: what one row, or a file, gives away.

Neighbouring columns of a mask hardly differ, so in its text the same runs come again one column height later. The
reading under which they do is the one that was meant; a row of few runs can fit several and is not judged.

What cannot be known: a mask of one run has no second start to be absolute; a mask that is one pixel too low looks as
right as the true one, unless it touches the lower edge of the image (one in 200 of SIIM-ACR's masks does); sizes
within a tenth of the image's own differ less than slanted outlines do.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from pneumothorax import rle
from pneumothorax.submission import intervals
from pneumothorax.submission.intervals import Mask, Runs

AGREES = 0.5  # column agreement from which a reading is believed; wrong readings of real masks reach 0.61 but never win
FEWEST_RUNS = 8  # below, columns are too few to tell sizes apart; SIIM-ACR's smallest mask has 10
FEWEST_PAIRS = 3  # two runs may agree by chance
LEAST_COLUMNS = (
    3  # of a mask that go on for one pixel past the lower edge, from which this is no accident
)
CLEAR_COLUMNS = 20  # ... of two masks or more, from which nothing else explains it
GUESSED_FROM, MOST_LIKELY = (
    32,
    3,
)  # runs that choose so many heights, which are then tried on the whole mask
NEAR = 0.1  # relative difference of heights below which slanted outlines decide, not sizes


def gaps(pairs: np.ndarray) -> Runs:
    """(2n,) numbers 'gap length ...' -> runs."""
    edges = np.cumsum(pairs)
    return edges[0::2], edges[1::2]


def absolute(pairs: np.ndarray) -> Runs:
    """(2n,) numbers 'start length ...' with 0-based starts -> runs."""
    return pairs[0::2], pairs[0::2] + pairs[1::2]


def are_absolute(pairs: np.ndarray, shape: tuple[int, int]) -> bool | None:
    """Whether a row's starts are absolute instead of gaps; None where it could be either."""
    height, width = shape
    if not rle.look_absolute(pairs, height * width):
        return False
    if gaps(pairs)[1][-1] > height * width:
        return True  # legal in no other way
    as_gaps = float(intervals.column_agreement(gaps(pairs), [height])[0])
    starts, ends = absolute(pairs)
    apart = bool((starts[1:] >= ends[:-1]).all())
    as_starts = float(intervals.column_agreement((starts, ends), [height])[0]) if apart else 0.0
    if as_gaps >= max(AGREES, as_starts):
        return False
    return True if len(starts) >= FEWEST_PAIRS and as_starts >= AGREES else None


def first_number(rows: Iterable[tuple[np.ndarray, tuple[int, int]]]) -> int | None:
    """What the first pixel is called in rows of absolute starts, (pairs, shape) each: 0, 1, or None: they fit both.

    Told by a start of 0, by a run up to the number of pixels counted from 1, or by columns at the lower edge, which
    end one pixel too far when 1-based starts are taken for 0-based ones.
    """
    at_edge, past_edge = 0, 0
    for pairs, (height, width) in rows:
        starts, ends = absolute(pairs)
        if starts[0] == 0:
            return 0
        if ends[-1] > height * width:
            return 1
        at_edge, past_edge = np.add((at_edge, past_edge), _at_and_past_edge((starts, ends), height))
    if max(at_edge, past_edge) < LEAST_COLUMNS:
        return None
    return int(past_edge > at_edge)


def encoded_height(runs: Runs, shape: tuple[int, int]) -> int | None:
    """Column height of the image that a mask was encoded at, where that is clearly not `shape`'s own; else None.

    Clear: 8 runs or more, and a height differing by a tenth or more under which half of the pixels or more have
    their neighbour inside, and more of them than under the image's own. Wrong for none of 2,669 real masks, right
    for 99 to 100 % of them encoded at 128 to 2048 pixels.
    """
    starts, ends = runs
    height, width = shape
    if len(starts) < FEWEST_RUNS:
        return None
    tallest, last = int((ends - starts).max()), int(ends[-1])
    heights = {*range(32, 2 * max(2048, height) + 1, 32), *range(100, 2001, 100), width}
    others = [
        other
        for other in sorted(heights)
        if abs(other - height) >= NEAR * height
        and other >= tallest
        and (other**2 >= last or other == width)
    ]
    if not others:
        return None
    guessed = intervals.column_agreement(runs, others, every=max(1, len(starts) // GUESSED_FROM))
    likely = [others[number] for number in np.argsort(-guessed, kind="stable")[:MOST_LIKELY]]
    own, *agreements = intervals.column_agreement(runs, [height, *likely])
    best = int(np.argmax(agreements))
    fits = last <= height * width
    return (
        likely[best]
        if agreements[best] >= AGREES and not (fits and own >= agreements[best])
        else None
    )


def too_low(masks: Sequence[Mask]) -> tuple[list[int], bool]:
    """Positions of masks that look one pixel too low, and whether that is clear.

    A column that reaches the lower edge then goes on for one pixel at the top of the next. Without that fault a
    column does so only where masks reach both edges: three such columns in a mask, more than end at the edge itself,
    are odd, and 20 in two such masks or more are clear.
    """
    columns = np.array([_at_and_past_edge(mask.runs, mask.shape[0]) for mask in masks]).reshape(
        -1, 2
    )
    at_edge, past_edge = columns.T
    found = np.flatnonzero((past_edge >= LEAST_COLUMNS) & (past_edge > at_edge))
    clear = len(found) > 1 and past_edge[found].sum() >= CLEAR_COLUMNS
    return found.tolist(), bool(clear)


def _at_and_past_edge(runs: Runs, height: int) -> tuple[int, int]:
    """How many runs end exactly at the lower edge, and how many one pixel past it."""
    starts, ends = runs
    past = (ends % height == 1) & (ends - starts > 1)
    return int((ends % height == 0).sum()), int(past.sum())
