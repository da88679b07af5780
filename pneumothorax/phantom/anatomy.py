"""The curves of an invented patient's chest: outlines, bones, vessels, and pneumothorax crescents.

Every curve is an (N, 2) float64 array of (x, y) on a radiograph that is 1 wide and 1 high, with y
pointing down. As on a radiologist's screen, the patient's right lung is on the left. "Outward"
means away from the spine.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Curves = list[np.ndarray]

MIDDLE = 0.5  # x of the spine before the pose
POINTS_PER_KNOT = 12  # curve points between two knots of an outline
VESSEL_WIDTHS = (0.0012, 0.0020, 0.0028, 0.0042, 0.0062, 0.0090)  # radiograph widths, thin to thick

# The right lung's outline; the left one is its mirror image. The pneumothorax lies on knots 1 to 9.
LUNG_KNOTS = np.array(
    [
        (0.450, 0.300),
        (0.432, 0.195),
        (0.365, 0.128),
        (0.268, 0.190),
        (0.196, 0.330),
        (0.158, 0.490),
        (0.142, 0.630),
        (0.140, 0.742),
        (0.212, 0.682),
        (0.306, 0.648),
        (0.398, 0.668),
        (0.452, 0.695),
        (0.455, 0.580),
        (0.446, 0.440),
    ]
)
DIAPHRAGM_KNOTS = slice(8, 12)
# Where a pneumothorax may lie on the outline, in knots: the range of its middle, and of its half
# width.
ARCS = {
    "apical": ((2.0, 2.9), (1.3, 2.4)),
    "lateral": ((4.0, 5.4), (1.5, 3.0)),
    "basal": ((6.4, 7.3), (1.4, 2.2)),
    "wide": ((3.6, 4.6), (3.2, 4.6)),
}


@dataclass(frozen=True)
class Lung:
    """One lung: closed outline, entry point of the vessels, and the vessels, by VESSEL_WIDTHS."""

    outline: np.ndarray
    hilum: np.ndarray
    vessels: list[Curves]


@dataclass(frozen=True)
class Anatomy:
    """All curves of one chest: closed outlines, and centre lines of the long bones."""

    body: Curves
    lungs: tuple[Lung, Lung]
    mediastinum: Curves
    heart: Curves
    breasts: Curves
    stomach: Curves
    trachea: Curves
    vertebrae: Curves
    back_ribs: Curves
    front_ribs: Curves
    clavicles: Curves
    shoulder_blades: Curves
    upper_arms: Curves
    rib_width: float


def spline(knots: np.ndarray, *, closed: bool) -> np.ndarray:
    """(K, 2) knots -> Catmull-Rom curve through them; closed: (K * POINTS_PER_KNOT, 2)."""
    if closed:
        padded = np.concatenate([knots[-1:], knots, knots[:2]])
    else:
        padded = np.concatenate([2 * knots[:1] - knots[1:2], knots, 2 * knots[-1:] - knots[-2:-1]])
    t = np.linspace(0, 1, POINTS_PER_KNOT, endpoint=False)[None, :, None]
    before, start, end, after = (padded[i : len(padded) - 3 + i, None] for i in range(4))
    cubic = 3 * (start - end) + after - before
    square = 2 * before - 5 * start + 4 * end - after
    curve = start + 0.5 * t * (end - before + t * (square + t * cubic))
    return curve.reshape(-1, 2) if closed else np.concatenate([curve.reshape(-1, 2), knots[-1:]])


def ellipse(x: float, y: float, radius_x: float, radius_y: float) -> np.ndarray:
    """Closed outline of 36 points."""
    angle = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    return np.stack([x + radius_x * np.cos(angle), y + radius_y * np.sin(angle)], axis=1)


def mirrored(curve: np.ndarray) -> np.ndarray:
    """The same curve on the patient's other side."""
    return np.stack([2 * MIDDLE - curve[:, 0], curve[:, 1]], axis=1)


def both_sides(curves: Curves) -> Curves:
    return curves + [mirrored(curve) for curve in curves]


def moved(curves: Curves, pose: np.ndarray) -> Curves:
    """Curves after the affine (2, 3) `pose`."""
    return [curve @ pose[:, :2].T + pose[:, 2] for curve in curves]


def posed(anatomy: Anatomy, pose: np.ndarray) -> Anatomy:
    """The chest as it is exposed: every curve moved by the affine (2, 3) `pose`."""
    lungs = [
        Lung(
            outline=moved([lung.outline], pose)[0],
            hilum=moved([lung.hilum[None]], pose)[0][0],
            vessels=[moved(curves, pose) for curves in lung.vessels],
        )
        for lung in anatomy.lungs
    ]
    names = [name for name, value in vars(anatomy).items() if isinstance(value, list)]
    curves: dict[str, Any] = {name: moved(getattr(anatomy, name), pose) for name in names}
    return replace(anatomy, lungs=(lungs[0], lungs[1]), **curves)


