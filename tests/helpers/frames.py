"""Per-image tables to compute scores from."""

import numpy as np
import pandas as pd

from pneumothorax import metrics
from pneumothorax.pipeline import artifacts


def frame(true_px, predicted_px, overlap_px, **columns):
    """Rows of artifacts.PER_IMAGE from pixel counts; `columns` replace or add values."""
    true_px, predicted_px, overlap_px = (
        np.asarray(column) for column in (true_px, predicted_px, overlap_px)
    )
    ids = [f"image{number:05}" for number in range(len(true_px))]
    rows = {
        "run": "run",
        "image_id": ids,
        "patient_id": ids,
        "fold": 0,
        "view": "PA",
        "sex": "F",
        "height": 100,
        "width": 100,
        "positive": (true_px > 0).astype(int),
        "p_positive": (predicted_px > 0).astype(float),
        "true_px": true_px,
        "predicted_px": predicted_px,
        "overlap_px": overlap_px,
        **metrics.image_scores(true_px, predicted_px, overlap_px),
    }
    return pd.DataFrame({**rows, **columns})[list(artifacts.PER_IMAGE.columns)]


def random_frame(rng, *, patients, images=(1, 2, 3, 4), **columns):
    """Images of patients; each patient's truths and results resemble each other.

    The number of a patient's images is drawn from `images`. A sick patient (3 in 10) has
    masks of 100 pixels; 100 pixels are predicted, and a share u of them is right. A healthy
    patient has false alarms in a share f of the images. u is uniform over patients and f is
    beta(1, 4), so the expected SIIM Dice is 0.3 * 1/2 + 0.7 * 4/5 = 0.71.
    """
    patient = np.repeat(np.arange(patients), rng.choice(images, size=patients))
    sick = (rng.random(patients) < 0.3)[patient]
    found = rng.binomial(100, rng.random(patients)[patient])
    alarm = rng.random(len(patient)) < rng.beta(1, 4, size=patients)[patient]
    predicted = np.where(sick, 100, 100 * alarm)
    p = np.clip(rng.normal(0.3 + 0.3 * sick, 0.2), 0, 1).round(2)  # rounded to get ties
    known = {
        "patient_id": [f"patient{number}" for number in patient],
        "p_positive": p,
        "fold": patient % 5,
    }
    return frame(100 * sick, predicted, np.where(sick, found, 0), **{**known, **columns})
