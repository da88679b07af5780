"""Run lengths written in another convention or at another size: how to tell.

Neighbouring columns of a mask hardly differ, so the same runs come again one column
height later. The reading under which they do is the one that was meant. A row of few
runs can fit several readings and is not judged.

What cannot be known:
- A mask of one run has no second start that could be absolute.
- A mask that is one pixel too low looks as good as the true one unless it touches the
  lower edge of the image. One in 200 of SIIM-ACR's masks does.
- Sizes within a tenth of the image's own differ less than slanted outlines do.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from pneumothorax import rle
from pneumothorax.submission import pixel_runs
from pneumothorax.submission.pixel_runs import Mask, Runs, Shape

# Column agreement from which a reading is believed. Wrong readings of real masks reach
# 0.61, but never more than the right one.
AGREES = 0.5
FEWEST_RUNS = 8  # fewer columns do not tell sizes apart; SIIM-ACR's smallest mask has 10
FEWEST_PAIRS = 3  # two runs may agree by chance
LEAST_COLUMNS = 3  # ending one pixel past the lower edge: fewer may be an accident
CLEAR_COLUMNS = 20  # the same, over two or more masks: nothing else explains that many
SAMPLED_RUNS = 32  # used for a first guess of the height
LIKELIEST = 3  # heights of that guess that are tried on the whole mask
NEAR = 0.1  # relative difference of heights that slanted outlines can explain


def gaps(pairs: np.ndarray) -> Runs:
    """(2n,) numbers 'gap length ...' -> pixel runs."""
    edges = np.cumsum(pairs)
    return edges[0::2], edges[1::2]


def absolute(pairs: np.ndarray) -> Runs:
    """(2n,) numbers 'start length ...', 0-based -> pixel runs."""
    return pairs[0::2], pairs[0::2] + pairs[1::2]


def are_absolute(pairs: np.ndarray, shape: Shape) -> bool | None:
    """Whether a row has absolute starts instead of gaps; None if it could be either."""
    height, width = shape
    if not rle.look_absolute(pairs, height * width):
        return False
    if gaps(pairs)[1][-1] > height * width:
        return True  # not legal in any other way
    as_gaps = float(pixel_runs.column_agreement(gaps(pairs), [height])[0])
    starts, ends = absolute(pairs)
    apart = bool((starts[1:] >= ends[:-1]).all())
    as_starts = float(pixel_runs.column_agreement((starts, ends), [height])[0]) if apart else 0.0
    if as_gaps >= max(AGREES, as_starts):
        return False
    return True if len(starts) >= FEWEST_PAIRS and as_starts >= AGREES else None


def first_number(rows: Iterable[tuple[np.ndarray, Shape]]) -> int | None:
    """The first pixel's number in rows of absolute starts: 0, 1, or None if both fit.

    A start of 0 decides, or a run up to the number of pixels counted from 1, or columns
    at the lower edge: 1-based starts read as 0-based end one pixel past it.

    Args:
        rows: (number pairs, (H, W)) of each row.
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


def encoded_height(runs: Runs, shape: Shape) -> int | None:
    """Column height of the image that a mask was encoded at, if clearly not `shape`'s.

    Clear means: 8 runs or more, and a height that differs by a tenth or more, under
    which at least half of the pixels have their right neighbour inside, and more of
    them than under the image's own height. Wrong for none of 2,669 real masks; right
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
    every = max(1, len(starts) // SAMPLED_RUNS)
    guessed = pixel_runs.column_agreement(runs, others, every=every)
    likely = [others[number] for number in np.argsort(-guessed, kind="stable")[:LIKELIEST]]
    own, *agreements = pixel_runs.column_agreement(runs, [height, *likely])
    best = int(np.argmax(agreements))
    own_is_better = last <= height * width and own >= agreements[best]
    return likely[best] if agreements[best] >= AGREES and not own_is_better else None


def too_low(masks: Sequence[Mask]) -> tuple[list[int], bool]:
    """Positions of masks that look one pixel too low, and whether that is clear.

    In such a mask, a column that reaches the lower edge continues for one pixel at the
    top of the next column. In a correct mask a column does so only if the mask reaches
    both edges. Three such columns in a mask, and more than end exactly at the edge, are
    odd; 20 of them over two or more such masks are clear.
    """
    edges = [_at_and_past_edge(mask.runs, mask.shape[0]) for mask in masks]
    at_edge, past_edge = np.array(edges).reshape(-1, 2).T
    found = np.flatnonzero((past_edge >= LEAST_COLUMNS) & (past_edge > at_edge))
    clear = len(found) > 1 and past_edge[found].sum() >= CLEAR_COLUMNS
    return found.tolist(), bool(clear)


def _at_and_past_edge(runs: Runs, height: int) -> tuple[int, int]:
    """How many runs end exactly at the lower edge, and how many one pixel past it."""
    starts, ends = runs
    past = (ends % height == 1) & (ends - starts > 1)
    return int((ends % height == 0).sum()), int(past.sum())
