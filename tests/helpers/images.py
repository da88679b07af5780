"""Synthetic images and masks, and their run lengths by a plain loop."""

import cv2
import numpy as np


def noise(seed, size=128, *, low=40, high=200):
    """(size, size) uint8: smooth noise, so that JPEG keeps most of it."""
    raw = np.random.default_rng(seed).integers(low, high, (size, size), dtype=np.uint8)
    return cv2.GaussianBlur(raw, (0, 0), 1.5)


def disc(size, row, column, radius):
    """(size, size) uint8 mask of 0 and 1."""
    rows, columns = np.ogrid[:size, :size]
    return ((rows - row) ** 2 + (columns - column) ** 2 <= radius**2).astype(np.uint8)


def plain_encode(mask):
    """Run lengths, one pixel at a time, as the competition describes them."""
    numbers, run, gap = [], 0, 0
    for column in range(mask.shape[1]):
        for row in range(mask.shape[0]):
            if mask[row, column]:
                run += 1
                continue
            if run:
                numbers += [gap, run]
                gap = run = 0
            gap += 1
    if run:
        numbers += [gap, run]
    return " ".join(map(str, numbers)) or "-1"