def random_pose(rng: np.random.Generator) -> np.ndarray:
    """Affine (2, 3): a shift of up to 4 %, a rotation of up to 5 degrees, scale, some shear."""
    angle = np.clip(rng.normal(0, 0.03), -0.09, 0.09)
    scale_x, scale_y = rng.uniform(0.92, 1.08) * rng.uniform(0.97, 1.03, size=2)
    linear = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = linear @ np.array([[scale_x, rng.normal(0, 0.015)], [0, scale_y]])
    centre = np.array([MIDDLE, 0.45])
    shift = rng.uniform(-0.04, 0.04, size=2)
    return np.concatenate([linear, (centre + shift - linear @ centre)[:, None]], axis=1)


def random_anatomy(rng: np.random.Generator) -> Anatomy:
    """One patient's chest in the standard pose."""
    width, height = rng.uniform(0.92, 1.10), rng.uniform(0.88, 1.10)
    knots = [_lung_knots(rng, width, height) for _ in range(2)]
    knots[1][DIAPHRAGM_KNOTS, 1] += 0.018  # the left dome is lower
    sides = [knots[0], mirrored(knots[1])]
    fat = rng.uniform(0.0, 1.0)
    ribs = [_ribs(rng, side) for side in knots]
    return Anatomy(
        body=_body(rng, knots, fat),
        lungs=(_lung(rng, sides[0], outward=-1), _lung(rng, sides[1], outward=1)),
        mediastinum=_mediastinum(rng),
        heart=[_heart(rng, bottom=float(knots[1][10, 1]))],
        breasts=_breasts(rng),
        stomach=_stomach(rng, knots[1]),
        trachea=[np.array([(0.5, 0.0), (0.502, 0.12), (0.498, 0.22), (0.495, 0.33)])],
        vertebrae=_vertebrae(rng),
        back_ribs=ribs[0][0] + [mirrored(rib) for rib in ribs[1][0]],
        front_ribs=ribs[0][1] + [mirrored(rib) for rib in ribs[1][1]],
        clavicles=_clavicles(rng),
        shoulder_blades=_shoulder_blades(rng),
        upper_arms=both_sides([np.array([(0.045, 0.16), (0.02, 0.25), (-0.02, 0.5)])]),
        rib_width=rng.uniform(0.019, 0.026),
    )


def _lung_knots(rng: np.random.Generator, width: float, height: float) -> np.ndarray:
    """The right lung's knots for this patient's width, height, dome and small irregularities."""
    knots = LUNG_KNOTS + rng.normal(0, 0.006, size=LUNG_KNOTS.shape)
    outward = MIDDLE - knots[:, 0]
    knots[:, 0] = MIDDLE - np.where(outward > 0.08, outward * width, outward)
    knots[:, 1] = 0.13 + (knots[:, 1] - 0.13) * height
    knots[DIAPHRAGM_KNOTS, 1] += rng.normal(0, 0.022)
    return knots


def _lung(rng: np.random.Generator, knots: np.ndarray, *, outward: int) -> Lung:
    hilum = np.array([MIDDLE + outward * 0.085, 0.42]) + rng.normal(0, 0.008, size=2)
    return Lung(
        outline=spline(knots, closed=True), hilum=hilum, vessels=_vessel_tree(rng, hilum, outward)
    )


def _vessel_tree(rng: np.random.Generator, hilum: np.ndarray, outward: int) -> list[Curves]:
    """Branches from the hilum outwards, thinner after each fork: a list of polylines per width."""
    tree: list[Curves] = [[] for _ in VESSEL_WIDTHS]
    thickest = len(VESSEL_WIDTHS) - 1
    # 0 is straight outward, negative is up.
    angles = np.linspace(-1.5, 1.5, 9) + rng.normal(0, 0.12, size=9)
    starts = hilum + rng.normal(0, (0.012, 0.03), size=(9, 2))
    levels = thickest - (np.arange(9) + int(rng.integers(2))) % 2
    stems = list(zip(*starts.T.tolist(), angles.tolist(), levels.tolist(), strict=True))
    while stems:
        x, y, angle, level = stems.pop()
        steps = rng.normal(0, 0.19, size=5)
        length = float(rng.uniform(0.009, 0.021))
        branch = [(x, y)]
        for bend in steps.tolist():
            angle += bend
            x += outward * length * np.cos(angle)
            y += length * np.sin(angle)
            branch.append((x, y))
        tree[level].append(np.array(branch))
        if level > 0:
            spread = float(rng.uniform(0.25, 0.6))
            stems += [(x, y, angle - spread, level - 1), (x, y, angle + spread * 0.8, level - 1)]
    return tree


