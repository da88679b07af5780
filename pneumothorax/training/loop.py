"""Train one network on all folds but one, and score it on that one as it learns.

All state is saved after every epoch and, every few minutes, between two steps. A resumed
training ends in the same weights as an undisturbed one, on a CPU bit for bit.
"""

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import torch
from tqdm import tqdm

from pneumothorax.compute import devices, distributed, runtime
from pneumothorax.compute.interruption import StopRequest
from pneumothorax.compute.loading import DeadWorker, Workers, worker_deaths
from pneumothorax.errors import BadInput
from pneumothorax.pipeline import artifacts
from pneumothorax.pipeline.progress import show_progress
from pneumothorax.training import averaging, history
from pneumothorax.training import config as configuration
from pneumothorax.training.averaging import BestWeights
from pneumothorax.training.config import TrainConfig
from pneumothorax.training.fold_state import FoldCheckpoints, FoldState
from pneumothorax.training.loaders import FoldData, Loaders, sliding_sampling
from pneumothorax.training.optimization import LearningRates, Optimization, Outcome
from pneumothorax.training.validation import Example, Scores, validate

MAX_BAD_STEPS = 10  # in a row, with a loss or gradients that are not finite
MAX_SCALED_DOWN = 20  # in a row, from fp16's first loss scale of 65,536 down to 1/16


class Stopwatch:
    """lap() -> seconds since the last lap."""

    def __init__(self) -> None:
        self._mark = time.perf_counter()

    def lap(self) -> float:
        before, self._mark = self._mark, time.perf_counter()
        return self._mark - before


class EpochSteps:
    """The steps of one epoch, from where the state stands; saves between them.

    Args:
        rates: of every step of the training.
        fold: its number, for messages.
        stop: asked after every step; when it is due, all is saved and Stopped raised.
        save_seconds: time between two saves within an epoch.
    """

    def __init__(
        self,
        state: FoldState,
        rates: LearningRates,
        *,
        fold: int,
        stop: StopRequest,
        save_seconds: float,
    ) -> None:
        self.state, self.rates, self.fold = state, rates, fold
        self.stop, self.save_seconds = stop, save_seconds

    def run(self, loaders: Loaders, watch: Stopwatch) -> None:
        """Train on the epoch's remaining batches."""
        progress, optimization = self.state.progress, self.state.optimization
        optimization.start_epoch(progress.epoch)
        batches = loaders.epoch(progress.epoch, done=progress.step)
        with show_progress(
            total=progress.step + len(batches),
            title=self._title(),
            unit="batch",
            done=progress.step,
            leave=False,
            visible=distributed.is_main(),
        ) as bar:
            for batch in batches:
                optimization.set_learning_rate(self.rates.at(progress.epoch, progress.step))
                loss, outcome = optimization.step(batch.parts, batch.n_parts, batch.n_images)
                progress.add_step(loss, outcome, n_images=batch.n_images)
                if outcome is not Outcome.TAKEN:
                    self._report_skipped(loss, outcome)
                progress.add_seconds(watch.lap())
                bar.update()
                self._save_if_due()

    def save_and_stop(self) -> NoReturn:
        self.state.save()
        self.stop.leave()

    def _title(self) -> str:
        return f"fold {self.fold} epoch {self.state.progress.epoch + 1}"

    def _report_skipped(self, loss: float, outcome: Outcome) -> None:
        """Raises BadInput after too many skipped steps in a row."""
        scaled_down = outcome is Outcome.SCALED_DOWN
        if distributed.is_main() and not scaled_down:
            tqdm.write(
                f"{self._title()}: loss or gradients are not finite (loss {loss:.4g}), step skipped"
            )
        in_a_row = self.state.progress.bad_in_a_row
        if in_a_row >= (MAX_SCALED_DOWN if scaled_down else MAX_BAD_STEPS):
            raise BadInput(f"{in_a_row} steps in a row are not finite: lower learning_rate")

    def _save_if_due(self) -> None:
        due = distributed.is_main() and self.state.seconds_since_save() >= self.save_seconds
        stopping, saving = distributed.sums([float(self.stop.is_due()), float(due)])
        if stopping:
            self.save_and_stop()
        if saving:
            self.state.save()


