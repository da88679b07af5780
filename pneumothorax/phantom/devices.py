"""Devices in or on a patient: chest tubes, a venous line, a breathing tube, electrodes."""

import numpy as np

from pneumothorax.phantom import anatomy as anatomy_of
from pneumothorax.phantom import canvas
from pneumothorax.phantom.anatomy import Anatomy, Lung
from pneumothorax.phantom.crescents import Crescent


def add_chest_tubes(
    rng: np.random.Generator, density: np.ndarray, anatomy: Anatomy, crescents: list[Crescent]
) -> None:
    """Draws chest tubes: more likely with a pneumothorax, but not rare without one."""
    diseased = {crescent.side for crescent in crescents}
    for side, lung in enumerate(anatomy.lungs):
        path, chance = _chest_tube(rng, lung), rng.random()
        if chance < (0.35 if side in diseased else 0.10):
            _add_line(density, path, width=0.010, strength=0.07)


def _chest_tube(rng: np.random.Generator, lung: Lung) -> np.ndarray:
    """A curve from outside the lower chest wall along the lung to a tip near apex or hilum."""
    step = anatomy_of.POINTS_PER_KNOT
    entry, apex = lung.outline[int(rng.uniform(5.0, 6.4) * step)], lung.outline[2 * step]
    outward = float(np.sign(entry[0] - lung.hilum[0]))
    tip = apex + rng.uniform(0.2, 0.8) * (lung.hilum - apex)
    bend = 0.5 * (entry + tip) + np.array([outward * rng.uniform(-0.02, 0.04), 0.0])
    outside = entry + np.array([outward * 0.2, rng.uniform(-0.02, 0.2)])
    return anatomy_of.spline(np.stack([outside, entry, bend, tip]), closed=False)


def add_devices(rng: np.random.Generator, density: np.ndarray) -> None:
    """Draws the other devices: venous line, breathing tube, electrodes."""
    if rng.random() < 0.22:
        x = rng.choice([0.34, 0.66])
        vein = np.array(
            [
                (x, 0.16),
                (0.5 + 0.3 * (x - 0.5), 0.2),
                (0.462, 0.27),
                (0.458, rng.uniform(0.36, 0.46)),
            ]
        )
        _add_line(density, anatomy_of.spline(vein, closed=False), width=0.0035, strength=0.10)
    if rng.random() < 0.18:
        windpipe = np.array([(0.5, -0.05), (0.503, 0.1), (0.499, rng.uniform(0.2, 0.28))])
        _add_line(density, anatomy_of.spline(windpipe, closed=False), width=0.010, strength=0.06)
    if rng.random() < 0.3:
        _add_electrodes(rng, density)


def _add_electrodes(rng: np.random.Generator, density: np.ndarray) -> None:
    """Two or three monitor leads: a disc, and a wire that leaves the radiograph."""
    for _ in range(int(rng.integers(2, 4))):
        disc = np.array([rng.uniform(0.12, 0.88), rng.uniform(0.15, 0.8)])
        edge = np.array([float(disc[0] > 0.5) * 1.2 - 0.1, disc[1] + rng.uniform(-0.3, 0.4)])
        middle = 0.5 * (disc + edge) + rng.normal(0, 0.05, size=2)
        wire = anatomy_of.spline(np.stack([disc, middle, edge]), closed=False)
        _add_line(density, wire, width=0.003, strength=0.08)
        pad = anatomy_of.ellipse(disc[0], disc[1], 0.014, 0.014)
        density += 0.10 * canvas.filled(density.shape[0], [pad], 0.0008)


def _add_line(density: np.ndarray, line: np.ndarray, *, width: float, strength: float) -> None:
    """A radiopaque tube: a faint wall and a bright marker stripe."""
    size = density.shape[0]
    tube = canvas.stroked(size, [line], width, blur=0.0006) * np.float32(0.5)
    tube += canvas.stroked(size, [line], max(width * 0.25, 0.0015), blur=0.0006)
    density += np.float32(strength) * tube
