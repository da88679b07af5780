"""What a fold's training saves and resumes from: progress, weights, optimizer, random numbers."""

import io
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from pneumothorax.compute import beside, checkpoint, distributed, runtime
from pneumothorax.errors import BadInput
from pneumothorax.pipeline import artifacts
from pneumothorax.training import config
from pneumothorax.training.optimization import Optimization, Outcome

State = dict[str, Any]
Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class FoldCheckpoints:
    """A fold's checkpoint files: the last two states, the best weights, epochs to average.

    `identity` is the experiment they all belong to: `config`, `inputs` (hashes), `fold`.
    Files are written, and deleted, one after the other beside the training, by `queue`.
    Methods that read wait for it.
    """

    output: Path
    files: artifacts.Fold
    identity: dict[str, Any]
    queue: beside.Queue = field(default_factory=beside.Queue)

    @property
    def last(self) -> Path:
        return self.output / self.files.last

    @property
    def previous(self) -> Path:
        return self.output / self.files.previous

    @property
    def best(self) -> Path:
        return self.output / self.files.best_weights

    def kept(self, epoch: int) -> Path:
        """Weights of one of the best epochs."""
        return self.output / self.files.kept_weights(epoch)

    def save(self, state: State) -> None:
        """Write a state to resume from; the one before it becomes `previous`."""
        whole = checkpoint.packed({**self.identity, **state})
        self.queue.put(checkpoint.write, self.last, whole, keep=self.previous)

    def save_weights(self, path: Path, weights: Weights, **facts: Any) -> None:
        whole = checkpoint.packed({**self.identity, **facts, "network": weights})
        self.queue.put(checkpoint.write, path, whole)

    def exist(self) -> bool:
        """Whether there is a state to resume from."""
        self.queue.wait()
        return self.last.exists() or self.previous.exists()

    def latest(self) -> tuple[State, Path]:
        """The last state, or the one before it if the last is damaged.

        Raises BadInput if it belongs to another experiment, or if neither is usable.
        """
        self.queue.wait()
        problems = []
        for path in (self.last, self.previous):
            if not path.exists():
                continue
            try:
                state = checkpoint.load(path)
                if not checkpoint.is_finite(state["network"]):
                    raise BadInput(f"{path} holds weights that are not finite")
            except BadInput as error:
                problems.append(str(error))
                continue
            self._check_same(state, path)
            if problems:
                print(f"warning: {problems[0]}; resuming from {path}")
            return state, path
        raise BadInput("\n  ".join([*problems, self._remedy()]))

    def load_weights(self, path: Path) -> Weights:
        """Weights of this fold of this experiment. Raises BadInput if they are not usable."""
        self.queue.wait()
        try:
            state = checkpoint.load(path)
            self._check_same(state, path)
        except BadInput as error:
            raise BadInput(f"{error}\n  {self._remedy()}") from error
        return state["network"]

    def drop_kept(self, *, needed: set[int]) -> None:
        """Delete kept weights except those of the epochs `needed`."""
        self.queue.put(self._drop_kept, needed)

    def _drop_kept(self, needed: set[int]) -> None:
        paths = {self.kept(epoch) for epoch in needed}
        for path in self.kept(0).parent.glob("epoch*.pt"):
            if path not in paths:
                path.unlink()

    def _remedy(self) -> str:
        return f"--fold {self.identity['fold']} --overwrite trains this fold from scratch"

    def _check_same(self, state: State, path: Path) -> None:
        own = self.identity
        differences = config.differences(state.get("config", {}), own["config"])
        inputs = state.get("inputs", {})
        differences += [
            f"{name} changed since"
            for name in own["inputs"]
            if inputs.get(name) != own["inputs"][name]
        ]
        if state.get("fold") != own["fold"]:
            differences.append(f"fold: {state.get('fold')} before, {own['fold']} now")
        if differences:
            headline = (
                f"{path} belongs to another experiment "
                "(choose another --run; --overwrite starts from scratch):"
            )
            raise BadInput("\n  ".join([headline, *differences]))