def _body(rng: np.random.Generator, knots: Curves, fat: float) -> Curves:
    """Neck, shoulders and trunk as one outline; the trunk keeps a distance from the ribs."""
    wall = 0.045 + 0.06 * fat
    shoulder = rng.uniform(0.0, 0.05)
    neck = rng.uniform(0.085, 0.115)
    sides = []
    for side in knots:
        chest_x = float(side[6, 0]) - wall
        sides.append(
            np.array(
                [
                    (MIDDLE - neck, -0.1),
                    (MIDDLE - neck - 0.01, 0.03),
                    (0.30, 0.085 + shoulder * 0.5),
                    (0.08, 0.10 + shoulder),
                    (-0.08, 0.19 + shoulder),
                    (-0.12, 0.40),
                    (0.02, 0.40 + shoulder),
                    (chest_x, 0.52),
                    (chest_x + 0.005, 0.75),
                    (chest_x - 0.01 * fat, 0.92),
                    (chest_x, 1.1),
                ]
            )
        )
    return [
        np.concatenate(
            [spline(sides[0], closed=False), spline(mirrored(sides[1]), closed=False)[::-1]]
        )
    ]


def _mediastinum(rng: np.random.Generator) -> Curves:
    wide = rng.uniform(0.85, 1.3)
    right = np.array(
        [
            (0.455, -0.05),
            (0.455, 0.15),
            (0.452, 0.28),
            (0.448, 0.40),
            (0.445, 0.55),
            (0.455, 0.72),
            (0.46, 1.1),
        ]
    )
    left = np.array(
        [
            (0.545, -0.05),
            (0.545, 0.18),
            (0.552, 0.30),
            (0.548, 0.40),
            (0.555, 0.55),
            (0.545, 0.72),
            (0.54, 1.1),
        ]
    )
    outline = np.concatenate([spline(right, closed=False), spline(left, closed=False)[::-1]])
    outline[:, 0] = MIDDLE + (outline[:, 0] - MIDDLE) * wide
    knob = ellipse(0.552, rng.uniform(0.29, 0.33), rng.uniform(0.02, 0.036), 0.032)
    return [outline, knob]


def _heart(rng: np.random.Generator, *, bottom: float) -> np.ndarray:
    size = rng.uniform(0.85, 1.25)
    knots = np.array(
        [
            (0.470, 0.38),
            (0.436, 0.50),
            (0.425, 0.60),
            (0.450, 0.70),
            (0.560, 0.73),
            (0.660, 0.71),
            (0.678, 0.64),
            (0.636, 0.54),
            (0.580, 0.44),
            (0.550, 0.37),
        ]
    )
    knots += rng.normal(0, 0.004, size=knots.shape)
    knots[:, 0] = 0.49 + (knots[:, 0] - 0.49) * size
    knots[:, 1] += bottom - 0.695
    return spline(knots, closed=True)


def _breasts(rng: np.random.Generator) -> Curves:
    if rng.random() < 0.5:
        return []
    x, y = rng.uniform(0.24, 0.30), rng.uniform(0.58, 0.66)
    return both_sides([ellipse(x, y, rng.uniform(0.12, 0.15), rng.uniform(0.10, 0.15))])


def _stomach(rng: np.random.Generator, knots: np.ndarray) -> Curves:
    if rng.random() < 0.4:
        return []
    x, y = MIDDLE * 2 - knots[9, 0], knots[9, 1] + rng.uniform(0.05, 0.09)
    return [ellipse(float(x), float(y), rng.uniform(0.03, 0.08), rng.uniform(0.02, 0.045))]


def _vertebrae(rng: np.random.Generator) -> Curves:
    """Outlines of the vertebral bodies, top to bottom, on a slightly bent spine."""
    bend = rng.normal(0, 0.012)
    top = np.arange(0.0, 1.0, 0.051) + rng.uniform(0, 0.03)
    boxes = []
    for y in top.tolist():
        half = 0.026 + 0.014 * y
        x = MIDDLE + bend * np.sin(3 * y)
        boxes.append(
            np.array(
                [
                    (x - half, y),
                    (x + half, y),
                    (x + half * 0.9, y + 0.02),
                    (x + half, y + 0.042),
                    (x - half, y + 0.042),
                    (x - half * 0.9, y + 0.02),
                ]
            )
        )
    return boxes


