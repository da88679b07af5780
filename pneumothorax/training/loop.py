"""Train one network on all folds but one, and score it on that one after every epoch.

All state is saved after every epoch and, on request, between two steps: a run that was killed goes on to the same
weights, on a CPU bit for bit.
"""

import io
import math
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from pneumothorax.augment import Augmentation
from pneumothorax.compute import checkpoint, distributed, runtime
from pneumothorax.compute.interruption import StopRequest
from pneumothorax.compute.loading import end_workers, start_training_worker
from pneumothorax.data.dataset import InOrder, Item, RadiographDataset, Sample, to_network
from pneumothorax.errors import BadInput
from pneumothorax.pipeline import artifacts
from pneumothorax.training import averaging, history
from pneumothorax.training import config as configuration
from pneumothorax.training.config import TrainConfig
from pneumothorax.training.fold_checkpoints import FoldCheckpoints, Kept
from pneumothorax.training.optimization import Optimization, Part
from pneumothorax.training.sampling import EpochBatches, SlidingSampling
from pneumothorax.training.validation import Example, Scores, validate

State = dict[str, Any]

MAX_BAD_STEPS = 10  # not-finite losses in a row
WORKER_PATIENCE = 300  # seconds for one batch, after which a worker hangs


@dataclass(frozen=True)
class FoldData:
    """One fold's images: manifest rows to train on and to validate on, and the label rows by image id."""

    output: Path
    cache_size: int
    train: pd.DataFrame
    validation: pd.DataFrame
    labels: dict[str, tuple[str, ...]]
    inputs: dict[str, str]  # hashes of what the fold's run rests on
    fold: int


@dataclass
class Progress:
    """Where a fold's training stands, in plain types; the fields after `kept` belong to the epoch under way."""

    epoch: int = 0  # finished ones
    best_score: float = -math.inf
    best_epoch: int = 0
    bad_in_a_row: int = 0  # steps whose numbers were not finite
    history: list[dict[str, Any]] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)  # the best epochs, best first
    step: int = 0  # batches done
    losses: float = 0.0  # their sum, over the steps taken
    skipped_steps: int = 0
    images: int = 0
    seconds: float = 0.0


