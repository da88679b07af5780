"""A training run on disk: who may write it, what it is made from, and training one fold of it."""

import math
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from pneumothorax.compute import checkpoint, devices, distributed, network_cost, precisions, runtime
from pneumothorax.data import cache
from pneumothorax.errors import BadConfig, BadInput
from pneumothorax.pipeline import artifacts, atomic, lineage, locks, records, stage
from pneumothorax.training import config
from pneumothorax.training.config import TrainConfig
from pneumothorax.training.loaders import FoldData
from pneumothorax.training.loop import Training

RUN_PATIENCE_S = 60  # another process may be claiming or describing the run
FOLD_PATIENCE_S = 1  # another process may be checking whether the fold is being trained


class TrainingRun:
    """The run `name` with these settings, below `output`; `alone` is that of locks.lock.

    Of several processes each has this object and calls every method; the main one writes.
    Raises BadInput unless there are folds and an image cache of sufficient size.
    """

    def __init__(
        self, output: Path, name: str, settings: TrainConfig, *, alone: bool = False
    ) -> None:
        self.output, self.name, self.settings, self.alone = output, name, settings, alone
        self.files = artifacts.Run(name)
        self.cache_size = cache.size(output, at_least=settings.image_size)
        self.inputs = lineage.train_inputs(output)
        self.rows = artifacts.training_rows(output)
        self.n_folds = int(self.rows["fold"].max()) + 1
        self._cache_verified = False

    def claim(self, folds: list[int], network: torch.nn.Module, *, overwrite: bool) -> None:
        """Save the settings with the run, or check that it was made with the same ones.

        With `overwrite`, `folds` start from scratch. Raises BadInput for other settings and
        BadConfig, with nothing written, if the network cannot take images of this size.
        """
        distributed.on_main(self._claim, folds, network, overwrite=overwrite)
        # Processes that torchrun restarts resume their folds instead.
        if overwrite and not distributed.is_restart():
            distributed.on_main(self._clear, folds)

    def lock(self, fold: int) -> AbstractContextManager[None]:
        """Hold a fold while it is trained. Raises OutputLocked if another process holds it."""
        return distributed.lock(
            self.output, self._lock_name(fold), patience_s=FOLD_PATIENCE_S, alone=self.alone
        )

    def is_finished(self, fold: int) -> bool:
        """Whether the fold was trained to its end with these settings and the current inputs."""
        return distributed.on_main(self._is_finished, fold)

    def unfinished(self, folds: Sequence[int]) -> list[int]:
        return [fold for fold in folds if not self.is_finished(fold)]

    def closing_lines(self) -> list[str]:
        """What was written, and what comes next."""
        written = f"wrote {self.output / self.files.folder}"
        if left := self.unfinished(range(self.n_folds)):
            return [written, f"folds that are not trained yet: {', '.join(map(str, left))}"]
        return [written, stage.next_step(self.output, "03_predict.py", "--run", self.name)]

    def prepare(self, network: Any, *, workers: int) -> None:
        """Describe the network for the report; the first call also verifies the cached images.

        Raises BadInput that lists damaged images.
        """
        if not self._cache_verified:
            distributed.on_main(
                cache.verify, self.output, self.cache_size, self.rows, workers=workers
            )
            self._cache_verified = True
        distributed.on_main(self._describe, network)

    def fold_data(self, fold: int) -> FoldData:
        """Train on all folds but one, validate on that one."""
        held_out = self.rows["fold"] == fold
        return FoldData(
            output=self.output,
            cache_size=self.cache_size,
            train=self.rows[~held_out].reset_index(drop=True),
            validation=self.rows[held_out].reset_index(drop=True),
            labels=artifacts.label_rows(self.output),
            inputs=self._made_from(fold)["inputs"],
            fold=fold,
        )

    def load_start(self, network: torch.nn.Module, fold: int) -> None:
        """Load the weights that `init_from` names: those of another run's same fold."""
        if self.settings.init_from is not None:
            self._start_inputs(fold)  # refuses weights that are missing or out of date
            path = self.output / self._start_run().fold(fold).best_weights
            checkpoint.load_weights(network, checkpoint.load(path)["network"], path)

    def seal(self, fold: int, facts: dict[str, Any]) -> None:
        """Record that the fold is finished, with the hashes of its files and some facts."""
        files = self.files.fold(fold)
        outputs = [files.best_weights, files.history.path, self.files.network_facts]
        facts = {**self._made_from(fold), **facts, "phantoms": self._saw_phantoms(fold)}
        distributed.on_main(records.write, self.output, files.trained, outputs=outputs, **facts)

    def _claim(self, folds: list[int], network: torch.nn.Module, *, overwrite: bool) -> None:
        folder, path = self.output / self.files.folder, self.output / self.files.config
        with self._lock():
            started = any(folder.glob("fold*/last.pt"))
            busy = any(
                locks.is_held(
                    self.output, self._lock_name(fold), alone=self.alone and fold in folds
                )
                for fold in range(self.n_folds)
            )
            # Before the first save no settings are binding.
            binding = started or (busy and path.exists())
            if binding:
                current = config.as_dict(self.settings)
                saved = config.saved(path)
                differences = config.differences(saved, current)
                if not differences:
                    if saved != current:  # the steps are computed in other ways from now on
                        config.save(path, self.settings)
                    return
                self._refuse(differences, folds, overwrite=overwrite)
            network_cost.require_size(network, self.settings.image_size)
            if binding:
                with ExitStack() as held:  # wait until no process trains any of its folds
                    for fold in range(self.n_folds):
                        held.enter_context(
                            locks.lock(self.output, self._lock_name(fold), alone=self.alone)
                        )
                    print(f"starting {folder} from scratch: its settings change")
                    shutil.rmtree(folder)
            config.save(path, self.settings)

    def _is_finished(self, fold: int) -> bool:
        record = self.files.fold(fold).trained
        try:
            settings = records.read(self.output, record)["settings"]
            made_from = self._made_from(fold)
        except BadInput:
            return False
        return not config.differences(settings, made_from["settings"]) and records.is_current(
            self.output, record, settings=settings, inputs=made_from["inputs"]
        )

    def _refuse(self, differences: list[str], folds: list[int], *, overwrite: bool) -> None:
        """Raises unless all folds are to be overwritten."""
        if not overwrite:
            headline = (
                f"run {self.name} has other settings "
                "(choose another --run; --overwrite starts from scratch):"
            )
            raise BadInput("\n  ".join([headline, *differences]))
        if len(folds) < self.n_folds:
            raise BadConfig(
                "other settings start every fold of the run from scratch: "
                "use --overwrite with --fold all"
            )

    def _clear(self, folds: list[int]) -> None:
        for fold in folds:
            with locks.lock(self.output, self._lock_name(fold), alone=self.alone):
                folder = self.output / self.files.fold(fold).folder
                if folder.exists():
                    shutil.rmtree(folder)

    def _describe(self, network: Any) -> None:
        """Every fold writes the same bytes."""
        path = self.output / self.files.network_facts
        with self._lock():
            atomic.write_json(path, network_cost.trace(network, self.settings.image_size))

    def _made_from(self, fold: int) -> dict[str, Any]:
        return {
            "settings": config.as_dict(self.settings),
            "inputs": {**self.inputs, **self._start_inputs(fold)},
        }

    def _start_inputs(self, fold: int) -> dict[str, str]:
        """The hash of the weights that the fold starts from, if the config names a run."""
        if self.settings.init_from is None:
            return {}
        start = self._start_run()
        if start == self.files:
            raise BadConfig(f"init_from: run {self.name} cannot start from itself")
        path = start.fold(fold).best_weights
        record = self.files.fold(fold).trained
        if not (self.output / path).is_file() and (self.output / record.path).is_file():
            # A finished fold outlives the run that it started from.
            known = records.read(self.output, record)["inputs"]
            return {path: known[path]} if path in known else {}
        return {path: lineage.trained(self.output, start.name, fold)["outputs"][path]}

    def _saw_phantoms(self, fold: int) -> bool:
        """Whether the fold was trained on phantoms, or the run that it started from."""
        if self.settings.init_from is not None:
            start = records.read(self.output, self._start_run().fold(fold).trained)
            if start.get("phantoms"):
                return True
        return bool(lineage.prepared(self.output)["phantoms"])

    def _start_run(self) -> artifacts.Run:
        assert self.settings.init_from is not None
        return artifacts.Run(self.settings.init_from.removeprefix("runs/"))

    def _lock(self) -> AbstractContextManager[Path]:
        """Lock what the folds share: several machines may start them at the same time."""
        return locks.lock(
            self.output, f"02_train-{self.name}", patience_s=RUN_PATIENCE_S, alone=self.alone
        )

    def _lock_name(self, fold: int) -> str:
        """With a space, which no name of a run holds: "a-fold0" is another run than "a"."""
        return f"02_train-{self.name} fold{fold}"