@dataclass
class Progress:
    """How far a fold's training has come, in plain types.

    The fields from `step` on belong to the epoch under way.
    """

    epoch: int = 0  # finished epochs
    best_score: float = -math.inf
    best_epoch: int = 0  # also where a mean of epochs is best
    bad_in_a_row: int = 0  # steps not taken
    history: list[dict[str, Any]] = field(default_factory=list)
    kept: list[tuple[float, int]] = field(default_factory=list)  # (score, epoch), best first
    step: int = 0  # batches done
    losses: float = 0.0  # their sum, over the steps taken
    skipped_steps: int = 0  # numbers that were not finite
    scaled_down_steps: int = 0  # skipped by fp16's loss scaling, as is normal
    images: int = 0
    seconds: float = 0.0

    def add_step(self, loss: float, outcome: Outcome, *, n_images: int) -> None:
        self.step += 1
        self.images += n_images
        if outcome is Outcome.TAKEN:
            self.bad_in_a_row = 0
            self.losses += loss
            return
        self.bad_in_a_row += 1
        if outcome is Outcome.SCALED_DOWN:
            self.scaled_down_steps += 1
        else:
            self.skipped_steps += 1

    def add_seconds(self, seconds: float) -> None:
        self.seconds += seconds

    @property
    def train_loss(self) -> float:
        """The mean over the steps taken; NaN if there were none."""
        taken = self.step - self.skipped_steps - self.scaled_down_steps
        return self.losses / taken if taken else math.nan

    def end_epoch(self, row: dict[str, Any]) -> None:
        """Add the epoch's row to the history, and start the next one."""
        self.history.append(row)
        self.epoch += 1
        self.step = self.images = self.skipped_steps = self.scaled_down_steps = 0
        self.losses = self.seconds = 0.0

    def keep(self, score: float, *, n: int) -> bool:
        """Whether the epoch just finished is among the `n` best, which are remembered."""
        self.kept = sorted([*self.kept, (score, self.epoch)], reverse=True)[:n]
        return (score, self.epoch) in self.kept

    def set_best(self, score: float) -> None:
        """Note the epoch just finished as the best."""
        self.best_score, self.best_epoch = score, self.epoch

    def set_averaged(self, score: float) -> None:
        """Note the score of the mean of the kept epochs as the best."""
        self.best_score, self.best_epoch = score, 0


class FoldState:
    """Everything that a fold's training resumes from, in memory and on disk."""

    def __init__(
        self,
        network: torch.nn.Module,
        optimization: Optimization,
        checkpoints: FoldCheckpoints,
        device: torch.device,
    ) -> None:
        self.network, self.optimization, self.device = network, optimization, device
        self.checkpoints = checkpoints
        self.progress = Progress()
        # For go_back before the first save. With several processes, torchrun restarts them instead.
        self._beginning = self._packed() if distributed.size() == 1 else None
        self._saved_at = time.monotonic()

    def resume(self) -> bool:
        """Restore the last usable checkpoint; False if there is none.

        Raises BadInput if it belongs to another experiment.
        """
        if not self.checkpoints.exist():
            return False
        self._restore(self._saved())
        self._beginning = None
        return True

    def go_back(self) -> None:
        """Restore the last saved state, or the beginning if nothing is saved."""
        self._restore(self._saved() if self._beginning is None else _unpacked(self._beginning))

    def save(self) -> None:
        """Write a checkpoint on the main process, unless the weights have diverged.

        Packed here, written beside the training: see FoldCheckpoints.
        """
        state = self._collected()
        if distributed.is_main() and checkpoint.is_finite(state["network"]):
            self.checkpoints.save(state)
            self._beginning = None
        self._saved_at = time.monotonic()

    def seconds_since_save(self) -> float:
        """Since the last save, or since this object was made."""
        return time.monotonic() - self._saved_at

    def _collected(self) -> State:
        return {
            "progress": asdict(self.progress),
            "network": self.network.state_dict(),
            "optimization": self.optimization.state(),
            "random": distributed.gather(runtime.random_state(self.device)),
        }

    def _restore(self, state: State) -> None:
        self.network.load_state_dict(state["network"])
        self.optimization.load(state["optimization"])
        self.progress = Progress(**state["progress"])
        if distributed.rank() < len(state["random"]):
            runtime.set_random_state(state["random"][distributed.rank()], self.device)

    def _saved(self) -> State:
        state, path = self.checkpoints.latest()
        checkpoint.check_weights(self.network, state["network"], path)
        return state

    def _packed(self) -> bytes:
        whole = io.BytesIO()
        torch.save(self._collected(), whole)
        return whole.getvalue()


def _unpacked(whole: bytes) -> State:
    state: State = torch.load(io.BytesIO(whole), map_location="cpu", weights_only=True)
    return state
