"""The checkpoints of one fold: the last state and the one before it, the best weights, those kept to be averaged."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pneumothorax.compute import checkpoint
from pneumothorax.errors import BadInput
from pneumothorax.pipeline import artifacts
from pneumothorax.training import config

Weights = dict[str, torch.Tensor]
Kept = tuple[float, int]  # score, epoch


@dataclass(frozen=True)
class FoldCheckpoints:
    """`identity` is what every checkpoint here belongs to: its `config`, `inputs` (hashes) and `fold`."""

    output: Path
    files: artifacts.Fold
    identity: dict[str, Any]

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

    def save(self, state: dict[str, Any]) -> None:
        """A state to go on from; the one before it stays as `previous`."""
        checkpoint.save(self.last, {**self.identity, **state}, keep=self.previous)

    def save_weights(self, path: Path, weights: Weights, **facts: Any) -> None:
        checkpoint.save(path, {**self.identity, **facts, "network": weights})

    def exist(self) -> bool:
        """Whether there is a state to go on from."""
        return self.last.exists() or self.previous.exists()

    def latest(self) -> tuple[dict[str, Any], Path]:
        """The last state, or the one before it where that is damaged.

        Raises BadInput when they belong to another experiment or when nothing usable is left.
        """
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
                print(f"warning: {problems[0]}; going on from {path}")
            return state, path
        raise BadInput("\n  ".join([*problems, self._remedy()]))

    def load_weights(self, path: Path) -> Weights:
        """Weights that belong to this fold of this experiment; there is no other copy of them."""
        try:
            state = checkpoint.load(path)
            self._check_same(state, path)
        except BadInput as error:
            raise BadInput(f"{error}\n  {self._remedy()}") from error
        return state["network"]

    def drop_kept(self, *, needed: set[int]) -> None:
        """Delete kept weights but those of the epochs `needed`."""
        paths = {self.kept(epoch) for epoch in needed}
        for path in self.kept(0).parent.glob("epoch*.pt"):
            if path not in paths:
                path.unlink()

    def _remedy(self) -> str:
        return f"--fold {self.identity['fold']} --overwrite trains this fold anew"

    def _check_same(self, state: dict[str, Any], path: Path) -> None:
        own = self.identity
        differences = config.differences(state.get("config", {}), own["config"])
        inputs = state.get("inputs", {})
        differences += [
            f"{name} changed since"
            for name in own["inputs"]
            if inputs.get(name) != own["inputs"][name]
        ]
        if state.get("fold") != own["fold"]:
            differences.append(f"fold: {state.get('fold')} there, {own['fold']} now")
        if differences:
            headline = f"{path} belongs to another experiment (another --run, or --overwrite, starts anew):"
            raise BadInput("\n  ".join([headline, *differences]))