def finish(training: Training) -> dict[str, Any]:
    """Train from the last save to the last epoch -> facts for the fold's record.

    Raises Stopped when asked to stop, with everything saved; BadInput for what the user can
    repair, such as too little memory or disk.
    """
    started, fold = time.perf_counter(), training.data.fold
    locks.check_room(training.data.output, bytes_needed(training))
    training.resume()
    progress = training.state.progress
    if progress.epoch or progress.step:
        batches = f" and {progress.step} batches" if progress.step else ""
        distributed.say(f"fold {fold}: resuming after epoch {progress.epoch}{batches}")
    try:
        settle_precision(training)
        training.run()
    except (RuntimeError, MemoryError) as error:
        if runtime.is_out_of_memory(error):
            raise out_of_memory(training) from error
        raise
    progress = training.state.progress
    if not math.isfinite(progress.best_score):
        raise BadInput(f"fold {fold}: no epoch gave finite weights and scores: lower learning_rate")
    minutes = (time.perf_counter() - started) / 60
    where = f"epoch {progress.best_epoch}" if progress.best_epoch else "the mean of epochs"
    best = f"best SIIM Dice {progress.best_score:.4f}, {where}"
    distributed.say(f"fold {fold}: {best}, in {minutes:.1f} minutes")
    return {
        "best_score": progress.best_score,
        "seconds": sum(row["seconds"] for row in progress.history),
        "device": devices.device_name(training.device),
        "precision": training.optimization.precision,
        "processes": distributed.size(),
        "peak_memory_mib": runtime.peak_memory_mib(training.device),
    }


