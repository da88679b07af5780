"""A radiograph with a predicted mask drawn over it, for the eye: no text, and nothing of the radiograph is covered."""

import cv2
import numpy as np

COLOUR_BGR = (
    0,
    176,
    255,
)  # the report's colour of predictions: told apart with any colour vision, on grey
OPACITY = 0.25  # of the fill; the radiograph's own texture decides what is believed
OUTLINES_PER_WIDTH = 512  # an outline is a 512th of the image wide, so that it is seen at any size


def draw(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(H, W) uint8 radiograph, (H, W) uint8 mask of 0 and 1 -> (H, W, 3) uint8 in OpenCV's channel order.

    Outside mask and outline the pixels are the radiograph's. The outline runs around the mask, not on its border:
    the fine line of the pleura is there.
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
