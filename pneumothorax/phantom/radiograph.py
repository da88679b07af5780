"""Draws one chest phantom as a radiograph: tissues add up, air takes away, then exposure, noise and labels.

Tissues are drawn at half the radiograph's size, no radiograph being sharper; lines, tubes, noise and text at full size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from pneumothorax.phantom import anatomy as anatomy_of
from pneumothorax.phantom.anatomy import Anatomy, Curves, Lung

SHIFT = 6  # fractional bits of the coordinates given to OpenCV
MIN_SHARE, MAX_SHARE = 0.001, 0.07  # pneumothorax area / image area, all parts together
LARGE = 0.03  # share of the radiograph from which a pneumothorax follows the whole chest wall
TONES = 4096  # steps of the exposure curve


@dataclass(frozen=True)
class Phantom:
    """A drawn radiograph and the truth about it.

    Attributes:
        image: (size, size) uint8, white = dense.
        parts: (size, size) uint8 masks of 0 and 1, one per crescent of pneumothorax; empty without one.
    """

    image: np.ndarray
    parts: list[np.ndarray]


@dataclass(frozen=True)
class Crescent:
    """One part of a pneumothorax.

    Attributes:
        side: the lung, 0 on the radiograph's left, 1 on its right.
        outline, line: closed outline, and its inner edge, the pleural line, in radiograph coordinates.
        mask: (size, size) uint8 of 0 and 1.
        darkness, veil: how much darker than lung, and the share of the lung's texture that still shows.
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


