"""Probability maps as stage 03 stores them, with truths that they resemble."""

import cv2
import numpy as np

from pneumothorax import png, rle
from pneumothorax.masks.predicted import Image, Predicted, StoredMap
from pneumothorax.pipeline import records
from tests.helpers.images import disc


def store(folder, name, values):
    """A probability map as stage 03 stores it; `values` are (h, w) from 0 to 255."""
    path = folder / f"{name}.png"
    path.write_bytes(png.encode_small(values.astype(np.uint8)))
    return StoredMap(path, records.sha256(path))


def stored_images(folder, n_images, seed):
    """Every second image has a disc, which the first run's map shows and the second's shifts."""
    rng = np.random.default_rng(seed)
    images, scores = [], []
    for number in range(n_images):
        truth = (
            disc(64, *rng.integers(20, 44, 2), 8) if number % 2 else np.zeros((64, 64), np.uint8)
        )
        stored = []
        for run in range(2):
            seen = np.roll(truth, 4 * run, axis=1) * rng.uniform(0.4, 1.0) + 0.3 * rng.random()
            blurred = cv2.GaussianBlur(seen.astype(np.float32), (0, 0), 2)
            stored.append(store(folder, f"{number}-{run}", np.clip(blurred * 255, 0, 255)))
        rows = (rle.encode(truth),) if truth.any() else ()
        images.append(Image(str(number), tuple(stored), (64, 64), rows))
        scores.append([float(png.read(one.path).max()) / 255 for one in stored])
    return Predicted(images, np.arange(n_images) % 3, np.array(scores))
