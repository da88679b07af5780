"""Stage 02: cached image to network input on one core, at 512.

Goal: at least 3 times the plain albumentations chain.

ours    8-bit grey images through the training augmentation; the device converts them to floats
plain   the same augmentations on three-channel images; the worker normalises and converts them

    python -m benchmarks.input_pipeline
"""

import os
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks import timing
from pneumothorax import augment, dicom, png


def main() -> None:
    args = timing.parser(__doc__).parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    timing.machine("albumentations", "opencv-python-headless", "torch")
    with timing.material(args) as (paths, _), tempfile.TemporaryDirectory() as temporary:
        images = [png.downsample(dicom.read(path).image, 512) for path in paths]
        for number, image in enumerate(images):
            Path(temporary, f"{number}.png").write_bytes(png.encode(image))
            cv2.imwrite(
                f"{temporary}/{number}.default.png", cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
            )
        ours, plain = augment.training(size=512, probability=0.5), plain_chain()
        mask = np.zeros((512, 512), dtype=np.uint8)
        cv2.circle(mask, (256, 256), 80, 1, -1)
        numbers = range(len(images))
        ways = {
            "ours": lambda: [
                load_ours(Path(temporary, f"{n}.png"), ours, mask, n) for n in numbers
            ],
            "plain": lambda: [
                load_plain(f"{temporary}/{n}.default.png", plain, mask, n) for n in numbers
            ],
        }
        medians = timing.compare(ways, repeats=args.repeats, per=len(images), unit="image")
    timing.ratio(medians, "plain", "ours", "at least 3")


def load_ours(
    path: Path, transform, mask: np.ndarray, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    image, changed = augment.apply(transform, png.read(path), mask, seed=seed)
    return torch.from_numpy(image).unsqueeze(0), torch.from_numpy(changed).unsqueeze(0)


def plain_chain():
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations as A
    from albumentations.pytorch import ToTensorV2

    steps = augment.training(size=512, probability=0.5).transforms
    return A.Compose([*steps, A.Normalize(), ToTensorV2()])


def load_plain(
    path: str, transform, mask: np.ndarray, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    image = cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB)
    return augment.apply(transform, image, mask, seed=seed)  # the same random numbers as ours


if __name__ == "__main__":
    main()
