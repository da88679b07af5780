"""The training augmentations, through albumentations.

The paper's (section 3.1.2): horizontal flip; contrast, gamma or brightness; elastic, grid
or optical distortion. Ours: shift, scale and rotation, and a stronger set for a few hundred
images. What moves in from outside the image is its reflection, not black.

Four traps of albumentations 2.0.8 are avoided here. Its random stream is the same in every
worker and epoch unless the transform is seeded before each sample, and with
`set_random_seed` all steps draw the same numbers (`apply` avoids both). The defaults of
ElasticTransform and OpticalDistortion barely move a pixel. Borders are black by default,
and a black wedge shows a network which images were distorted.
"""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    import albumentations as A


def training(
    *,
    size: int = 512,
    probability: float = 0.5,
    shift_scale_rotate: float = 0.5,
    strong: bool = False,
) -> A.Compose:
    """A transform for (size, size) uint8 images with uint8 masks of 0 and 1.

    Args:
        size: the images' height and width; distortions scale with it.
        probability: of each other kind of `alternatives`.
        shift_scale_rotate: probability of shift, scale and rotation together.
        strong: as in `alternatives`.
    """
    import_quietly()
    import albumentations as A

    kinds = alternatives(size=size, strong=strong)
    flip = kinds.pop("flip")
    chances = dict.fromkeys(kinds, probability) | {"position": shift_scale_rotate}
    choices = [A.OneOf(list(kinds[kind].values()), p=chance) for kind, chance in chances.items()]
    return A.Compose([*flip.values(), *choices], strict=True)


def alternatives(*, size: int, strong: bool = False) -> dict[str, dict[str, A.BasicTransform]]:
    """{kind: {name: transform}} for (size, size) images; `training` takes one per kind at most.

    Args:
        strong: wider changes of position and intensity, gamma on its own, and two more kinds:
            quality (noise, blur, sharpness, local contrast) and hiding (rectangles of one grey
            each; the mask stays).
    """
    import_quietly()
    import albumentations as A

    scale = size / 512
    sigma = max(1.0, 6 * scale)
    # Pixels move by about 0.16 * alpha / sigma: 3.3 at size 512 (alpha 120, sigma 6), and in
    # proportion at other sizes.
    elastic: dict[str, Any] = {"alpha": 20 * scale * sigma, "sigma": sigma}
    position: dict[str, Any] = {"translate_percent": (-0.06, 0.06), "rotate": (-10, 10)}
    position |= {"scale": (0.9, 1.1), "keep_ratio": True}
    if strong:
        position |= {"translate_percent": (-0.1, 0.1), "rotate": (-20, 20)}
        position |= {"scale": (0.8, 1.25), "shear": (-5, 5)}
    always: dict[str, Any] = {"border_mode": cv2.BORDER_REFLECT_101, "p": 1.0}
    return {
        "flip": {"horizontal flip": A.HorizontalFlip(p=0.5)},
        "position": {"shift, scale, rotation": A.Affine(**position, **always)},
        **(_strong_intensity() if strong else _intensity()),
        "distortion": {
            "elastic distortion": A.ElasticTransform(**elastic, **always),
            "grid distortion": A.GridDistortion(num_steps=5, distort_limit=0.3, **always),
            "optical distortion": A.OpticalDistortion(distort_limit=0.5, **always),
        },
    }


def _intensity() -> dict[str, dict[str, A.BasicTransform]]:
    import albumentations as A

    def change(brightness: float, contrast: float) -> A.BasicTransform:
        return A.RandomBrightnessContrast(
            brightness_limit=brightness, contrast_limit=contrast, p=1.0
        )

    return {
        "intensity": {
            "contrast": change(0.0, 0.25),
            "brightness": change(0.2, 0.0),
            "gamma": A.RandomGamma(gamma_limit=(70, 140), p=1.0),
        }
    }


def _strong_intensity() -> dict[str, dict[str, A.BasicTransform]]:
    import albumentations as A

    side = (0.05, 0.2)  # of the image's
    return {
        "brightness": {
            "brightness and contrast": A.RandomBrightnessContrast(
                brightness_limit=0.3, contrast_limit=0.4, p=1.0
            )
        },
        "gamma": {"gamma": A.RandomGamma(gamma_limit=(60, 160), p=1.0)},
        "quality": {
            "noise": A.GaussNoise(std_range=(0.02, 0.08), p=1.0),
            "blur": A.GaussianBlur(sigma_limit=(0.3, 1.2), p=1.0),
            "sharpness": A.Sharpen(p=1.0),
            "local contrast": A.CLAHE(p=1.0),
        },
        "hiding": {
            "hidden rectangles": A.CoarseDropout(
                num_holes_range=(1, 6),
                hole_height_range=side,
                hole_width_range=side,
                fill="random_uniform",
                p=1.0,
            )
        },
    }


def each_alone(
    image: np.ndarray, mask: np.ndarray, *, draws: int = 16, seed: int = 0
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{name: (image, mask)}: each transform of `training` alone, the strongest of `draws` draws.

    Args:
        image, mask: (S, S) uint8, the mask of 0 and 1.
    """
    import_quietly()
    import albumentations as A

    shown = {}
    for transforms in alternatives(size=len(image)).values():
        for name, transform in transforms.items():
            always = A.OneOf([transform], p=1.0)  # overrides the transform's probability
            alone = A.Compose([always], strict=True)
            results = [apply(alone, image, mask, seed=seed + draw) for draw in range(draws)]
            changes = [np.abs(changed.astype(np.int16) - image).mean() for changed, _ in results]
            shown[name] = results[int(np.argmax(changes))]
    return shown


def import_quietly() -> None:
    """Keep albumentations from looking for updates online when it is imported."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")


class Augmentation:
    """`training` for a data set: the same seed and item give the same result in any process.

    Args:
        size: the images' height and width.
        negative, positive: `probability` for images without and with a pneumothorax. If they
            differ, a network can learn that what is distorted is positive.
        shift_scale_rotate, strong: as in `training`, for all images.
    """

    def __init__(
        self,
        *,
        size: int,
        negative: float,
        positive: float,
        shift_scale_rotate: float,
        seed: int,
        strong: bool = False,
    ) -> None:
        self.seed = seed
        always: dict[str, Any] = {"shift_scale_rotate": shift_scale_rotate, "strong": strong}
        self.negative, self.positive = (
            training(size=size, probability=probability, **always)
            for probability in (negative, positive)
        )

    def __call__(
        self, image: np.ndarray, mask: np.ndarray, *, is_positive: bool, item: tuple[int, int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """(size, size) uint8 image and mask of 0 and 1 -> both augmented.

        Args:
            item: epoch, position in the data set, copy.
        """
        transform = self.positive if is_positive else self.negative
        return apply(transform, image, mask, seed=sample_seed(self.seed, *item))


def apply(
    transform: A.Compose, image: np.ndarray, mask: np.ndarray, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Transform one sample; the same seed gives the same result in any process."""
    # All steps draw from one generator in turn. `set_random_seed` would give each step its own
    # generator with the same seed: an image would be flipped exactly when it is distorted, and
    # contrast only ever lowered.
    transform.set_random_state(np.random.default_rng(seed), random.Random(seed))  # noqa: S311 (no secret)
    changed = transform(image=image, mask=mask)
    return changed["image"], changed["mask"]


def sample_seed(seed: int, epoch: int, index: int, copy: int = 0) -> int:
    """A 32-bit seed for one sample of one epoch, the same on every machine."""
    return int(np.random.SeedSequence([seed, epoch, index, copy]).generate_state(1)[0])
