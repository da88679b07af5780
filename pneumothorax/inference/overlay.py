"""A predicted mask drawn over its radiograph, which stays visible below."""

import cv2
import numpy as np

from pneumothorax.plotting import PREDICTION_RGB

COLOUR_BGR = PREDICTION_RGB[::-1]
OPACITY = 0.25  # of the fill: the texture of the radiograph must stay visible
OUTLINES_PER_WIDTH = 512  # an outline is a 512th of the image wide, to be visible at any size


def draw(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Radiograph (H, W) uint8 and mask (H, W) uint8 of 0 and 1 -> (H, W, 3) uint8, BGR.

    Outside mask and outline the pixels are those of the radiograph. The outline runs
    around the mask, not on its border, where the fine line of the pleura is.
    """
    drawn = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    if not mask.any():
        return drawn
    inside = mask.astype(bool)
    width = max(1, round(max(image.shape) / OUTLINES_PER_WIDTH))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
    outline = cv2.dilate(mask, disc).astype(bool) & ~inside
    colour = np.array(COLOUR_BGR, dtype=np.float32)
    drawn[inside] = np.rint((1 - OPACITY) * drawn[inside] + OPACITY * colour).astype(np.uint8)
    drawn[outline] = COLOUR_BGR
    return drawn
