"""segmentation_models_pytorch as its own introduction to binary segmentation uses it.

Its examples/binary_segmentation_intro.ipynb: an ImageNet encoder, 256 x 256 pixels, batches of
16 in random order, no augmentation, its Dice loss alone, Adam at 2e-4 with a cosine per step
down to 1e-5, the weights after the last epoch, masks at a probability of 0.5. The encoder is
that of our small network, so that the recipes are compared and not the encoders.
"""

import math
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

import models
from benchmarks.peers.budget import epochs_within
from benchmarks.peers.peer_run import Radiographs, Trained
from pneumothorax.compute import checkpoint, devices, runtime

ARCHITECTURE, ENCODER = "smp/Unet", "timm-tf_efficientnet_lite0"
BATCH_SIZE = 16
LEARNING_RATE, LOWEST_RATE = 2e-4, 1e-5


class SmpExample:
    """Args: encoder_weights: as models.build takes them."""

    def __init__(self, radiographs: Radiographs, *, encoder_weights: str, seed: int) -> None:
        self.radiographs, self.seed = radiographs, seed
        self.model_settings = {"encoder": ENCODER, "encoder_weights": encoder_weights}

    def facts(self) -> dict[str, Any]:
        packages = ("segmentation_models_pytorch", "timm", "torch")
        return {**self.model_settings, "versions": {name: version(name) for name in packages}}

    def train(self, fold: int, *, seconds: float, weights: Path) -> Trained:
        runtime.seed_everything(self.seed)
        network: torch.nn.Module = models.build(ARCHITECTURE, **self.model_settings)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        held_out = self.radiographs.rows["fold"] == fold
        rows = self.radiographs.rows[~held_out]
        _, images, masks = zip(*self.radiographs.read(rows), strict=True)
        data = TensorDataset(tensor(images), tensor(masks))
        generator = torch.Generator().manual_seed(self.seed)
        loader = DataLoader(data, batch_size=BATCH_SIZE, shuffle=True, generator=generator)
        history = fit(network, loader, seconds=seconds)
        config = {
            "model": ARCHITECTURE,
            "model_settings": self.model_settings,
            "image_size": self.radiographs.size,
        }
        checkpoint.save(weights, {"network": network.state_dict(), "config": config})
        device = torch.device("cpu")
        facts = {
            "device": devices.device_name(device),
            "peak_memory_mib": runtime.peak_memory_mib(device),
        }
        return Trained(history, self.maps(network, fold), facts)

    @torch.inference_mode()
    def maps(self, network: torch.nn.Module, fold: int) -> Iterator[tuple[str, np.ndarray]]:
        network.eval()
        for image_id, image, _ in self.radiographs.read(
            self.radiographs.rows[self.radiographs.rows["fold"] == fold]
        ):
            yield image_id, network(tensor([image]).float() / 255).sigmoid()[0, 0].numpy()


def fit(network: torch.nn.Module, loader: DataLoader, *, seconds: float) -> list[dict[str, Any]]:
    """Train in place -> a row of artifacts.HISTORY_COLUMNS per epoch."""
    from segmentation_models_pytorch.losses import DiceLoss

    criterion = DiceLoss("binary", from_logits=True)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    history: list[dict[str, Any]] = []
    epochs, elapsed, started = math.inf, 0.0, time.monotonic()
    network.train()
    while len(history) < epochs:
        losses, positives, images = [], 0, 0
        for step, (batch, masks) in enumerate(loader):
            rate = cosine((len(history) + step / len(loader)) / epochs)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            loss = criterion(network(batch.float() / 255), masks)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            positives += int(masks.flatten(1).any(dim=1).sum())
            images += len(batch)
        before, elapsed = elapsed, time.monotonic() - started
        row = {
            "epoch": len(history) + 1,
            "learning_rate": rate,
            "positives": positives,
            "negatives": images - positives,
            "train_loss": float(np.mean(losses)),
            "seconds": elapsed - before,
            "images_per_second": images / (elapsed - before),
        }
        history.append(row)
        epochs = epochs_within(seconds, done=len(history), elapsed=elapsed)
    return history


def cosine(done: float) -> float:
    """The learning rate when this share of the training, in [0, 1], is done."""
    return LOWEST_RATE + (LEARNING_RATE - LOWEST_RATE) * (1 + math.cos(math.pi * done)) / 2


def tensor(images: Any) -> torch.Tensor:
    """N arrays (S, S) uint8 -> (N, 1, S, S) uint8."""
    return torch.from_numpy(np.stack(images)).unsqueeze(1)
