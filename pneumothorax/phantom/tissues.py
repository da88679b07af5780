"""What the rays meet in a chest: body, bones, lungs with vessels, air, folds and haze."""

from collections.abc import Sequence

import cv2
import numpy as np

from pneumothorax.phantom import anatomy as anatomy_of
from pneumothorax.phantom import canvas
from pneumothorax.phantom.anatomy import Anatomy, Curves, Lung
from pneumothorax.phantom.crescents import Crescent


def tissue_density(
    rng: np.random.Generator, anatomy: Anatomy, crescents: list[Crescent], size: int
) -> np.ndarray:
    """(size, size) float32 density: 0 is the air around the patient, about 1 the abdomen."""
    body = canvas.filled(size, anatomy.body, 0.003)
    thickness = canvas.filled(size, anatomy.body, 0.05)
    lung = [canvas.filled(size, [side.outline], 0.002) for side in anatomy.lungs]
    both_lungs = lung[0] + lung[1]
    middle = canvas.filled(size, anatomy.mediastinum, 0.004)
    heart = canvas.filled(size, anatomy.heart, 0.005)
    air = both_lungs * (1 - np.maximum(middle, rng.uniform(0.7, 0.9) * heart))
    density = body * (0.12 + 0.55 * thickness * thickness)
    abdomen = _below_the_domes(size, anatomy)
    density += rng.uniform(0.12, 0.26) * body * abdomen * (1 - both_lungs)
    density += _bones(rng, anatomy, size) * body
    density += (rng.uniform(0.06, 0.11) * middle + rng.uniform(0.04, 0.09) * heart) * (
        1 - 0.85 * abdomen
    )
    density -= rng.uniform(0.28, 0.36) * air * _air_by_height(rng, size)
    density += _lung_tissue(rng, anatomy, lung, crescents, size) * air
    density += _folds(rng, anatomy, size) * body
    density += _opacity(rng, anatomy, size) * both_lungs
    if anatomy.breasts:
        density += rng.uniform(0.03, 0.10) * canvas.filled(size, anatomy.breasts, 0.008)
    if anatomy.stomach:
        density -= (
            rng.uniform(0.06, 0.18) * canvas.filled(size, anatomy.stomach, 0.006) * (1 - both_lungs)
        )
    return density + 0.02 * _clouds(rng, size, cells=6) * body


def _below_the_domes(size: int, anatomy: Anatomy) -> np.ndarray:
    """(size, 1) float32: a ramp from 0 above the diaphragm to 1 in the abdomen."""
    dome = min(float(side.outline[9 * anatomy_of.POINTS_PER_KNOT, 1]) for side in anatomy.lungs)
    y = (np.arange(size, dtype=np.float32)[:, None] + 0.5) / size
    return np.clip((y - dome + 0.06) / 0.12, 0, 1)


def _air_by_height(rng: np.random.Generator, size: int) -> np.ndarray:
    """(size, 1) float32 around 1: apices and bases are not equally dark."""
    return np.linspace(rng.uniform(0.85, 1.05), rng.uniform(0.85, 1.05), size, dtype=np.float32)[
        :, None
    ]


def _bones(rng: np.random.Generator, anatomy: Anatomy, size: int) -> np.ndarray:
    """(size, size) float32: ribs, clavicles, shoulders and spine, with brighter edges."""
    width = anatomy.rib_width
    clear = rng.uniform(0.6, 1.2)
    bones = clear * 0.095 * _tubular(size, anatomy.back_ribs, width)
    bones += clear * 0.065 * _tubular(size, anatomy.front_ribs, width * 1.1)
    bones += clear * 0.11 * _tubular(size, anatomy.clavicles, 0.021)
    bones += 0.09 * _tubular(size, anatomy.upper_arms, 0.05)
    bones += clear * 0.045 * canvas.stroked(size, anatomy.shoulder_blades, 0.004, blur=0.0015)
    bones += clear * 0.045 * canvas.filled(size, anatomy.shoulder_blades, 0.003)
    bones += rng.uniform(0.03, 0.07) * canvas.filled(size, anatomy.vertebrae, 0.002)
    bones -= rng.uniform(0.03, 0.07) * canvas.stroked(size, anatomy.trachea, 0.036, blur=0.004)
    return bones