def draw(seed: int, *, pneumothorax: bool, size: int = 1024, patient: int | None = None) -> Phantom:
    """The radiograph number `seed` of a patient: same arguments, same pixels.

    With and without `pneumothorax` it is the same radiograph but for the crescents and, on some, a chest tube.

    Args:
        seed: what differs from radiograph to radiograph: pose, exposure, tubes, the pneumothorax.
        pneumothorax: whether there is one.
        size: side of the radiograph in pixels, a multiple of 2.
        patient: what radiographs of one patient share (anatomy); by default every seed is another patient.
    """
    anatomy = anatomy_of.random_anatomy(
        np.random.default_rng([seed if patient is None else patient, 1])
    )
    pose, disease, tissue, tube, device, exposure, label = np.random.default_rng([seed, 2]).spawn(7)
    anatomy = anatomy_of.posed(anatomy, anatomy_of.random_pose(pose))
    crescents = _crescents(disease, anatomy, size) if pneumothorax else []
    density = _tissues(tissue, anatomy, crescents, size // 2)
    density = cv2.resize(density, (size, size), interpolation=cv2.INTER_LINEAR)
    _add_pleural_lines(density, crescents)
    _add_chest_tubes(tube, density, anatomy, crescents)
    _add_devices(device, density)
    image = _exposed(exposure, density)
    _write_labels(label, image)
    return Phantom(image=image, parts=[crescent.mask for crescent in crescents])


def _filled(size: int, outlines: Curves, blur: float) -> np.ndarray:
    """(size, size) float32 in 0..1, 1 inside any of the outlines; `blur` in radiograph widths."""
    canvas = np.zeros((size, size), dtype=np.uint8)
    for outline in outlines:
        cv2.fillPoly(canvas, [_fixed_point(outline, size)], 255, cv2.LINE_AA, SHIFT)
    return _softened(canvas, blur)


def _stroked(size: int, lines: Curves, width: float, *, blur: float) -> np.ndarray:
    """(size, size) float32 in 0..1: centre lines drawn `width` radiograph widths wide."""
    canvas = np.zeros((size, size), dtype=np.uint8)
    _stroke(canvas, lines, width, 255)
    return _softened(canvas, blur)


def _stroke(canvas: np.ndarray, lines: Curves, width: float, value: int) -> None:
    size = canvas.shape[0]
    points = [_fixed_point(line, size) for line in lines]
    cv2.polylines(canvas, points, False, value, max(1, round(width * size)), cv2.LINE_AA, SHIFT)


def _softened(canvas: np.ndarray, blur: float) -> np.ndarray:
    """uint8 0..255 -> float32 0..1, blurred by `blur` radiograph widths; a wide blur runs on a reduced canvas."""
    sigma = blur * canvas.shape[0]
    if sigma > 6:
        factor = int(sigma // 3)
        small = cv2.resize(canvas, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA)
        small = cv2.GaussianBlur(small.astype(np.float32), (0, 0), sigma / factor)
        return cv2.resize(small, canvas.shape[::-1], interpolation=cv2.INTER_LINEAR) * np.float32(
            1 / 255
        )
    if sigma > 0.3:
        canvas = cv2.GaussianBlur(canvas, (0, 0), sigma)
    return canvas.astype(np.float32) * np.float32(1 / 255)


def _fixed_point(curve: np.ndarray, size: int) -> np.ndarray:
    """Radiograph coordinates -> OpenCV's fixed point, where a pixel's centre is a whole number."""
    return np.round((curve * size - 0.5) * (1 << SHIFT)).astype(np.int32)


def _crescents(rng: np.random.Generator, anatomy: Anatomy, size: int) -> list[Crescent]:
    """The parts of one pneumothorax: usually one, sometimes two in a lung or one in each."""
    area = float(np.clip(np.exp(rng.normal(np.log(0.026), 0.7)), 1.5 * MIN_SHARE, 0.8 * MAX_SHARE))
    first = int(rng.integers(2))
    kind = str(rng.choice(["apical", "lateral", "basal", "wide"], p=[0.4, 0.3, 0.15, 0.15]))
    if area > LARGE:
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
    cv2.fillPoly(mask, [_fixed_point(outline, size)], 1, cv2.LINE_8, SHIFT)
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


def _tissues(
    rng: np.random.Generator, anatomy: Anatomy, crescents: list[Crescent], size: int
) -> np.ndarray:
    """(size, size) float32: what the rays meet; 0 = air around the patient, about 1 = abdomen."""
    body = _filled(size, anatomy.body, 0.003)
    thickness = _filled(size, anatomy.body, 0.05)
    lung = [_filled(size, [side.outline], 0.002) for side in anatomy.lungs]
    both_lungs = lung[0] + lung[1]
    middle = _filled(size, anatomy.mediastinum, 0.004)
    heart = _filled(size, anatomy.heart, 0.005)
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
        density += rng.uniform(0.03, 0.10) * _filled(size, anatomy.breasts, 0.008)
    if anatomy.stomach:
        density -= (
            rng.uniform(0.06, 0.18) * _filled(size, anatomy.stomach, 0.006) * (1 - both_lungs)
        )
    return density + 0.02 * _clouds(rng, size, cells=6) * body


def _below_the_domes(size: int, anatomy: Anatomy) -> np.ndarray:
    """(size, 1) float32 ramp from 0 above the diaphragm to 1 in the abdomen."""
    dome = min(float(side.outline[9 * anatomy_of.POINTS_PER_KNOT, 1]) for side in anatomy.lungs)
    y = (np.arange(size, dtype=np.float32)[:, None] + 0.5) / size
    return np.clip((y - dome + 0.06) / 0.12, 0, 1)


def _air_by_height(rng: np.random.Generator, size: int) -> np.ndarray:
    """(size, 1) float32 about 1: apices and bases are not equally dark."""
    return np.linspace(rng.uniform(0.85, 1.05), rng.uniform(0.85, 1.05), size, dtype=np.float32)[
        :, None
    ]


def _bones(rng: np.random.Generator, anatomy: Anatomy, size: int) -> np.ndarray:
    """(size, size) float32: ribs, clavicles, shoulders and spine with their brighter edges."""
    width = anatomy.rib_width
    clear = rng.uniform(0.6, 1.2)
    bones = clear * 0.095 * _tubular(size, anatomy.back_ribs, width)
    bones += clear * 0.065 * _tubular(size, anatomy.front_ribs, width * 1.1)
    bones += clear * 0.11 * _tubular(size, anatomy.clavicles, 0.021)
    bones += 0.09 * _tubular(size, anatomy.upper_arms, 0.05)
    bones += clear * 0.045 * _stroked(size, anatomy.shoulder_blades, 0.004, blur=0.0015)
    bones += clear * 0.045 * _filled(size, anatomy.shoulder_blades, 0.003)
    bones += rng.uniform(0.03, 0.07) * _filled(size, anatomy.vertebrae, 0.002)
    bones -= rng.uniform(0.03, 0.07) * _stroked(size, anatomy.trachea, 0.036, blur=0.004)
    return bones


def _tubular(size: int, lines: Curves, width: float) -> np.ndarray:
    """Long bones: marrow at 0.62, cortex at 1."""
    canvas = np.zeros((size, size), dtype=np.uint8)
    _stroke(canvas, lines, width, 255)
    _stroke(canvas, lines, width * 0.66, 158)
    return _softened(canvas, 0.0016)


def _lung_tissue(
    rng: np.random.Generator,
    anatomy: Anatomy,
    lung: Sequence[np.ndarray],
    crescents: list[Crescent],
    size: int,
) -> np.ndarray:
    """(size, size) float32: vessels and texture where the lung is, extra darkness where it is not."""
    vessels = _vessels(anatomy.lungs, size) * rng.uniform(0.09, 0.17)
    texture = rng.uniform(0.010, 0.022) * _clouds(rng, size, cells=90)
    texture += rng.uniform(0.012, 0.024) * _clouds(rng, size, cells=28)
    tissue = vessels + texture
    for crescent in crescents:
        empty = _filled(size, [crescent.outline], 0.0016) * lung[crescent.side]
        tissue *= 1 - (1 - crescent.veil) * empty
        tissue -= crescent.darkness * empty
    return tissue


def _vessels(lungs: Sequence[Lung], size: int) -> np.ndarray:
    """(size, size) float32 in 0..1, thin branches fainter."""
    canvas = np.zeros((size, size), dtype=np.uint8)
    for level, width in enumerate(anatomy_of.VESSEL_WIDTHS):
        branches = [branch for lung in lungs for branch in lung.vessels[level]]
        _stroke(canvas, branches, width, 65 + 32 * level)
    hila = [
        anatomy_of.ellipse(float(lung.hilum[0]), float(lung.hilum[1]), 0.02, 0.045)
        for lung in lungs
    ]
    return _softened(canvas, 0.0013) + 0.5 * _filled(size, hila, 0.016)


def _clouds(rng: np.random.Generator, size: int, *, cells: int) -> np.ndarray:
    """(size, size) float32 smooth noise of standard deviation about 1 with `cells` features across."""
    noise = rng.standard_normal((cells, cells), dtype=np.float32)
    return cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)


def _folds(rng: np.random.Generator, anatomy: Anatomy, size: int) -> np.ndarray:
    """(size, size) float32: a skin fold runs down the chest like a pleural line, but is an edge, not a line.

    It darkens nothing: density climbs slowly towards it and drops behind it, and vessels go on.
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
        inside = _filled(size, [np.concatenate([edge, inner[::-1]])], 0.0018)
        fold += rng.uniform(0.03, 0.06) * inside * _stroked(size, [edge], 0.03, blur=0.018) * 1.6
    return fold


def _opacity(rng: np.random.Generator, anatomy: Anatomy, size: int) -> np.ndarray:
    """(size, size) float32: now and then a hazy patch or fluid over a base."""
    haze = np.zeros((size, size), dtype=np.float32)
    for lung in anatomy.lungs:
        if rng.random() < 0.15:
            x, y = lung.hilum + rng.normal(0, (0.05, 0.10))
            haze += rng.uniform(0.04, 0.13) * _filled(
                size, [anatomy_of.ellipse(x, y, 0.06, 0.07)], 0.03
            )
        if rng.random() < 0.10:
            x, y = lung.outline[7 * anatomy_of.POINTS_PER_KNOT]
            fluid = anatomy_of.ellipse(x, y + 0.03, 0.16, 0.10)
            haze += rng.uniform(0.10, 0.22) * _filled(size, [fluid], 0.02)
    return haze


def _add_pleural_lines(density: np.ndarray, crescents: list[Crescent]) -> None:
    """Draws the edge of the fallen lung: thin, bright, sometimes hardly there."""
    for crescent in crescents:
        line = _stroked(density.shape[0], [crescent.line], crescent.line_width, blur=0.001)
        density += np.float32(crescent.line_strength) * line


def _add_chest_tubes(
    rng: np.random.Generator, density: np.ndarray, anatomy: Anatomy, crescents: list[Crescent]
) -> None:
    """Draws chest tubes: likelier beside a pneumothorax, so not rare without one and no proof of it."""
    diseased = {crescent.side for crescent in crescents}
    for side, lung in enumerate(anatomy.lungs):
        path, chance = _chest_tube(rng, lung), rng.random()
        if chance < (0.35 if side in diseased else 0.10):
            _add_line(density, path, width=0.010, strength=0.07)


def _add_devices(rng: np.random.Generator, density: np.ndarray) -> None:
    """Draws what else lies in or on a patient: venous line, breathing tube, electrodes."""
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


def _add_line(density: np.ndarray, line: np.ndarray, *, width: float, strength: float) -> None:
    """A radiopaque tube: faint wall, bright marker stripe."""
    size = density.shape[0]
    tube = _stroked(size, [line], width, blur=0.0006) * np.float32(0.5)
    tube += _stroked(size, [line], max(width * 0.25, 0.0015), blur=0.0006)
    density += np.float32(strength) * tube


def _chest_tube(rng: np.random.Generator, lung: Lung) -> np.ndarray:
    """From outside the lower chest wall up along the lung to a tip near the apex or the hilum."""
    step = anatomy_of.POINTS_PER_KNOT
    entry, apex = lung.outline[int(rng.uniform(5.0, 6.4) * step)], lung.outline[2 * step]
    outward = float(np.sign(entry[0] - lung.hilum[0]))
    tip = apex + rng.uniform(0.2, 0.8) * (lung.hilum - apex)
    bend = 0.5 * (entry + tip) + np.array([outward * rng.uniform(-0.02, 0.04), 0.0])
    outside = entry + np.array([outward * 0.2, rng.uniform(-0.02, 0.2)])
    return anatomy_of.spline(np.stack([outside, entry, bend, tip]), closed=False)


def _add_electrodes(rng: np.random.Generator, density: np.ndarray) -> None:
    """Two or three monitor leads: a disc and its wire off the radiograph."""
    for _ in range(int(rng.integers(2, 4))):
        disc = np.array([rng.uniform(0.12, 0.88), rng.uniform(0.15, 0.8)])
        edge = np.array([float(disc[0] > 0.5) * 1.2 - 0.1, disc[1] + rng.uniform(-0.3, 0.4)])
        middle = 0.5 * (disc + edge) + rng.normal(0, 0.05, size=2)
        wire = anatomy_of.spline(np.stack([disc, middle, edge]), closed=False)
        _add_line(density, wire, width=0.003, strength=0.08)
        pad = anatomy_of.ellipse(disc[0], disc[1], 0.014, 0.014)
        density += 0.10 * _filled(density.shape[0], [pad], 0.0008)


def _exposed(rng: np.random.Generator, density: np.ndarray) -> np.ndarray:
    """Density -> (size, size) uint8 radiograph with this exposure's noise, window, gamma and dark borders."""
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
    """Darkens a strip at one or more borders, where the beam was shut."""
    size = image.shape[0]
    for turn in range(4):
        if rng.random() < 0.4:
            strip = np.rot90(image, turn)[: int(rng.uniform(0.005, 0.035) * size)]
            strip[:] = rng.integers(0, 20)


def _write_labels(rng: np.random.Generator, image: np.ndarray) -> None:
    """Writes the side marker and, on some radiographs, how it was taken."""
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
    """Writes white text with its lower left corner at `place` (radiograph coordinates), ringed if asked."""
    size = image.shape[0]
    scale, line = height * size / 1024, max(1, round(3 * size / 1024))
    x, y = int(place[0] * size), int(place[1] * size)
    cv2.putText(image, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, scale, 250, line, cv2.LINE_AA)
    if ring:
        centre = (x + round(10 * scale), y - round(10 * scale))
        cv2.circle(image, centre, round(23 * scale), 250, line, cv2.LINE_AA)
