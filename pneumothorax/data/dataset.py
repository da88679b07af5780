"""Cached PNGs as tensors, augmented for training."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset

from pneumothorax import png
from pneumothorax.augment import Augmentation
from pneumothorax.pipeline import artifacts


class Item(NamedTuple):
    """One image, by its position in the data set, in one epoch.

    `copy` counts the repeats of a positive.
    """

    epoch: int
    position: int
    copy: int = 0


class Sample(NamedTuple):
    """image, mask (of 0 and 1): (1, S, S) uint8; position: the image's row."""

    image: torch.Tensor
    mask: torch.Tensor
    position: int


class RadiographDataset(Dataset[Sample]):
    """Images and masks of manifest rows, from the cache, resized to `image_size`.

    Args:
        rows: manifest rows: image_id and positive.
        cache_size: height and width of the cached images, at least `image_size`.
        augmentation: applied to every sample. A sample depends only on its Item, so the
            number of loader workers changes nothing.
    """

    def __init__(
        self,
        output: Path,
        rows: pd.DataFrame,
        *,
        cache_size: int,
        image_size: int,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.output = output
        self.image_ids = rows["image_id"].tolist()
        self.positive = rows["positive"].to_numpy() == 1
        self.cache_size = cache_size
        self.image_size = image_size
        self.augmentation = augmentation

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, item: Item) -> Sample:
        image, mask = self.read(item.position)
        if self.augmentation is not None:
            is_positive = bool(self.positive[item.position])
            image, mask = self.augmentation(image, mask, is_positive=is_positive, item=item)
        return Sample(_tensor(image), _tensor(mask), item.position)

    def read(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        """Image and mask (of 0 and 1), not augmented: (S, S) uint8, S = image_size."""
        image_id, cache = self.image_ids[position], artifacts.Cache(self.cache_size)
        image = png.downsample(png.read(self.output / cache.image(image_id)), self.image_size)
        if not self.positive[position]:
            return image, np.zeros_like(image)
        mask = png.read(self.output / cache.mask(image_id)) > 0
        return image, png.downsample_mask(mask.astype(np.uint8), self.image_size)


class InOrder:
    """A batch sampler: `n` items once, in order.

    Several processes take batches in turn.

    Args:
        needed: positions; batches without any of them are left out. The others are the
            same as without `needed`, and so are the rounding errors of what is computed
            from them.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        *,
        needed: frozenset[int] | None = None,
        rank: int = 0,
        size: int = 1,
    ) -> None:
        batches = [range(start, min(start + batch_size, n)) for start in range(0, n, batch_size)]
        if needed is not None:
            batches = [batch for batch in batches if not needed.isdisjoint(batch)]
        self.batches = batches[rank::size]

    def __iter__(self) -> Iterator[list[Item]]:
        for batch in self.batches:
            yield [Item(0, index) for index in batch]

    def __len__(self) -> int:
        return len(self.batches)


def to_network(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """(N, 1, S, S) uint8 -> float32 in [0, 1], converted on the device.

    On MPS a copy that nobody waits for may read memory already freed (pytorch#189690).
    """
    return images.to(device, non_blocking=device.type == "cuda").float().div_(255)


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).unsqueeze(0)
