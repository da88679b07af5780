"""Train one network on all folds but one, and score it on that one after every epoch."""

import csv
import io
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from pneumothorax import artifacts, atomic, checkpoint, metrics, postprocess, rle
from pneumothorax import config as configuration
from pneumothorax.config import TrainConfig
from pneumothorax.dataset import InOrder, RadiographDataset, start_worker, to_network
from pneumothorax.errors import BadInput
from pneumothorax.losses import CRITERIA, Criterion
from pneumothorax.sampling import EpochBatches, SlidingSampling

LAST, BEST, HISTORY = "last.pt", "best.pt", "history.csv"
MAX_BAD_STEPS = 10  # not-finite losses in a row


class Trainable(Protocol):
    """What training asks of a network (models.network.SegmentationNetwork)."""

    def __call__(self, images: torch.Tensor) -> torch.Tensor: ...

    def training_loss(
        self, images: torch.Tensor, masks: torch.Tensor, criterion: Criterion
    ) -> dict[str, torch.Tensor]: ...


@dataclass(frozen=True)
class FoldData:
    """One fold's images: manifest rows to train on and to validate on, and the label rows by image id."""

    output: Path
    cache_size: int
    train: pd.DataFrame
    validation: pd.DataFrame
    labels: dict[str, list[str]]
    folds_hash: str
    fold: int