def _ribs(rng: np.random.Generator, knots: np.ndarray) -> tuple[Curves, Curves]:
    """Centre lines of the right ribs: back (spine to wall) and front (wall to breastbone)."""
    wall = knots[2:8]
    pitch = rng.uniform(0.056, 0.064)
    steep = rng.uniform(0.7, 1.4)
    back, front = [], []
    for number in range(11):
        y = 0.115 + pitch * number + float(rng.normal(0, 0.003))
        drop = steep * (0.020 + 0.0085 * number)
        end_y = y + drop + 0.03
        end_x = float(np.interp(end_y, wall[:, 1], wall[:, 0])) - 0.008
        back.append(
            spline(
                np.array(
                    [
                        (MIDDLE - 0.035, y + 0.008),
                        (MIDDLE - 0.10, y - 0.012),
                        (0.5 * (MIDDLE - 0.1 + end_x), y + 0.003),
                        (end_x + 0.03, y + 0.3 * drop + 0.012),
                        (end_x, end_y),
                    ]
                ),
                closed=False,
            )
        )
        if 0 < number < 8:
            reach = min(MIDDLE - 0.13 - 0.012 * number, MIDDLE - 0.12)
            low = end_y + steep * (0.05 + 0.008 * number)
            front.append(
                spline(
                    np.array(
                        [
                            (end_x, end_y),
                            (end_x + 0.03, end_y + 0.6 * (low - end_y)),
                            (0.5 * (end_x + reach), low),
                            (reach, low - 0.004),
                        ]
                    ),
                    closed=False,
                )
            )
    return back, front


def _clavicles(rng: np.random.Generator) -> Curves:
    high = rng.normal(0, 0.018)
    knots = np.array([(0.468, 0.205), (0.40, 0.180), (0.30, 0.168), (0.19, 0.135), (0.09, 0.128)])
    right, left = (
        knots + rng.normal(0, 0.006, knots.shape),
        knots + rng.normal(0, 0.006, knots.shape),
    )
    shift = np.array([0.0, high])
    return [spline(right + shift, closed=False), mirrored(spline(left + shift, closed=False))]


def _shoulder_blades(rng: np.random.Generator) -> Curves:
    """Outlines. The inner edge often crosses the upper lung, as on bedside radiographs."""
    inner = rng.uniform(-0.05, 0.045)
    knots = np.array(
        [(0.235, 0.175), (0.215, 0.30), (0.165, 0.47), (0.125, 0.44), (0.085, 0.28), (0.07, 0.17)]
    )
    return both_sides([spline(knots + np.array([inner, 0.0]), closed=True)])


def random_crescent(
    rng: np.random.Generator, lung: Lung, *, kind: str, area: float
) -> tuple[np.ndarray, np.ndarray]:
    """A crescent of about `area`, a share of the radiograph -> closed outline, pleural line.

    The lung collapses towards its hilum: every outline point on the arc moves part of the way,
    most in the middle of the arc. The pleural line is the crescent's inner edge.
    """
    (low, high), (narrow, wide) = ARCS[kind]
    middle, half_width = rng.uniform(low, high), rng.uniform(narrow, wide)
    knot = np.arange(len(lung.outline)) / POINTS_PER_KNOT
    on_arc = (np.abs(knot - middle) < half_width) & (knot > 0.7) & (knot < 9.3)
    wall = lung.outline[on_arc]
    bump = np.cos(0.5 * np.pi * (knot[on_arc] - middle) / half_width) ** rng.uniform(0.7, 1.6)
    bump *= np.clip((knot[on_arc] - 0.7) / 0.5, 0, 1) * np.clip((9.3 - knot[on_arc]) / 0.7, 0, 1)
    bump *= 1 + 0.06 * np.sin(knot[on_arc] * rng.uniform(2, 5) + rng.uniform(0, 6))
    reach = (lung.hilum - wall) * bump[:, None]
    depth = _depth_for_area(wall, reach, area)
    line = wall + depth * reach
    return np.concatenate([wall, line[::-1]]), line


def _depth_for_area(wall: np.ndarray, reach: np.ndarray, area: float) -> float:
    """The share of the way to the hilum, at most 0.6, at which the crescent has this area."""
    shallow, deep = 0.0, 0.6
    for _ in range(20):
        depth = 0.5 * (shallow + deep)
        outline = np.concatenate([wall, (wall + depth * reach)[::-1]])
        x, y = outline.T
        enclosed = 0.5 * abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))))
        shallow, deep = (depth, deep) if enclosed < area else (shallow, depth)
    return depth
