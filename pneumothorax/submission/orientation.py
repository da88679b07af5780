"""Whether the masks of a file stand as the training masks do, or were written row by row, or upside down.

Text of row-major order read down the columns gives the mirror image over the diagonal: masks lie where no lung is and
are wide instead of tall. Each mask is placed by its centroid and its spread down and across, relative to the image; the
training masks give the density of such places, as a Gaussian kernel each (bandwidth by Scott's rule). For all masks
together, the log-likelihood of another reading is compared with that of the file as it stands, in nats per mask.

A mask's left and right cannot be told: training masks count in both, so that a mirrored file is neither found nor
in the way.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pneumothorax.submission import intervals
from pneumothorax.submission.intervals import Mask

AS_READ = "as read"
READINGS = {  # name: (whether the text is row by row, whether the image is upside down)
    AS_READ: (False, False),
    "transposed (text row by row instead of down the columns)": (True, False),
    "upside down": (False, True),
    "transposed and upside down": (True, True),
}
FEWEST_TRAINING = 50  # masks, for a density
MOST_TRAINING = 1_000  # more change nothing
FEWEST_SUSPECT, FEWEST_CLEAR = 10, 20  # masks in the file
LEAST_NATS = 0.5  # per mask, from which another reading is suspected
LEAST_FIT = (
    -1.5
)  # per mask, beside training masks among themselves: below, the masks are odd in any reading
MOST_NATS = 5.0  # below the usual, for a mask that is where no training mask is: it counts no more than that
MIN_SPREAD = 0.02  # of a dimension of the density: training masks may all be alike


@dataclass(frozen=True)
class Verdict:
    """The best reading but `as read`, and what speaks for it.

    Attributes:
        by_mask: (N,) each mask's log-likelihood under that reading minus that of the mask as read, in nats.
        fit: mean log-likelihood under that reading minus that of held-out training masks; about 0 where it is right.
    """

    reading: str
    by_mask: np.ndarray
    fit: float

    @property
    def nats(self) -> float:
        """Mean per mask; negative where the file stands as the training masks do."""
        return float(self.by_mask.mean())

    @property
    def suspect(self) -> bool:
        """Half a nat per mask or more. Alone this is a question: the network may draw where no pneumothorax is."""
        return self.nats >= LEAST_NATS

    @property
    def clear(self) -> bool:
        """Suspect on 20 masks or more (odds of e^10 or more), which fit the training masks when read so.

        Measured with 20 of SIIM-ACR's training masks against 1,000 others, 400 times: -3.1 to -1.2 nats per mask as
        they stand; 1.2 to 4.3 transposed, turned or upside down, with a fit of -1.0 to 0.9. Against 50 others
        -3.8 to -0.7; 0.7 to 5.3, fit -1.3 to 6.2. So right files are never taken for wrong, wrong ones always found.
        """
        return self.suspect and len(self.by_mask) >= FEWEST_CLEAR and self.fit >= LEAST_FIT


def judge(masks: Sequence[Mask], training: Sequence[Mask]) -> Verdict | None:
    """The verdict on a file's masks; None where there are fewer than 10, or fewer than 50 training masks."""
    if len(masks) < FEWEST_SUSPECT or len(training) < FEWEST_TRAINING:
        return None
    reference = np.array([_place(mask, *READINGS[AS_READ]) for mask in training])
    found = {
        name: _log_density(np.array([_place(mask, *how) for mask in masks]), reference)
        for name, how in READINGS.items()
    }
    usual = float(_log_density(reference[1::2], reference[::2]).mean())
    found = {name: np.maximum(density - usual, -MOST_NATS) for name, density in found.items()}
    gains = {name: density - found[AS_READ] for name, density in found.items() if name != AS_READ}
    best = max(gains, key=lambda name: float(gains[name].mean()))
    return Verdict(best, gains[best], float(found[best].mean()))


def _place(mask: Mask, row_major: bool, upside_down: bool) -> tuple[float, float, float, float]:
    """Centroid down and across from the middle, in image heights and widths, and the logarithms of both spreads."""
    height, width = mask.shape
    pixels = intervals.pixels(mask.runs)
    if row_major:
        rows, columns = np.divmod(pixels, width)
    else:
        columns, rows = np.divmod(pixels, height)
    down, across = (rows.mean() + 0.5) / height - 0.5, (columns.mean() + 0.5) / width - 0.5
    spreads = (
        (rows.std() + 0.5) / height,
        (columns.std() + 0.5) / width,
    )  # half a pixel: a single one has none
    return -down if upside_down else down, across, np.log(spreads[0]), np.log(spreads[1])


def _log_density(places: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(N, 4) places, (M, 4) places of training masks -> (N,) log density, up to a constant."""
    centres = np.concatenate(
        [reference, reference * (1, -1, 1, 1)]
    )  # mirrored: across is counted from the middle
    spread = np.maximum(centres.std(axis=0), MIN_SPREAD)
    bandwidth = spread * len(reference) ** (-1 / (reference.shape[1] + 4))
    constant = np.log(len(centres)) + np.log(bandwidth).sum()
    near = (
        -0.5 * (((place - centres) / bandwidth) ** 2).sum(axis=1) for place in places
    )  # one at a time: memory
    return np.array([np.logaddexp.reduce(exponents) - constant for exponents in near])
