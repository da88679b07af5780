"""A predicted mask drawn over its radiograph, which stays visible below."""

import cv2
import numpy as np

from pneumothorax.plotting import PREDICTION_RGB

COLOUR_BGR = PREDICTION_RGB[::-1]
OPACITY = 0.25  # of the fill: the texture of the radiograph must stay visible
FONT = cv2.FONT_HERSHEY_SIMPLEX
READABLE_PX = 240  # below this width text is hard to read
OUTLINES_PER_WIDTH = 512  # an outline is a 512th of the image wide, to be visible at any size
PHANTOMS = "TRAINED ON PHANTOMS"


def draw(image: np.ndarray, mask: np.ndarray, *, caution: str = "") -> np.ndarray:
    """Radiograph (H, W) uint8 and mask (H, W) uint8 of 0 and 1 -> (H, W, 3) uint8, BGR.

    Outside mask and outline the pixels are those of the radiograph. The outline runs
    around the mask, not on its border, where the fine line of the pleura is.

    Args:
        caution: one line of capital letters, written over the lower edge.
    """
    drawn = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    if mask.any():
        _draw_mask(drawn, mask)
    if caution:
        _write(drawn, caution)
    return drawn


def _draw_mask(drawn: np.ndarray, mask: np.ndarray) -> None:
    inside = mask.astype(bool)
    width = max(1, round(max(mask.shape) / OUTLINES_PER_WIDTH))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
    outline = cv2.dilate(mask, disc).astype(bool) & ~inside
    colour = np.array(COLOUR_BGR, dtype=np.float32)
    drawn[inside] = np.rint((1 - OPACITY) * drawn[inside] + OPACITY * colour).astype(np.uint8)
    drawn[outline] = COLOUR_BGR


def _write(drawn: np.ndarray, text: str) -> None:
    """White on black, half as wide as the image, or wider where that would be too small."""
    height, width = drawn.shape[:2]
    (length, ascent), _ = cv2.getTextSize(text, FONT, 1, 1)
    wanted = max(width / 2, min(0.9 * width, READABLE_PX))
    scale = min(wanted / length, height / 3 / ascent)
    thickness = max(1, round(1.5 * scale))
    (length, ascent), _ = cv2.getTextSize(text, FONT, scale, thickness)
    margin = max(1, ascent // 3)
    left, base = (width - length) // 2, height - margin
    drawn[base - ascent - margin :, max(0, left - margin) : left + length + margin] = 0
    cv2.putText(drawn, text, (left, base), FONT, scale, (255, 255, 255), thickness, cv2.LINE_AA)