@contextmanager
def memory_for_network(device: torch.device) -> Iterator[None]:
    """Raises BadInput where memory is not enough even before the first step."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not runtime.is_out_of_memory(error):
            raise
        raise BadInput(
            f"out of memory before the first step: end what else uses the memory of {device}, "
            "or choose another --device"
        ) from error


def bytes_needed(training: Training) -> int:
    """Roughly the disk space that checkpoints will take in addition to the existing ones."""
    config = training.config
    weights = sum(value.nbytes for value in training.network.state_dict().values())
    # With Adam's two moments and the moving average.
    state = weights * (3 if config.ema_decay is None else 4)
    if training.checkpoints.exist():
        return state  # a new one is written before an old one goes
    kept = weights * (config.average_best + 1 if config.average_best > 1 else 0)
    return 3 * state + weights + kept


def settle_precision(training: Training) -> None:
    """Where only timing can tell in which precision a fold trains faster, time a step of each."""
    optimization = training.optimization
    if not optimization.needs_timing:
        return
    precision, ratio = distributed.on_main(optimization.faster_precision)
    optimization.compute_in(precision)
    training.state.save()  # killed before its first save, the fold would be timed again
    distributed.say(
        f"fold {training.data.fold}: a step in bf16 is {ratio:.2f} times as fast as in fp32 here: "
        f"training in {precision}"
    )


def out_of_memory(training: Training) -> BadInput:
    """The error with what would save memory, in the order to try it."""
    settings, parts, half = training.config, training.parts, precisions.half(training.device)
    batch, size = settings.batch_size, settings.image_size
    same_run = []
    smaller = [more for more in range(parts + 1, batch // 2 + 1) if batch % more == 0]
    if smaller:
        same_run.append(f"--set accumulation_steps={smaller[0]} (the same batch in smaller parts)")
    if half is not None and training.optimization.precision == precisions.FP32:
        same_run.append(f"--set precision={half}")
    other_run = [] if smaller else [f"--set image_size with less than {size}"]
    if batch // parts > 2:
        other_run.append(f"--set batch_size={parts * (batch // parts // 2)}")
    advice = [f"this run continues with {' or '.join(same_run)}"] if same_run else []
    if other_run:
        advice.append(f"under another --run or with --overwrite: {' or '.join(other_run)}")
    return BadInput(
        f"out of memory with {batch // parts} images at a time at {size} x {size}; everything "
        f"saved so far is intact. {'; '.join(advice).capitalize()}"
    )