class Training:
    """The state of one fold's training; `run` takes it from wherever it is to the last epoch."""

    def __init__(
        self, network: Any, data: FoldData, config: TrainConfig, *, folder: Path, device: torch.device, workers: int
    ) -> None:
        self.network = network.to(device)
        self.data, self.config, self.folder, self.device, self.workers = data, config, folder, device, workers
        self.criterion = CRITERIA[config.loss]
        self.optimizer = torch.optim.Adam(
            network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimizer, T_max=config.epochs, eta_min=config.final_learning_rate
        )
        positive = data.train["positive"].to_numpy() == 1
        if not positive.any():
            raise BadInput(f"fold {data.fold}: no positive image to train on")
        self.sampling = SlidingSampling(
            np.flatnonzero(positive).tolist(),
            np.flatnonzero(~positive).tolist(),
            config.sampling,
            epochs=config.epochs,
            seed=config.seed,
        )
        self.epoch = 0  # finished ones
        self.best_score = -math.inf
        self.history: list[dict[str, Any]] = []

    def run(self) -> None:
        """Train the epochs that are left, saving everything after each."""
        train_loader, validation_loader = self._loaders()
        while self.epoch < self.config.epochs:
            row = self._epoch(train_loader, validation_loader)
            self.history.append(row)
            self.epoch += 1
            self._save(row["siim_dice"])
            tqdm.write(self._line(row))

    def resume(self) -> None:
        """Go on from `last.pt` where there is one. Raises BadInput when it belongs to another experiment."""
        path = self.folder / LAST
        if not path.exists():
            return
        state = checkpoint.load(path)
        self._check_same(state, path)
        checkpoint.load_weights(self.network, state["network"], path)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        torch.set_rng_state(state["torch_rng"])
        self.epoch, self.best_score, self.history = state["epoch"], state["best_score"], state["history"]
        self._write_history()

    def _epoch(self, train_loader: DataLoader, validation_loader: DataLoader) -> dict[str, Any]:
        batches = train_loader.batch_sampler
        assert isinstance(batches, EpochBatches)
        batches.epoch = self.epoch
        started = time.perf_counter()
        learning_rate = self.scheduler.get_last_lr()[0]
        loss, n_images = self._train(train_loader)
        seconds_training = time.perf_counter() - started
        self.scheduler.step()
        scores = self._validate(validation_loader)
        return {
            "epoch": self.epoch + 1,
            "learning_rate": learning_rate,
            "positives_per_negative": self.sampling.ratio(self.epoch),
            "positives": len(self.sampling.positives),
            "negatives": self.sampling.n_negatives(self.epoch),
            "train_loss": loss,
            **scores,
            "seconds": time.perf_counter() - started,
            "images_per_second": n_images / seconds_training,
        }

    def _train(self, loader: DataLoader) -> tuple[float, int]:
        """One pass -> (mean loss of the steps taken, images seen)."""
        self.network.train()
        losses: list[float] = []
        n_images = bad_in_a_row = 0
        for batch in tqdm(loader, desc=f"fold {self.data.fold} epoch {self.epoch + 1}", unit="batch", leave=False):
            images, masks = to_network(batch.image, self.device), batch.mask.to(self.device).float()
            loss = self.network.training_loss(images, masks, self.criterion)["loss"]
            value = float(loss.detach())
            self.optimizer.zero_grad(set_to_none=True)
            bad_in_a_row = 0 if math.isfinite(value) else bad_in_a_row + 1
            if bad_in_a_row:
                tqdm.write(f"fold {self.data.fold} epoch {self.epoch + 1}: the loss is {value}, step skipped")
                if bad_in_a_row == MAX_BAD_STEPS:
                    raise BadInput(f"{MAX_BAD_STEPS} losses in a row are not finite: lower learning_rate")
                continue
            loss.backward()
            self.optimizer.step()
            losses.append(value)
            n_images += len(images)
        return float(np.mean(losses)) if losses else math.nan, n_images

    @torch.inference_mode()
    def _validate(self, loader: DataLoader) -> dict[str, float]:
        """Scores of the validation fold's masks at label resolution, with the config's fixed triplet."""
        self.network.eval()
        triplet = postprocess.Triplet(*self.config.validation_triplet)
        rows = self.data.validation
        counted = np.zeros((len(rows), 3), dtype=np.int64)
        for batch in loader:
            maps = self.network(to_network(batch.image, self.device)).sigmoid().float().cpu().numpy()
            for index, probabilities in zip(batch.position.tolist(), maps[:, 0], strict=True):
                row = rows.iloc[index]
                shape = (int(row["height"]), int(row["width"]))
                truth = rle.union(self.data.labels.get(row["image_id"], []), shape)
                predicted = postprocess.mask(postprocess.quantise(np.nan_to_num(probabilities)), triplet, shape)
                counted[index] = metrics.counts(truth, predicted)
        dice = metrics.image_dice(*counted.T)
        positive = counted[:, 0] > 0
        return {
            "siim_dice": float(dice.mean()),
            "positive_dice": float(dice[positive].mean()),
            "nothing_predicted": float((~positive).mean()),
        }

    def _loaders(self) -> tuple[DataLoader, DataLoader]:
        sizes = {"cache_size": self.data.cache_size, "image_size": self.config.image_size}
        train = RadiographDataset(self.data.output, self.data.train, **sizes, config=self.config)
        validation = RadiographDataset(self.data.output, self.data.validation, **sizes, config=None)
        common: dict[str, Any] = {"num_workers": self.workers, "pin_memory": self.device.type == "cuda"}
        common["persistent_workers"] = self.workers > 0
        common["worker_init_fn"] = start_worker
        return (
            DataLoader(train, batch_sampler=EpochBatches(self.sampling, self.config.batch_size), **common),
            DataLoader(validation, batch_sampler=InOrder(len(validation), self.config.batch_size), **common),
        )

    def _save(self, score: float) -> None:
        """best.pt first, last.pt second: a kill between the two repeats the epoch and writes the same best.pt."""
        weights = self.network.state_dict()
        identity = self._identity()
        if score > self.best_score and checkpoint.is_finite(weights):
            self.best_score = score
            best = {**identity, "epoch": self.epoch, "score": score, "network": weights}
            checkpoint.save(self.folder / BEST, best)
        whole = {
            **identity,
            "epoch": self.epoch,
            "best_score": self.best_score,
            "history": self.history,
            "network": weights,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "torch_rng": torch.get_rng_state(),
        }
        checkpoint.save(self.folder / LAST, whole)
        self._write_history()

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint belongs to."""
        return {
            "config": configuration.as_dict(self.config),
            "folds_hash": self.data.folds_hash,
            "fold": self.data.fold,
        }

    def _check_same(self, state: dict[str, Any], path: Path) -> None:
        own = self._identity()
        differences = configuration.differences(state.get("config", {}), own["config"])
        differences += configuration.differences(
            {k: state.get(k) for k in ("folds_hash", "fold")}, {k: own[k] for k in ("folds_hash", "fold")}
        )
        if differences:
            raise BadInput(
                "\n  ".join([f"{path} belongs to another experiment (--overwrite starts anew):", *differences])
            )

    def _write_history(self) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, artifacts.HISTORY_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _rounded(value) for key, value in row.items()} for row in self.history)
        atomic.write_text(self.folder / HISTORY, text.getvalue())

    def _line(self, row: dict[str, float]) -> str:
        left = row["seconds"] * (self.config.epochs - self.epoch)
        return (
            f"fold {self.data.fold}  epoch {self.epoch}/{self.config.epochs}  loss {row['train_loss']:.4f}  "
            f"SIIM Dice {row['siim_dice']:.4f} (nothing: {row['nothing_predicted']:.4f})  "
            f"positives {row['positive_dice']:.4f}  {row['images_per_second']:.0f} images/s  {left / 60:.1f} min left"
        )


def _rounded(value: float) -> float | str:
    return value if isinstance(value, int) else f"{value:.6g}"
