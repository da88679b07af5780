"""The paper's training augmentations (section 3.1.2), through albumentations.

Horizontal flip; contrast, gamma or brightness; elastic, grid or optical distortion. Three traps of albumentations
2.0.8 are stepped around here: its random stream is the same in every worker and epoch unless the transform is seeded
before each sample, its `set_random_seed` lets all steps draw the same numbers (`apply` avoids both), and the defaults
of ElasticTransform and OpticalDistortion move nothing.
"""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import albumentations as A


def training(*, size: int = 512, probability: float = 0.5) -> A.Compose:
    """A transform of (size, size) uint8 images and uint8 masks of 0 and 1.

    Args:
        size: the images' height and width; distortions scale with it.
        probability: of one intensity change, and of one distortion; a flip always has 0.5.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for updates when imported
    import albumentations as A

    scale = size / 512
    sigma = max(1.0, 6 * scale)
    intensity = [
        A.RandomBrightnessContrast(brightness_limit=0.0, contrast_limit=0.25, p=1.0),
        A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.0, p=1.0),
        A.RandomGamma(gamma_limit=(70, 140), p=1.0),
    ]
    distortion = [
        # Pixels move by about 0.16 * alpha / sigma: 3.3 at 512 (alpha 120, sigma 6), in proportion at other sizes.
        A.ElasticTransform(alpha=20 * scale * sigma, sigma=sigma, p=1.0),
        A.GridDistortion(num_steps=5, distort_limit=0.3, p=1.0),
        A.OpticalDistortion(distort_limit=0.5, p=1.0),
    ]
    steps = [A.HorizontalFlip(p=0.5), A.OneOf(intensity, p=probability), A.OneOf(distortion, p=probability)]
    return A.Compose(steps, strict=True)


def apply(transform: A.Compose, image: np.ndarray, mask: np.ndarray, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """One sample; the same seed gives the same result in any process."""
    # One generator handed to all steps, which draw from it in turn. `set_random_seed` gives each step a generator of
    # its own with the same seed: an image is then flipped exactly when it is distorted, and contrast only lowered.
    transform.set_random_state(np.random.default_rng(seed), random.Random(seed))  # noqa: S311 (no secret)
    changed = transform(image=image, mask=mask)
    return changed["image"], changed["mask"]


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """A 32-bit seed for one sample of one epoch, the same on every machine."""
    return int(np.random.SeedSequence([seed, epoch, index]).generate_state(1)[0])
