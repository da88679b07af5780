"""A fold's images, and the DataLoaders that bring them to the network."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from pneumothorax.augment import Augmentation
from pneumothorax.compute import distributed, loading
from pneumothorax.data.dataset import InOrder, Item, RadiographDataset, Sample, to_network
from pneumothorax.errors import BadInput
from pneumothorax.training.config import TrainConfig
from pneumothorax.training.optimization import Part
from pneumothorax.training.sampling import EpochBatches, SlidingSampling


@dataclass(frozen=True)
class FoldData:
    """The manifest rows to train on and to validate on, and the label rows by image id."""

    output: Path
    cache_size: int
    train: pd.DataFrame
    validation: pd.DataFrame
    labels: dict[str, tuple[str, ...]]
    inputs: dict[str, str]  # hashes of what the fold is made from
    fold: int


@dataclass(frozen=True)
class LoadedBatch:
    """One step's images and masks, loaded part by part."""

    parts: Iterator[Part]
    n_parts: int
    n_images: int


class Loaders:
    """A fold's training and validation images, loaded by new worker processes.

    Args:
        parts: of a batch, computed one after the other.
    """

    def __init__(
        self,
        data: FoldData,
        config: TrainConfig,
        sampling: SlidingSampling,
        *,
        parts: int,
        device: torch.device,
        workers: int,
    ) -> None:
        self.device = device
        rank, size = distributed.rank(), distributed.size()
        self.batches = EpochBatches(sampling, config.batch_size, parts=parts, rank=rank, size=size)
        in_order = InOrder(len(data.validation), self.batches.part_size, rank=rank, size=size)
        common: dict[str, Any] = {
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "timeout": loading.PATIENCE_S if workers else 0,
            "worker_init_fn": loading.start_training_worker,
            "pin_memory": device.type == "cuda",
            # For the workers' base seed: torch's global generator would change on a resume.
            "generator": torch.Generator().manual_seed(config.seed),
        }
        self.training: DataLoader[Sample] = DataLoader(
            _training_images(data, config), batch_sampler=self.batches, **common
        )
        self.validation: DataLoader[Sample] = DataLoader(
            _images(data, data.validation, config), batch_sampler=in_order, **common
        )

    def epoch(self, number: int, *, done: int) -> list[LoadedBatch]:
        """The batches of an epoch (from 0) after the first `done`, to be used in this order."""
        self.batches.set_epoch(number, done=done)
        loaded = iter(self.training)
        return [
            LoadedBatch(
                (self._part(part, loaded) for part in batch), len(batch), sum(map(len, batch))
            )
            for batch in self.batches.batches()
        ]

    def images(self, epoch: int) -> Iterator[torch.Tensor]:
        """The training images of an epoch (from 0), (N, 1, S, S) float32 in [0, 1]."""
        self.batches.set_epoch(epoch)
        for batch in self.training:
            yield to_network(batch.image, self.device)

    def close(self) -> None:
        """End the worker processes.

        Garbage collection would do it in any order. Queues that were never used (one
        epoch of fewer batches than workers) would then close a file number twice, which
        another file may have by then: "Bad file descriptor".
        """
        for loader in (self.training, self.validation):
            if loader._iterator is not None:
                loader._iterator._shutdown_workers()  # type: ignore[attr-defined]

    def _part(self, part: list[Item], loaded: Iterator[Sample]) -> Part:
        batch = next(loaded)
        counts = [self.batches.real(part, rank) for rank in range(self.batches.size)]
        masks = batch.mask.to(self.device, non_blocking=self.device.type == "cuda").float()
        return to_network(batch.image, self.device), masks, counts


def sliding_sampling(data: FoldData, config: TrainConfig) -> SlidingSampling:
    """The sampling of a fold's training images. Raises BadInput if they are too few."""
    positive = data.train["positive"].to_numpy() == 1
    if not positive.any() or len(positive) < 2:
        raise BadInput(
            f"fold {data.fold}: {len(positive)} training images, {positive.sum()} positive: too few"
        )
    return SlidingSampling(
        np.flatnonzero(positive).tolist(),
        np.flatnonzero(~positive).tolist(),
        config.sampling,
        epochs=config.epochs,
        seed=config.seed,
        positive_repeat=config.positive_repeat,
    )


def _training_images(data: FoldData, config: TrainConfig) -> RadiographDataset:
    augmentation = Augmentation(
        size=config.image_size,
        negative=config.augment_negative,
        positive=config.augment_positive,
        shift_scale_rotate=config.shift_scale_rotate,
        strong=config.strong_augmentation,
        seed=config.seed,
    )
    return _images(data, data.train, config, augmentation)


def _images(
    data: FoldData,
    rows: pd.DataFrame,
    config: TrainConfig,
    augmentation: Augmentation | None = None,
) -> RadiographDataset:
    return RadiographDataset(
        data.output,
        rows,
        cache_size=data.cache_size,
        image_size=config.image_size,
        augmentation=augmentation,
    )
