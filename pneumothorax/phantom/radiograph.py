"""Draws a chest phantom as a radiograph: densities add up, then come exposure, noise and text.

Tissues are drawn at half the size, which is as sharp as they are on real radiographs; lines,
tubes, noise and text are drawn at full size.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from pneumothorax.phantom import anatomy as anatomy_of
from pneumothorax.phantom import devices
from pneumothorax.phantom.crescents import add_pleural_lines, random_crescents
from pneumothorax.phantom.tissues import tissue_density

TONES = 4096  # steps of the exposure curve


@dataclass(frozen=True)
class Phantom:
    """A drawn radiograph and the truth about it.

    Attributes:
        image: (size, size) uint8, white = dense.
        masks: one (size, size) uint8 mask of 0 and 1 per crescent of the pneumothorax; may be
            empty.
    """

    image: np.ndarray
    masks: list[np.ndarray]


def draw(seed: int, *, pneumothorax: bool, size: int = 1024, patient: int | None = None) -> Phantom:
    """Radiograph number `seed` of a patient: same arguments, same pixels.

    With and without `pneumothorax` the radiographs are identical except for the crescents and,
    on some, a chest tube.

    Args:
        seed: decides on pose, exposure, tubes and pneumothorax.
        pneumothorax: whether one is drawn.
        size: side of the radiograph in pixels, a multiple of 2.
        patient: decides on the anatomy. By default every seed is another patient.
    """
    anatomy = anatomy_of.random_anatomy(
        np.random.default_rng([seed if patient is None else patient, 1])
    )
    pose, disease, tissue, tube, device, exposure, label = np.random.default_rng([seed, 2]).spawn(7)
    anatomy = anatomy_of.posed(anatomy, anatomy_of.random_pose(pose))
    crescents = random_crescents(disease, anatomy, size) if pneumothorax else []
    density = tissue_density(tissue, anatomy, crescents, size // 2)
    density = cv2.resize(density, (size, size), interpolation=cv2.INTER_LINEAR)
    add_pleural_lines(density, crescents)
    devices.add_chest_tubes(tube, density, anatomy, crescents)
    devices.add_devices(device, density)
    image = _exposed(exposure, density)
    _write_labels(label, image)
    return Phantom(image=image, masks=[crescent.mask for crescent in crescents])


def _exposed(rng: np.random.Generator, density: np.ndarray) -> np.ndarray:
    """Density -> (size, size) uint8, with this exposure's noise, window, gamma and collimation."""
    size = density.shape[0]
    grain = cv2.GaussianBlur(rng.integers(0, 256, size=(size, size), dtype=np.uint8), (3, 3), 0.7)
    scale = rng.uniform(0.0002, 0.0007)
    noisy = cv2.scaleAdd(grain.astype(np.float32), scale, density)
    low, high = rng.uniform(-0.06, 0.07), rng.uniform(0.80, 1.12)
    tone = np.linspace(0, 1, TONES) ** rng.uniform(0.75, 1.35)
    table = np.round(rng.uniform(0, 22) + tone * rng.uniform(205, 233)).astype(np.uint8)
    level = (noisy - np.float32(low + 127 * scale)) * np.float32((TONES - 1) / (high - low))
    image = table[np.clip(level, 0, TONES - 1).astype(np.uint16)]
    if rng.random() < 0.35:
        _collimate(rng, image)
    return image


def _collimate(rng: np.random.Generator, image: np.ndarray) -> None:
    """Darkens strips at the borders, where the beam was collimated."""
    size = image.shape[0]
    for turn in range(4):
        if rng.random() < 0.4:
            strip = np.rot90(image, turn)[: int(rng.uniform(0.005, 0.035) * size)]
            strip[:] = rng.integers(0, 20)


def _write_labels(rng: np.random.Generator, image: np.ndarray) -> None:
    """Writes the side marker and, on some radiographs, the projection."""
    side, x = ("L", 0.90) if rng.random() < 0.7 else ("R", 0.06)
    place = (x + rng.uniform(-0.03, 0.03), rng.uniform(0.04, 0.22))
    _write(image, side, place, height=rng.uniform(1.1, 1.9), ring=rng.random() < 0.3)
    if rng.random() < 0.3:
        word = str(rng.choice(["PORTABLE", "AP", "SUPINE", "AP ERECT", "PORTABLE"]))
        place = (rng.uniform(0.02, 0.7), float(rng.choice([0.04, 0.3, 0.93])))
        _write(image, word, place, height=rng.uniform(0.6, 1.1), ring=False)


def _write(
    image: np.ndarray, text: str, place: tuple[float, float], *, height: float, ring: bool
) -> None:
    """Writes white text, with or without a ring; `place` is its lower left corner, in 0..1."""
    size = image.shape[0]
    scale, line = height * size / 1024, max(1, round(3 * size / 1024))
    x, y = int(place[0] * size), int(place[1] * size)
    cv2.putText(image, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, scale, 250, line, cv2.LINE_AA)
    if ring:
        centre = (x + round(10 * scale), y - round(10 * scale))
        cv2.circle(image, centre, round(23 * scale), 250, line, cv2.LINE_AA)