class Training:
    """One fold's training: `resume` restores what was saved, `run` goes to the last epoch.

    Args:
        network: with its starting weights, in any memory format.
        run: the run's name.
        workers: processes that load images, per training process.
        stop, save_seconds: see EpochSteps.
        folds_left: further folds that will be trained after this one, for the time left.
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
        folds_left: int = 0,
    ) -> None:
        self.data, self.config, self.device, self.workers = data, config, device, workers
        self.stop, self.folds_left = stop, folds_left
        self.network = network.to(device, memory_format=devices.memory_format(device))
        if config.batch_norm == "synchronised" and device.type == "cuda" and distributed.size() > 1:
            self.network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(self.network)
        torch.backends.cudnn.benchmark = True  # all batches have the same shape
        self.optimization = Optimization(self.network, config, device)
        self.parts = self.optimization.parts()
        self.sampling = sliding_sampling(data, config)
        self.rates = LearningRates(
            config,
            [self.sampling.n_batches(epoch, config.batch_size) for epoch in range(config.epochs)],
        )
        files = artifacts.Run(run).fold(data.fold)
        identity = {
            "config": configuration.as_dict(config),
            "inputs": data.inputs,
            "fold": data.fold,
        }
        self.checkpoints = FoldCheckpoints(data.output, files, identity)
        self.state = FoldState(self.network, self.optimization, self.checkpoints, device)
        self.best = BestWeights(self.state, n_averaged=config.average_best)
        self.steps = EpochSteps(
            self.state, self.rates, fold=data.fold, stop=stop, save_seconds=save_seconds
        )
        self.log = history.Log(data.output, files, epochs=config.epochs)

    def resume(self) -> None:
        """Restore the last usable checkpoint, if there is one.

        Raises BadInput if it belongs to another experiment, or if best.pt is damaged.
        """
        if not self.state.resume():
            return
        progress = self.state.progress
        if math.isfinite(progress.best_score) and self.config.average_best == 1:
            self.checkpoints.load_weights(self.checkpoints.best)  # only to check it
        self.log.rewrite(progress.history)

    def run(self) -> None:
        """Train the remaining epochs and, if the config says so, average the best.

        After the death of a worker, tries once more from the last save. Raises Stopped
        when asked to stop, with everything saved; BadInput for what the user can repair.
        """
        with Workers() as workers, self.log, self.checkpoints.queue:
            for attempt in (1, 2):
                try:
                    with worker_deaths():
                        self._run_with(self.loaders())
                    return
                except DeadWorker as death:
                    self._recover(death, workers, last=attempt == 2)

    def finish_epoch(self, scores: Scores, images_per_second: float) -> None:
        """Close the epoch: history, best weights, and the state to resume from."""
        progress = self.state.progress
        row = {
            "epoch": progress.epoch + 1,
            "learning_rate": self.rates.at(progress.epoch),  # of its first step
            "positives_per_negative": self.sampling.ratio(progress.epoch),
            "positives": len(self.sampling.positives),
            "negatives": self.sampling.n_negatives(progress.epoch),
            "train_loss": progress.train_loss,
            "skipped_steps": progress.skipped_steps,
            **scores._asdict(),
            "seconds": progress.seconds,
            "images_per_second": images_per_second,
            "computed": computed(self.optimization, self.parts),
        }
        progress.end_epoch(row)
        self.best.save_epoch(scores.siim_dice)

    def loaders(self) -> Loaders:
        return Loaders(
            self.data,
            self.config,
            self.sampling,
            parts=self.parts,
            device=self.device,
            workers=self.workers,
        )

    def _run_with(self, loaders: Loaders) -> None:
        while not self._is_finished():
            self._epoch(loaders)
        if self.config.average_best > 1:
            self._average(loaders)
        loaders.close()

    def _recover(self, death: DeadWorker, workers: Workers, *, last: bool) -> None:
        """Go back to the last save; raises where the fold cannot be trained further here."""
        if distributed.size() > 1:
            raise death  # torchrun restarts all processes
        if death.hung:
            workers.kill()
        if self.stop.is_due():
            tqdm.write(f"warning: {death}; work since the last save is lost")
            self.stop.leave()
        if last:
            raise BadInput(f"loading images failed twice ({death}): try fewer --workers") from death
        tqdm.write(f"warning: {death}; trying once more, from the last save")
        self.state.go_back()

    def _is_finished(self) -> bool:
        progress = self.state.progress
        return progress.epoch >= self.config.epochs or history.has_stalled(
            progress.history, patience=self.config.patience
        )

    def _epoch(self, loaders: Loaders) -> None:
        """Train to the end of the epoch under way, and validate if it is due."""
        progress, watch = self.state.progress, Stopwatch()
        self.steps.run(loaders, watch)
        images_per_second = progress.images / max(progress.seconds, 1e-9)
        number = progress.epoch + 1
        scores, examples = Scores(), list[Example]()
        if number == self.config.epochs or number % self.config.validate_every == 0:
            found = self._validate(self.optimization.result, loaders)
            if found is None:
                self.steps.save_and_stop()
            scores, examples = found
        progress.add_seconds(watch.lap())
        self.finish_epoch(scores, images_per_second)
        line = epoch_line(
            progress.history,
            fold=self.data.fold,
            epochs=self.config.epochs,
            folds_left=self.folds_left,
            memory_mib=runtime.peak_memory_mib(self.device),
        )
        self.log.epoch(progress.history, examples, line)

    def _average(self, loaders: Loaders) -> None:
        """Make best.pt the mean of the best epochs' weights, scored like an epoch."""
        epochs, weights = self.best.mean_of_kept()
        if not epochs:
            return
        self.network.load_state_dict(weights)
        if self.config.batch_norm != "frozen":
            images = loaders.images(self.state.progress.epoch - 1)
            with self.optimization.autocast, torch.no_grad():
                averaging.estimate_batch_norms(self.network, self._until_stopped(images))
        found = self._validate(self.network, loaders)
        if found is None:
            self.stop.leave()
        score = found[0].siim_dice
        listed = ", ".join(map(str, epochs))
        distributed.say(
            f"fold {self.data.fold}: the mean of epochs {listed} has SIIM Dice {score:.4f}"
        )
        if math.isfinite(score):
            self.best.save_average(self.network.state_dict(), score, epochs)
        else:
            distributed.say(f"fold {self.data.fold}: the mean is not used")

    def _until_stopped(self, images: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
        for batch in images:
            # Several processes must stop together, which only validation ensures.
            if self.stop.is_due() and distributed.size() == 1:
                self.stop.leave()
            yield batch

    def _validate(
        self, network: torch.nn.Module, loaders: Loaders
    ) -> tuple[Scores, list[Example]] | None:
        return validate(
            network,
            loaders.validation,
            self.data.validation,
            self.data.labels,
            autocast=self.optimization.autocast,
            device=self.device,
            stop=self.stop,
        )


def computed(optimization: Optimization, parts: int) -> str:
    """How steps are computed, in words: what may change from one resume to the next."""
    words = [devices.device_name(optimization.device), optimization.precision]
    if parts > 1:
        words.append(f"batches in {parts} parts")
    if optimization.config.compile:
        words.append("compiled")
    return ", ".join(words)


def epoch_line(
    history: Sequence[dict[str, Any]],
    *,
    fold: int,
    epochs: int,
    folds_left: int,
    memory_mib: float | None,
) -> str:
    """The last epoch for the terminal, with the time that the others take on average.

    Args:
        history: a row of artifacts.HISTORY_COLUMNS per epoch so far.
        folds_left: further folds that take as long.
    """
    row = history[-1]
    words = [f"fold {fold}", f"epoch {row['epoch']}/{epochs}", f"loss {row['train_loss']:.4f}"]
    if not math.isnan(row["siim_dice"]):
        words.append(f"SIIM Dice {row['siim_dice']:.4f} (all-empty {row['all_empty']:.4f})")
        words.append(f"positives {row['positive_dice']:.4f}")
    words.append(f"{row['images_per_second']:.0f} img/s")
    if memory_mib is not None:
        words.append(f"{memory_mib / 1024:.1f} GiB")
    seconds = statistics.mean(one["seconds"] for one in history)
    left = f"{_duration(seconds * (epochs - row['epoch']))} left"
    if folds_left:
        all_left = seconds * (epochs * (folds_left + 1) - row["epoch"])
        left = f"{left}, {_duration(all_left)} for all folds"
    return "  ".join([*words, left])


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
