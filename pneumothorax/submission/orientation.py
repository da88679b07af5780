"""Whether a file's masks are oriented like the training masks.

Row-major text read down the columns gives the transposed image: masks lie where no lung
is, and are wide instead of tall. Each mask is reduced to its centroid and its spread,
down and across, relative to the image. The training masks give the density of these
features (Gaussian kernels, bandwidth by Scott's rule). The log-likelihood of each other
reading of the file, over all masks, is compared with that of the file as read, in nats
per mask.

Left and right cannot be told apart: training masks count in both mirror images, so a
mirrored file is not found, and does not disturb the verdict.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pneumothorax.submission import pixel_runs
from pneumothorax.submission.pixel_runs import Mask

AS_READ = "as read"
READINGS = {  # name: (row_major, upside_down)
    AS_READ: (False, False),
    "transposed (text row by row instead of down the columns)": (True, False),
    "upside down": (False, True),
    "transposed and upside down": (True, True),
}
FEWEST_TRAINING = 50  # masks, for a density
MOST_TRAINING = 1_000  # masks; more change nothing
FEWEST_SUSPECT, FEWEST_CLEAR = 10, 20  # masks in the file
LEAST_NATS = 0.5  # per mask, from which another reading is suspected
LEAST_FIT = -1.5  # nats per mask; below, the masks are odd in every reading
MOST_NATS = 5.0  # largest penalty of one mask, so that a single odd mask decides nothing
MIN_SPREAD = 0.02  # of a feature in the density: training masks may all be alike


@dataclass(frozen=True)
class Verdict:
    """The best reading other than AS_READ, and the evidence for it.

    Attributes:
        by_mask: (N,) each mask's log-likelihood under that reading minus that as read,
            in nats.
        fit: mean log-likelihood under that reading minus that of held-out training
            masks; about 0 if the reading is right.
    """

    reading: str
    by_mask: np.ndarray
    fit: float

    @property
    def nats(self) -> float:
        """Mean per mask; negative if the file is oriented like the training masks."""
        return float(self.by_mask.mean())

    @property
    def suspect(self) -> bool:
        """Half a nat per mask or more.

        This alone is only a hint: the network may draw where no pneumothorax is.
        """
        return self.nats >= LEAST_NATS

    @property
    def clear(self) -> bool:
        """Suspect on 20 masks or more (odds of e^10 or more), which fit when read so.

        Measured with 20 of SIIM-ACR's training masks against 1,000 others, 400 times:
        -3.1 to -1.2 nats per mask as read; 1.2 to 4.3 transposed, upside down or both,
        with a fit of -1.0 to 0.9. Against 50 others: -3.8 to -0.7; 0.7 to 5.3, fit -1.3
        to 6.2. So correct files are never refused and wrong ones always found.
        """
        return self.suspect and len(self.by_mask) >= FEWEST_CLEAR and self.fit >= LEAST_FIT


def judge(masks: Sequence[Mask], training: Sequence[Mask]) -> Verdict | None:
    """The verdict on a file's masks; None below 10 masks or 50 training masks."""
    if len(masks) < FEWEST_SUSPECT or len(training) < FEWEST_TRAINING:
        return None
    reference = np.array([features(mask) for mask in training])
    found = {}
    for name, (row_major, upside_down) in READINGS.items():
        read = [features(mask, row_major=row_major, upside_down=upside_down) for mask in masks]
        found[name] = _log_density(np.array(read), reference)
    usual = float(_log_density(reference[1::2], reference[::2]).mean())
    found = {name: np.maximum(density - usual, -MOST_NATS) for name, density in found.items()}
    gains = {name: density - found[AS_READ] for name, density in found.items() if name != AS_READ}
    best = max(gains, key=lambda name: float(gains[name].mean()))
    return Verdict(best, gains[best], float(found[best].mean()))


def features(
    mask: Mask, *, row_major: bool = False, upside_down: bool = False
) -> tuple[float, float, float, float]:
    """Centroid down and across, and the logarithms of the spread down and across.

    The centroid is counted from the middle. All are in image heights and widths.
    """
    height, width = mask.shape
    pixels = pixel_runs.pixels(mask.runs)
    if row_major:
        rows, columns = np.divmod(pixels, width)
    else:
        columns, rows = np.divmod(pixels, height)
    down, across = (rows.mean() + 0.5) / height - 0.5, (columns.mean() + 0.5) / width - 0.5
    # Half a pixel is added: a single pixel has no spread.
    spread_down, spread_across = (rows.std() + 0.5) / height, (columns.std() + 0.5) / width
    return -down if upside_down else down, across, np.log(spread_down), np.log(spread_across)


def _log_density(found: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(N, 4) features, (M, 4) of training -> (N,) log density, up to a constant."""
    mirrored = reference * (1, -1, 1, 1)  # across is counted from the middle
    centres = np.concatenate([reference, mirrored])
    spread = np.maximum(centres.std(axis=0), MIN_SPREAD)
    bandwidth = spread * len(reference) ** (-1 / (reference.shape[1] + 4))
    constant = np.log(len(centres)) + np.log(bandwidth).sum()
    densities = []
    for one in found:  # one at a time: (N, M) would be large
        exponents = -0.5 * (((one - centres) / bandwidth) ** 2).sum(axis=1)
        densities.append(np.logaddexp.reduce(exponents) - constant)
    return np.array(densities)
