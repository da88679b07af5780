"""Train one network on all folds but one, and score it on that one after every epoch."""

import csv
import io
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from pneumothorax import artifacts, atomic, checkpoint, postprocess, precision, rle, thresholds
from pneumothorax import config as configuration
from pneumothorax.config import TrainConfig
from pneumothorax.dataset import InOrder, RadiographDataset, start_worker, to_network
from pneumothorax.errors import BadInput
from pneumothorax.losses import CRITERIA
from pneumothorax.sampling import EpochBatches, SlidingSampling
from pneumothorax.thresholds import Grid, Profile

MAX_BAD_STEPS = 10  # not-finite losses in a row
SELECTION_GRID = Grid(tops=(0.5, 0.7, 0.9), min_areas=(0, 500, 1000, 2000, 4000), bottoms=(0.3, 0.5))
NOT_VALIDATED = {"siim_dice": math.nan, "positive_dice": math.nan, "nothing_predicted": math.nan}


@dataclass(frozen=True)
class FoldData:
    """One fold's images: manifest rows to train on and to validate on, and the label rows by image id."""

    output: Path
    cache_size: int
    train: pd.DataFrame
    validation: pd.DataFrame
    labels: dict[str, tuple[str, ...]]
    inputs: dict[str, str]  # hashes of what the run rests on (lineage.train_inputs)
    fold: int


