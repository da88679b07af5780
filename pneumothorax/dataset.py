"""Cached PNGs as tensors, augmented for training."""

import multiprocessing
import signal
from collections.abc import Collection, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset

from pneumothorax import artifacts, augment, png
from pneumothorax.config import TrainConfig
from pneumothorax.sampling import Item

GRACE_S = 60


class Sample(NamedTuple):
    """image and mask: (1, S, S) uint8, the mask of 0 and 1; position: in the data set's table."""

    image: torch.Tensor
    mask: torch.Tensor
    position: int


class RadiographDataset(Dataset[Sample]):
    """Images and masks of a table of manifest rows, at `image_size`, from the cache of `cache_size`.

    Each sample's augmentation follows from the seed and its Item alone, whatever the number of workers; with `config`
    None there is no augmentation.
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

    def __getitem__(self, item: Item) -> Sample:
        epoch, position, copy = item
        image, mask = self.read(position)
        if self.transforms is not None:
            seed = augment.sample_seed(self.seed, epoch, position, copy)
            image, mask = augment.apply(self.transforms[int(self.positive[position])], image, mask, seed=seed)
        return Sample(_tensor(image), _tensor(mask), position)

    def read(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        """Image and mask (S, S) uint8, as cached."""
        image_id = self.image_ids[position]
        image = png.shrink(png.read(artifacts.cached_image(self.output, self.cache_size, image_id)), self.image_size)
        if not self.positive[position]:
            return image, np.zeros_like(image)
        mask = png.read(artifacts.cached_mask(self.output, self.cache_size, image_id)) > 0
        return image, png.shrink_mask(mask.astype(np.uint8), self.image_size)


class InOrder:
    """A batch sampler that goes once, in order, through `n` items; of several processes each takes batches in turn."""

    def __init__(self, n: int, batch_size: int, *, rank: int = 0, size: int = 1) -> None:
        starts = range(0, n, batch_size)
        self.batches = [range(start, min(start + batch_size, n)) for start in starts][rank::size]

    def __iter__(self) -> Iterator[list[Item]]:
        for batch in self.batches:
            yield [Item(0, index) for index in batch]

    def __len__(self) -> int:
        return len(self.batches)


def start_worker(_: int) -> None:
    """One thread per DataLoader worker: OpenCV would start one per core in each. Ctrl-C is for the main process."""
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def start_training_worker(number: int) -> None:
    """A worker that lives on for a while after SIGTERM, which a cluster sends to all processes at once.

    The main process ends its step first, and needs the images of it.
    """
    start_worker(number)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_S))  # the alarm is the end


def end_workers(*, others: Collection[BaseProcess]) -> None:
    """Kill the child processes but `others`: one that hangs or outlasts SIGTERM would be waited for at the end."""
    told = getattr(signal, "SIGCHLD", None)  # not on Windows; PyTorch would take it for another worker's death
    handler = None if told is None else signal.signal(told, signal.SIG_DFL)
    for child in multiprocessing.active_children():
        if child not in others:
            child.kill()
            child.join()
    if told is not None:
        signal.signal(told, handler)


def to_network(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """(N, 1, S, S) uint8 from the workers -> float32 in [0, 1] on the device: a quarter of the bytes travel."""
    return images.to(device, non_blocking=True).float().div_(255)


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).unsqueeze(0)