def _tubular(size: int, lines: Curves, width: float) -> np.ndarray:
    """(size, size) float32: long bones with marrow at 0.62 and cortex at 1."""
    drawn = np.zeros((size, size), dtype=np.uint8)
    canvas.stroke(drawn, lines, width, 255)
    canvas.stroke(drawn, lines, width * 0.66, 158)
    return canvas.softened(drawn, 0.0016)


def _lung_tissue(
    rng: np.random.Generator,
    anatomy: Anatomy,
    lung: Sequence[np.ndarray],
    crescents: list[Crescent],
    size: int,
) -> np.ndarray:
    """(size, size) float32: vessels and texture of the lungs, darkness in the crescents."""
    vessels = _vessels(anatomy.lungs, size) * rng.uniform(0.09, 0.17)
    texture = rng.uniform(0.010, 0.022) * _clouds(rng, size, cells=90)
    texture += rng.uniform(0.012, 0.024) * _clouds(rng, size, cells=28)
    tissue = vessels + texture
    for crescent in crescents:
        empty = canvas.filled(size, [crescent.outline], 0.0016) * lung[crescent.side]
        tissue *= 1 - (1 - crescent.veil) * empty
        tissue -= crescent.darkness * empty
    return tissue


def _vessels(lungs: Sequence[Lung], size: int) -> np.ndarray:
    """(size, size) float32 in 0..1; thinner branches are fainter."""
    drawn = np.zeros((size, size), dtype=np.uint8)
    for level, width in enumerate(anatomy_of.VESSEL_WIDTHS):
        branches = [branch for lung in lungs for branch in lung.vessels[level]]
        canvas.stroke(drawn, branches, width, 65 + 32 * level)
    hila = [
        anatomy_of.ellipse(float(lung.hilum[0]), float(lung.hilum[1]), 0.02, 0.045)
        for lung in lungs
    ]
    return canvas.softened(drawn, 0.0013) + 0.5 * canvas.filled(size, hila, 0.016)


def _clouds(rng: np.random.Generator, size: int, *, cells: int) -> np.ndarray:
    """(size, size) float32: smooth noise with a deviation of about 1, `cells` features across."""
    noise = rng.standard_normal((cells, cells), dtype=np.float32)
    return cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)


def _folds(rng: np.random.Generator, anatomy: Anatomy, size: int) -> np.ndarray:
    """(size, size) float32: skin folds, which run down the chest like a pleural line.

    But a fold is an edge, not a line: density rises slowly towards it and drops behind it, lung
    tissue is not darker, and vessels continue across.
    """
    fold = np.zeros((size, size), dtype=np.float32)
    for lung in anatomy.lungs:
        if rng.random() > 0.15:
            continue
        wall = lung.outline[2 * anatomy_of.POINTS_PER_KNOT : 7 * anatomy_of.POINTS_PER_KNOT]
        share = (
            rng.uniform(0.15, 0.5)
            + rng.uniform(-0.25, 0.25) * np.linspace(-0.5, 0.5, len(wall))[:, None]
        )
        edge = wall + share * (lung.hilum - wall)
        inner = edge + rng.uniform(0.25, 0.45) * (lung.hilum - wall)
        inside = canvas.filled(size, [np.concatenate([edge, inner[::-1]])], 0.0018)
        fold += (
            rng.uniform(0.03, 0.06) * inside * canvas.stroked(size, [edge], 0.03, blur=0.018) * 1.6
        )
    return fold


def _opacity(rng: np.random.Generator, anatomy: Anatomy, size: int) -> np.ndarray:
    """(size, size) float32: on some radiographs a hazy patch, or fluid above the diaphragm."""
    haze = np.zeros((size, size), dtype=np.float32)
    for lung in anatomy.lungs:
        if rng.random() < 0.15:
            x, y = lung.hilum + rng.normal(0, (0.05, 0.10))
            haze += rng.uniform(0.04, 0.13) * canvas.filled(
                size, [anatomy_of.ellipse(x, y, 0.06, 0.07)], 0.03
            )
        if rng.random() < 0.10:
            x, y = lung.outline[7 * anatomy_of.POINTS_PER_KNOT]
            fluid = anatomy_of.ellipse(x, y + 0.03, 0.16, 0.10)
            haze += rng.uniform(0.10, 0.22) * canvas.filled(size, [fluid], 0.02)
    return haze