class Training:
    """The state of one fold's training; `run` takes it from wherever it is to the last epoch."""

    def __init__(
        self, network: Any, data: FoldData, config: TrainConfig, *, folder: Path, device: torch.device, workers: int
    ) -> None:
        self.network = network.to(device, memory_format=torch.channels_last)  # convolutions are faster so
        self.data, self.config, self.folder, self.device, self.workers = data, config, folder, device, workers
        self.criterion = CRITERIA[config.loss]
        self.optimizer = torch.optim.Adam(
            network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.autocast = precision.autocast(device, enabled=config.mixed_precision)
        self.scaler = precision.scaler(device, enabled=config.mixed_precision)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimizer, T_max=config.epochs, eta_min=config.final_learning_rate
        )
        positive = data.train["positive"].to_numpy() == 1
        if not positive.any() or len(positive) < 2:
            raise BadInput(f"fold {data.fold}: {len(positive)} training images, {positive.sum()} positive: too few")
        self.sampling = SlidingSampling(
            np.flatnonzero(positive).tolist(),
            np.flatnonzero(~positive).tolist(),
            config.sampling,
            epochs=config.epochs,
            seed=config.seed,
        )
        self.epoch = 0  # finished ones
        self.best_score = -math.inf
        self.bad_in_a_row = 0  # losses that were not finite
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
        """Go on from `last.pt`, or from the one before it where that is damaged.

        Raises BadInput when they belong to another experiment or when nothing usable is left.
        """
        found = self._latest()
        if found is None:
            return
        state, path = found
        self._check_same(state, path)
        checkpoint.load_weights(self.network, state["network"], path)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["torch_rng"])
        self.epoch, self.best_score, self.history = state["epoch"], state["best_score"], state["history"]
        self.bad_in_a_row = state["bad_in_a_row"]
        if math.isfinite(self.best_score):
            self._check_best()
        self._write_history()

    def _latest(self) -> tuple[dict[str, Any], Path] | None:
        problems = []
        for name in (artifacts.LAST_CHECKPOINT, artifacts.PREVIOUS_CHECKPOINT):
            path = self.folder / name
            if not path.exists():
                continue
            try:
                state = checkpoint.load(path)
            except BadInput as error:
                problems.append(str(error))
                continue
            if problems:
                print(f"warning: {problems[0]}; going on from {path}")
            return state, path
        if problems:
            raise BadInput("\n  ".join([*problems, self._remedy()]))
        return None

    def _check_best(self) -> None:
        """best.pt is the only copy of its weights: a damaged one must not be sealed."""
        try:
            self._check_same(checkpoint.load(self.best_path), self.best_path)
        except BadInput as error:
            raise BadInput(f"{error}\n  {self._remedy()}") from error

    def _remedy(self) -> str:
        return f"--fold {self.data.fold} --overwrite trains this fold anew"

    def _epoch(self, train_loader: DataLoader, validation_loader: DataLoader) -> dict[str, Any]:
        batches = train_loader.batch_sampler
        assert isinstance(batches, EpochBatches)
        batches.epoch = self.epoch
        started = time.perf_counter()
        learning_rate = self.scheduler.get_last_lr()[0]
        loss, n_images = self._train(train_loader)
        seconds_training = time.perf_counter() - started
        self.scheduler.step()
        last = self.epoch + 1 == self.config.epochs
        due = last or (self.epoch + 1) % self.config.validate_every == 0
        scores = self._validate(validation_loader) if due else NOT_VALIDATED
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
        n_images = 0
        for batch in tqdm(loader, desc=f"fold {self.data.fold} epoch {self.epoch + 1}", unit="batch", leave=False):
            images, masks = to_network(batch.image, self.device), batch.mask.to(self.device).float()
            with self.autocast:
                loss = self.network.training_loss(images, masks, self.criterion)["loss"]
            value = float(loss.detach())
            self.optimizer.zero_grad(set_to_none=True)
            self.bad_in_a_row = 0 if math.isfinite(value) else self.bad_in_a_row + 1
            if self.bad_in_a_row:
                tqdm.write(f"fold {self.data.fold} epoch {self.epoch + 1}: the loss is {value}, step skipped")
                if self.bad_in_a_row == MAX_BAD_STEPS:
                    raise BadInput(f"{MAX_BAD_STEPS} losses in a row are not finite: lower learning_rate")
                continue
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            losses.append(value)
            n_images += len(images)
        return float(np.mean(losses)) if losses else math.nan, n_images

    @torch.inference_mode()
    def _validate(self, loader: DataLoader) -> dict[str, float]:
        """Scores of the validation fold at label resolution.

        SIIM Dice is that of the best thresholds of SELECTION_GRID for this fold: thresholds fixed beforehand would
        prefer the epochs in which a network predicts nothing yet. It serves to choose an epoch and is too high as a
        score; stage 04 scores with thresholds of the other folds.
        """
        self.network.eval()
        rows = self.data.validation
        image_ids, shapes = rows["image_id"].tolist(), list(zip(rows["height"], rows["width"], strict=True))
        profiles: dict[int, Profile] = {}
        for batch in loader:
            with self.autocast:
                logits = self.network(to_network(batch.image, self.device))
            maps = logits.float().sigmoid().cpu().numpy()
            if not np.isfinite(maps).all():
                return NOT_VALIDATED
            for position, probabilities in zip(batch.position.tolist(), maps[:, 0], strict=True):
                truth = rle.union(self.data.labels.get(image_ids[position], ()), shapes[position])
                stored = postprocess.quantise(probabilities)
                profiles[position] = thresholds.profile(stored, truth, SELECTION_GRID)
        everything = [profiles[position] for position in range(len(rows))]
        search = thresholds.Search(everything, SELECTION_GRID)
        negative = search.empty_dice == 1
        return {
            "siim_dice": search.best(np.ones(len(rows), dtype=bool))[1],
            "positive_dice": float(search.dice[~negative, SELECTION_GRID.bottoms.index(0.5)].mean()),
            "nothing_predicted": float(negative.mean()),
        }

    def _loaders(self) -> tuple[DataLoader, DataLoader]:
        sizes = {"cache_size": self.data.cache_size, "image_size": self.config.image_size}
        train = RadiographDataset(self.data.output, self.data.train, **sizes, config=self.config)
        validation = RadiographDataset(self.data.output, self.data.validation, **sizes, config=None)
        common: dict[str, Any] = {"num_workers": self.workers, "pin_memory": self.device.type == "cuda"}
        common["persistent_workers"] = self.workers > 0
        common["worker_init_fn"] = start_worker
        # Workers' base seed: from torch's global generator it would differ after a resume.
        common["generator"] = torch.Generator().manual_seed(self.config.seed)
        return (
            DataLoader(train, batch_sampler=EpochBatches(self.sampling, self.config.batch_size), **common),
            DataLoader(validation, batch_sampler=InOrder(len(validation), self.config.batch_size), **common),
        )

    def _save(self, score: float) -> None:
        """best.pt first, last.pt second: a kill between the two repeats the epoch and writes the same best.pt.

        Of equally good epochs the last one is kept: a fold on which nothing beats an empty prediction has many.
        """
        weights = self.network.state_dict()
        identity = self._identity()
        if score >= self.best_score and checkpoint.is_finite(weights):
            self.best_score = score
            best = {**identity, "epoch": self.epoch, "score": score, "network": weights}
            checkpoint.save(self.best_path, best)
        whole = {
            **identity,
            "epoch": self.epoch,
            "best_score": self.best_score,
            "bad_in_a_row": self.bad_in_a_row,
            "history": self.history,
            "network": weights,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "torch_rng": torch.get_rng_state(),
        }
        last = self.folder / artifacts.LAST_CHECKPOINT
        checkpoint.save(last, whole, keep=self.folder / artifacts.PREVIOUS_CHECKPOINT)
        self._write_history()

    @property
    def best_path(self) -> Path:
        return self.data.output / artifacts.best_weights(self.folder.parent.name, self.data.fold)

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint belongs to."""
        return {"config": configuration.as_dict(self.config), "inputs": self.data.inputs, "fold": self.data.fold}

    def _check_same(self, state: dict[str, Any], path: Path) -> None:
        own = self._identity()
        differences = configuration.differences(state.get("config", {}), own["config"])
        inputs = state.get("inputs", {})
        differences += [f"{name} changed since" for name in own["inputs"] if inputs.get(name) != own["inputs"][name]]
        if state.get("fold") != own["fold"]:
            differences.append(f"fold: {state.get('fold')} there, {own['fold']} now")
        if differences:
            lines = [
                f"{path} belongs to another experiment (another --run, or --overwrite, starts anew):",
                *differences,
            ]
            raise BadInput("\n  ".join(lines))

    def _write_history(self) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, artifacts.HISTORY_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _rounded(value) for key, value in row.items()} for row in self.history)
        atomic.write_text(self.folder / artifacts.HISTORY, text.getvalue())

    def _line(self, row: dict[str, float]) -> str:
        left = row["seconds"] * (self.config.epochs - self.epoch)
        scores = (
            f"SIIM Dice {row['siim_dice']:.4f} (nothing: {row['nothing_predicted']:.4f})  "
            f"positives {row['positive_dice']:.4f}  "
        )
        return (
            f"fold {self.data.fold}  epoch {self.epoch}/{self.config.epochs}  loss {row['train_loss']:.4f}  "
            f"{'' if math.isnan(row['siim_dice']) else scores}"
            f"{row['images_per_second']:.0f} img/s  {left / 60:.1f} min left"
        )


def _rounded(value: float) -> float | str:
    if isinstance(value, int):
        return value
    return "" if math.isnan(value) else f"{value:.6g}"
