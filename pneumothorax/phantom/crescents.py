"""The crescents of a pneumothorax: where they lie, how dark they are, and their pleural lines."""

from dataclasses import dataclass

import cv2
import numpy as np

from pneumothorax.phantom import anatomy as anatomy_of
from pneumothorax.phantom import canvas
from pneumothorax.phantom.anatomy import Anatomy

MIN_SHARE, MAX_SHARE = 0.001, 0.07  # total area of the crescents / area of the image
LARGE_SHARE = 0.03  # a larger pneumothorax follows the whole chest wall


@dataclass(frozen=True)
class Crescent:
    """One crescent of air.

    Attributes:
        side: the lung, 0 on the left of the radiograph, 1 on its right.
        outline, line: the closed outline and its inner edge, the pleural line, in radiograph
            coordinates.
        mask: (size, size) uint8 of 0 and 1.
        darkness: how much darker than lung it is, as density.
        veil: the share of the lung's texture that still shows.
        line_width, line_strength: of the pleural line, in radiograph widths and as density.
    """

    side: int
    outline: np.ndarray
    line: np.ndarray
    mask: np.ndarray
    darkness: float
    veil: float
    line_width: float
    line_strength: float


def random_crescents(rng: np.random.Generator, anatomy: Anatomy, size: int) -> list[Crescent]:
    """The crescents of one pneumothorax: usually one, sometimes two in a lung or one in each."""
    area = float(np.clip(np.exp(rng.normal(np.log(0.026), 0.7)), 1.5 * MIN_SHARE, 0.8 * MAX_SHARE))
    first = int(rng.integers(2))
    kind = str(rng.choice(["apical", "lateral", "basal", "wide"], p=[0.4, 0.3, 0.15, 0.15]))
    if area > LARGE_SHARE:
        kind = "wide"
    plan = [(first, kind, area)]
    chance = rng.random()
    if chance < 0.12:  # both sides
        plan = [(first, kind, 0.65 * area), (1 - first, "apical", 0.35 * area)]
    elif chance < 0.27 and kind != "wide":  # two pockets in one lung
        plan = [(first, "apical", 0.6 * area), (first, "basal", 0.4 * area)]
    return [
        _crescent(rng, anatomy, side, kind=kind, area=area, size=size) for side, kind, area in plan
    ]


def _crescent(
    rng: np.random.Generator, anatomy: Anatomy, side: int, *, kind: str, area: float, size: int
) -> Crescent:
    outline, line = anatomy_of.random_crescent(rng, anatomy.lungs[side], kind=kind, area=area)
    mask = np.zeros((size, size), dtype=np.uint8)
    cv2.fillPoly(mask, [canvas.fixed_point(outline, size)], 1, cv2.LINE_8, canvas.SHIFT)
    return Crescent(
        side=side,
        outline=outline,
        line=line,
        mask=mask,
        darkness=rng.uniform(0.09, 0.22),
        veil=rng.uniform(0.0, 0.06),
        line_width=rng.uniform(0.002, 0.0032),
        line_strength=rng.uniform(0.06, 0.16),
    )


def add_pleural_lines(density: np.ndarray, crescents: list[Crescent]) -> None:
    """Draws the edge of the collapsed lung: thin, bright, sometimes barely visible."""
    for crescent in crescents:
        line = canvas.stroked(density.shape[0], [crescent.line], crescent.line_width, blur=0.001)
        density += np.float32(crescent.line_strength) * line
