"""Cached PNGs as tensors, augmented for training."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset

from pneumothorax import artifacts, augment, png
from pneumothorax.config import TrainConfig


class Sample(NamedTuple):
    """image and mask: (1, S, S) uint8, the mask of 0 and 1; position: in the data set's table."""

    image: torch.Tensor
    mask: torch.Tensor
    position: int


class RadiographDataset(Dataset[Sample]):
    """Images and masks of a table of manifest rows, at `image_size`, from the cache of `cache_size`.

    Items are asked for as (epoch, index) when training, so that each sample's augmentation follows from (seed,
    epoch, index) alone whatever the number of workers; with `config` None there is no augmentation.
    """

    def __init__(
        self, output: Path, rows: pd.DataFrame, *, cache_size: int, image_size: int, config: TrainConfig | None
    ) -> None:
        self.output = output
        self.image_ids = rows["image_id"].tolist()
        self.positive = rows["positive"].to_numpy() == 1
        self.cache_size = cache_size
        self.image_size = image_size
        self.seed = 0
        self.transforms = None
        if config is not None:
            self.seed = config.seed
            chances = (config.augment_negative, config.augment_positive)
            self.transforms = [augment.training(size=image_size, probability=chance) for chance in chances]

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, item: tuple[int, int]) -> Sample:
        epoch, index = item
        image, mask = self.read(index)
        if self.transforms is not None:
            seed = augment.sample_seed(self.seed, epoch, index)
            image, mask = augment.apply(self.transforms[int(self.positive[index])], image, mask, seed=seed)
        return Sample(_tensor(image), _tensor(mask), index)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image and mask (S, S) uint8, as cached."""
        image_id = self.image_ids[index]
        image = png.shrink(png.read(artifacts.cached_image(self.output, self.cache_size, image_id)), self.image_size)
        if not self.positive[index]:
            return image, np.zeros_like(image)
        mask = png.read(artifacts.cached_mask(self.output, self.cache_size, image_id)) > 0
        return image, png.shrink_mask(mask.astype(np.uint8), self.image_size)


class InOrder:
    """A batch sampler that goes once through `n` items, in order, as (epoch 0, index)."""

    def __init__(self, n: int, batch_size: int) -> None:
        self.n, self.batch_size = n, batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for start in range(0, self.n, self.batch_size):
            yield [(0, index) for index in range(start, min(start + self.batch_size, self.n))]

    def __len__(self) -> int:
        return (self.n + self.batch_size - 1) // self.batch_size


def start_worker(_: int) -> None:
    """One thread per DataLoader worker: OpenCV would start one per core in each."""
    cv2.setNumThreads(0)


def to_network(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """(N, 1, S, S) uint8 from the workers -> float32 in [0, 1] on the device: a quarter of the bytes travel."""
    return images.to(device, non_blocking=True).float().div_(255)


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).unsqueeze(0)
