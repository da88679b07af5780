"""Drawing of curves, filled or stroked, on square grey canvases of any size."""

import cv2
import numpy as np

from pneumothorax.phantom.anatomy import Curves

SHIFT = 6  # fractional bits of the coordinates passed to OpenCV


def filled(size: int, outlines: Curves, blur: float) -> np.ndarray:
    """(size, size) float32 in 0..1: 1 inside any of the outlines; `blur` in radiograph widths."""
    canvas = np.zeros((size, size), dtype=np.uint8)
    for outline in outlines:
        cv2.fillPoly(canvas, [fixed_point(outline, size)], 255, cv2.LINE_AA, SHIFT)
    return softened(canvas, blur)


def stroked(size: int, lines: Curves, width: float, *, blur: float) -> np.ndarray:
    """(size, size) float32 in 0..1: centre lines drawn `width` radiograph widths wide."""
    canvas = np.zeros((size, size), dtype=np.uint8)
    stroke(canvas, lines, width, 255)
    return softened(canvas, blur)


def stroke(canvas: np.ndarray, lines: Curves, width: float, value: int) -> None:
    size = canvas.shape[0]
    points = [fixed_point(line, size) for line in lines]
    cv2.polylines(canvas, points, False, value, max(1, round(width * size)), cv2.LINE_AA, SHIFT)


def softened(canvas: np.ndarray, blur: float) -> np.ndarray:
    """uint8 0..255 -> float32 0..1, blurred by `blur` radiograph widths.

    For speed, a wide blur works on a downsampled canvas.
    """
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


def fixed_point(curve: np.ndarray, size: int) -> np.ndarray:
    """Radiograph coordinates -> OpenCV's fixed point, where pixel centres are integers."""
    return np.round((curve * size - 0.5) * (1 << SHIFT)).astype(np.int32)