class Training:
    """The state of one fold's training; `run` takes it from wherever it is to the last epoch.

    Args:
        network: with its starting weights, in whatever memory format.
        workers: processes that load images, per training process.
        stop: asked after every step; when it is due, all is saved and Stopped raised.
        save_seconds: within an epoch all is saved so often.
    """

    def __init__(
        self,
        network: Any,
        data: FoldData,
        config: TrainConfig,
        *,
        run: str,
        device: torch.device,
        workers: int,
        stop: StopRequest,
        save_seconds: float = math.inf,
    ) -> None:
        self.network = network.to(
            device, memory_format=torch.channels_last
        )  # convolutions are faster so
        self.data, self.config, self.device, self.workers = data, config, device, workers
        self.stop, self.save_seconds = stop, save_seconds
        if config.batch_norm == "synchronised" and device.type == "cuda" and distributed.size() > 1:
            self.network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(self.network)
        self.optimization = Optimization(self.network, config, device)
        files = artifacts.Run(run).fold(data.fold)
        identity = {
            "config": configuration.as_dict(config),
            "inputs": data.inputs,
            "fold": data.fold,
        }
        self.checkpoints = FoldCheckpoints(data.output, files, identity)
        self.sampling = self._sampling()
        self.progress = Progress()
        self.beginning = (
            self._packed() if distributed.size() == 1 else None
        )  # to go back to while nothing is saved
        self.log = history.Log(data.output, files, epochs=config.epochs)

    def bytes_needed(self) -> int:
        """About what checkpoints will take on the disk, beyond those that are there."""
        weights = sum(value.nbytes for value in self.network.state_dict().values())
        state = weights * (
            3 if self.config.ema_decay is None else 4
        )  # with Adam's two moments and the average
        kept = weights * (self.config.average_best + 1 if self.config.average_best > 1 else 0)
        return (
            state if self.checkpoints.exist() else 3 * state + weights + kept
        )  # one more while it is written

    def run(self) -> None:
        """Train the epochs that are left and, where the config says so, average the best.

        Raises Stopped when asked to stop, with everything saved; BadInput for what the user can repair.
        """
        self.last_saved = time.monotonic()
        self.others = multiprocessing.active_children()  # no loaders
        try:
            with self.log:
                self._try_twice()
        finally:
            end_workers(others=self.others)

    def _try_twice(self) -> None:
        """To the end; after the death of a worker once more, from what was saved."""
        failed = False
        while True:
            try:
                self._to_the_end(*self._loaders())
                return
            except (
                RuntimeError
            ) as error:  # PyTorch raises it wherever the process is when a worker dies
                if (
                    "DataLoader" not in str(error) or distributed.size() > 1
                ):  # then torchrun starts again
                    raise
                if "timed out" in str(error):
                    end_workers(others=self.others)
                if self.stop.is_due():
                    tqdm.write(f"warning: {error}; what was done since the last save is not saved")
                    self.stop.leave()
                if failed:
                    raise BadInput(
                        f"loading images failed twice ({error}): try fewer --workers"
                    ) from error
                failed = True
                tqdm.write(f"warning: {error}; tried once more, from the last state that was saved")
                self._restore(
                    self._saved() if self.beginning is None else self._unpacked(self.beginning)
                )

    def _to_the_end(self, train_loader: DataLoader, validation_loader: DataLoader) -> None:
        while not self._is_finished():
            self._epoch(train_loader, validation_loader)
        if self.config.average_best > 1:
            self._average(train_loader, validation_loader)

    def resume(self) -> None:
        """Go on from the last whole checkpoint, where there is one. Raises BadInput for that of another experiment."""
        if self.checkpoints.exist():
            self._restore(self._saved())
            self.beginning = None
            if math.isfinite(self.progress.best_score) and self.config.average_best == 1:
                self.checkpoints.load_weights(
                    self.checkpoints.best
                )  # is it whole? It is made once.
            self.log.rewrite(self.progress.history)

    def _saved(self) -> State:
        state, path = self.checkpoints.latest()
        checkpoint.check_weights(self.network, state["network"], path)
        return state

    def _restore(self, state: State) -> None:
        """The opposite of `_state`."""
        self.network.load_state_dict(state["network"])
        self.optimization.load(state["optimization"])
        self.progress = Progress(**state["progress"])
        if distributed.rank() < len(state["random"]):
            runtime.set_random_state(state["random"][distributed.rank()], self.device)

    def _state(self) -> State:
        """Everything needed to go on from here, in plain types and tensors."""
        return {
            "progress": asdict(self.progress),
            "network": self.network.state_dict(),
            "optimization": self.optimization.state(),
            "random": distributed.gather(runtime.random_state(self.device)),
        }

    def _packed(self) -> bytes:
        """`_state` in the main memory."""
        whole = io.BytesIO()
        torch.save(self._state(), whole)
        return whole.getvalue()

    def _unpacked(self, whole: bytes) -> State:
        state: State = torch.load(io.BytesIO(whole), map_location="cpu", weights_only=True)
        return state

    def _is_finished(self) -> bool:
        return self.progress.epoch >= self.config.epochs or history.has_stalled(
            self.progress.history, patience=self.config.patience
        )

    def _epoch(self, train_loader: DataLoader, validation_loader: DataLoader) -> None:
        """From wherever the epoch stands to its end."""
        now = self.progress
        started, before = time.perf_counter(), now.seconds
        self.optimization.start_epoch(now.epoch)
        self._train(train_loader)
        images_per_second = now.images / max(now.seconds, 1e-9)
        last = now.epoch + 1 == self.config.epochs
        due = last or (now.epoch + 1) % self.config.validate_every == 0
        scores, examples = Scores(), list[Example]()
        if due:
            found = self._validate(self.optimization.result, validation_loader)
            if found is None:
                self._leave()
            scores, examples = found
        now.seconds = before + time.perf_counter() - started
        self._finish_epoch(scores, images_per_second)
        self.log.epoch(now.history, examples, self._line(now.history[-1]))

    def _train(self, loader: DataLoader) -> None:
        """The batches that are left of the epoch."""
        now, batches = self.progress, loader.batch_sampler
        assert isinstance(batches, EpochBatches)
        batches.epoch = now.epoch
        steps = batches.steps()
        batches.first_part = sum(len(step) for step in steps[: now.step])
        loaded = iter(loader)
        started, before = time.perf_counter(), now.seconds
        title = f"fold {self.data.fold} epoch {now.epoch + 1}"
        with tqdm(
            desc=title,
            total=len(steps),
            initial=now.step,
            unit="batch",
            leave=False,
            disable=not distributed.is_main(),
        ) as bar:
            for step in steps[now.step :]:
                n_images = sum(len(part) for part in step)
                parts = (self._part(part, batches, loaded) for part in step)
                loss, taken = self.optimization.step(parts, len(step), n_images)
                self._count(loss, taken=taken, n_images=n_images)
                bar.update()
                now.seconds = before + time.perf_counter() - started
                self._save_if_asked()

    def _part(self, part: list[Item], batches: EpochBatches, loaded: Iterator[Sample]) -> Part:
        batch = next(loaded)
        counts = [batches.real(part, rank) for rank in range(batches.size)]
        return to_network(batch.image, self.device), batch.mask.to(self.device).float(), counts

    def _count(self, loss: float, *, taken: bool, n_images: int) -> None:
        """Raises BadInput after too many steps in a row that were not taken."""
        now = self.progress
        now.step += 1
        now.images += n_images
        if taken:
            now.bad_in_a_row = 0
            now.losses += loss
            return
        now.bad_in_a_row += 1
        now.skipped_steps += 1
        if distributed.is_main():
            title = f"fold {self.data.fold} epoch {now.epoch + 1}"
            tqdm.write(f"{title}: loss or gradients are not finite (loss {loss:.4g}), step skipped")
        if now.bad_in_a_row == MAX_BAD_STEPS:
            raise BadInput(f"{MAX_BAD_STEPS} steps in a row are not finite: lower learning_rate")

    def _save_if_asked(self) -> None:
        """Between two steps: every so often, and to stop."""
        due = distributed.is_main() and time.monotonic() - self.last_saved >= self.save_seconds
        stopping, saving = distributed.sums([float(self.stop.is_due()), float(due)])
        if stopping:
            self._leave()
        if saving:
            self._save()

    def _leave(self) -> NoReturn:
        self._save()
        self.stop.leave()

    def _finish_epoch(self, scores: Scores, images_per_second: float) -> None:
        """Close the epoch: history, schedule, best weights, and the state to go on from."""
        now = self.progress
        steps_taken = now.step - now.skipped_steps
        now.history.append(
            {
                "epoch": now.epoch + 1,
                "learning_rate": self.optimization.scheduler.get_last_lr()[0],
                "positives_per_negative": self.sampling.ratio(now.epoch),
                "positives": len(self.sampling.positives),
                "negatives": self.sampling.n_negatives(now.epoch),
                "train_loss": now.losses / steps_taken if steps_taken else math.nan,
                "skipped_steps": now.skipped_steps,
                **scores._asdict(),
                "seconds": now.seconds,
                "images_per_second": images_per_second,
            }
        )
        self.optimization.end_epoch()
        now.epoch += 1
        now.step = now.images = now.skipped_steps = 0
        now.losses = now.seconds = 0.0
        kept_before = {epoch for _, epoch in now.kept}
        self._keep(scores.siim_dice)
        self._save()
        if distributed.is_main():
            # Those that the state before this one names must stay: it is what is left if this one is damaged.
            self.checkpoints.drop_kept(needed=kept_before | {epoch for _, epoch in now.kept})

    def _keep(self, score: float) -> None:
        """Weights first, the state that counts on them second: a kill between the two repeats the epoch.

        Of equally good epochs the last one is best: a fold on which nothing beats an empty prediction has many.
        """
        now, weights = self.progress, self.optimization.result.state_dict()
        if math.isnan(score) or not checkpoint.is_finite(weights):
            return
        if self.config.average_best > 1:
            now.kept = sorted([*now.kept, (score, now.epoch)], reverse=True)[
                : self.config.average_best
            ]
            if (score, now.epoch) in now.kept and distributed.is_main():
                self.checkpoints.save_weights(
                    self.checkpoints.kept(now.epoch), weights, epoch=now.epoch, score=score
                )
        if score >= now.best_score:
            now.best_score, now.best_epoch = score, now.epoch
            if distributed.is_main():
                self.checkpoints.save_weights(
                    self.checkpoints.best, weights, epoch=now.epoch, score=score
                )

    def _save(self) -> None:
        """Everything needed to go on from here, written by the main process; weights that diverged are not."""
        state = self._state()
        if distributed.is_main() and checkpoint.is_finite(state["network"]):
            self.checkpoints.save(state)
            self.beginning = None
        self.last_saved = time.monotonic()

    def _average(self, train_loader: DataLoader, validation_loader: DataLoader) -> None:
        """best.pt becomes the mean of the best epochs' weights, scored like an epoch."""
        now = self.progress
        weights = {}
        for _, epoch in sorted(now.kept, key=lambda one: one[1]):
            try:
                weights[epoch] = self.checkpoints.load_weights(self.checkpoints.kept(epoch))
            except BadInput as error:
                tqdm.write(f"warning: {error}; averaged without it")
        if not weights:
            return
        self.network.load_state_dict(averaging.mean(list(weights.values())))
        if self.config.batch_norm != "frozen":
            batches = train_loader.batch_sampler
            assert isinstance(batches, EpochBatches)
            batches.epoch, batches.first_part = now.epoch - 1, 0
            with self.optimization.autocast, torch.no_grad():
                averaging.estimate_batch_norms(self.network, self._images_alone(train_loader))
        found = self._validate(self.network, validation_loader)
        if found is None:
            self.stop.leave()
        score = found[0].siim_dice
        if distributed.is_main():
            listed = ", ".join(map(str, weights))
            print(f"fold {self.data.fold}: the mean of epochs {listed} has SIIM Dice {score:.4f}")
            self.checkpoints.save_weights(
                self.checkpoints.best,
                self.network.state_dict(),
                epoch=now.epoch,
                averaged=list(weights),
                score=score,
            )
        now.best_score = score

    def _validate(
        self, network: torch.nn.Module, loader: DataLoader
    ) -> tuple[Scores, list[Example]] | None:
        return validate(
            network,
            loader,
            self.data.validation,
            self.data.labels,
            autocast=self.optimization.autocast,
            device=self.device,
            stop=self.stop,
        )

    def _images_alone(self, loader: DataLoader) -> Iterator[torch.Tensor]:
        for batch in loader:
            if (
                self.stop.is_due() and distributed.size() == 1
            ):  # several processes ask together, in validation
                self.stop.leave()
            yield to_network(batch.image, self.device)

    def _sampling(self) -> SlidingSampling:
        positive = self.data.train["positive"].to_numpy() == 1
        if not positive.any() or len(positive) < 2:
            raise BadInput(
                f"fold {self.data.fold}: {len(positive)} training images, {positive.sum()} positive: too few"
            )
        return SlidingSampling(
            np.flatnonzero(positive).tolist(),
            np.flatnonzero(~positive).tolist(),
            self.config.sampling,
            epochs=self.config.epochs,
            seed=self.config.seed,
            positive_repeat=self.config.positive_repeat,
        )

    def _loaders(self) -> tuple[DataLoader, DataLoader]:
        """Of the images to train on and to validate on, with new workers."""
        config, share = self.config, {"rank": distributed.rank(), "size": distributed.size()}
        batches = EpochBatches(
            self.sampling, config.batch_size, parts=config.accumulation_steps, **share
        )
        validation = self._images(self.data.validation, None)
        in_order = InOrder(len(validation), batches.part_size, **share)
        common: dict[str, Any] = {
            "num_workers": self.workers,
            "persistent_workers": self.workers > 0,
            "timeout": WORKER_PATIENCE if self.workers else 0,
            "worker_init_fn": start_training_worker,
            "pin_memory": self.device.type == "cuda",
            # Workers' base seed: from torch's global generator it would differ after a resume.
            "generator": torch.Generator().manual_seed(config.seed),
        }
        train = DataLoader(self._images(self.data.train, config), batch_sampler=batches, **common)
        return train, DataLoader(validation, batch_sampler=in_order, **common)

    def _images(self, rows: pd.DataFrame, config: TrainConfig | None) -> RadiographDataset:
        sizes = {"cache_size": self.data.cache_size, "image_size": self.config.image_size}
        augmentation = None
        if config is not None:
            augmentation = Augmentation(
                size=config.image_size,
                negative=config.augment_negative,
                positive=config.augment_positive,
                seed=config.seed,
            )
        return RadiographDataset(self.data.output, rows, **sizes, augmentation=augmentation)

    def _line(self, row: dict[str, Any]) -> str:
        now = self.progress
        left = row["seconds"] * (self.config.epochs - now.epoch)
        memory = runtime.peak_memory_mib(self.device)
        scores = (
            f"SIIM Dice {row['siim_dice']:.4f} (nothing: {row['all_empty']:.4f})  "
            f"positives {row['positive_dice']:.4f}  "
        )
        return (
            f"fold {self.data.fold}  epoch {now.epoch}/{self.config.epochs}  loss {row['train_loss']:.4f}  "
            f"{'' if math.isnan(row['siim_dice']) else scores}"
            f"{row['images_per_second']:.0f} img/s  "
            f"{'' if memory is None else f'{memory / 1024:.1f} GiB  '}{left / 60:.1f} min left"
        )
