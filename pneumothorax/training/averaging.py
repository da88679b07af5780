"""The best epochs of a fold: their weights on disk, and the mean of several."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.optim import swa_utils
from tqdm import tqdm

from pneumothorax.compute import checkpoint, distributed
from pneumothorax.errors import BadInput
from pneumothorax.training.fold_state import FoldState, Weights


class BestWeights:
    """best.pt, and the weights of the `n_averaged` best epochs if that is more than 1."""

    def __init__(self, state: FoldState, *, n_averaged: int) -> None:
        self.state, self.n_averaged = state, n_averaged
        self.files = state.checkpoints

    def save_epoch(self, score: float) -> None:
        """Save the epoch just finished: its weights if they are among the best, and the state.

        The weights come first. A kill between the two repeats the epoch.
        """
        kept_before = self._kept_epochs()
        weights = self.state.optimization.result.state_dict()
        if not math.isnan(score) and checkpoint.is_finite(weights):
            self._keep(weights, score)
        self.state.save()
        if distributed.is_main():
            # The previous state is the fallback, so the epochs it names are kept too.
            self.files.drop_kept(needed=kept_before | self._kept_epochs())

    def mean_of_kept(self) -> tuple[list[int], Weights]:
        """The best epochs and the mean of their weights, the same on every process.

        Unusable files are left out. Raises BadInput if all are. If no epoch has a score,
        there are no epochs and no weights.
        """
        return distributed.on_main(self._mean_of_kept)

    def _mean_of_kept(self) -> tuple[list[int], Weights]:
        weights, problems = {}, []
        for epoch in sorted(self._kept_epochs()):
            try:
                weights[epoch] = self.files.load_weights(self.files.kept(epoch))
            except BadInput as error:
                problems.append(str(error))
                tqdm.write(f"warning: {error}; the mean leaves it out")
        if problems and not weights:
            raise BadInput(problems[-1])
        return list(weights), mean(list(weights.values())) if weights else {}

    def save_average(self, weights: Weights, score: float, epochs: list[int]) -> None:
        """Make the mean of several epochs the best weights."""
        progress = self.state.progress
        if distributed.is_main():
            self.files.save_weights(
                self.files.best,
                weights,
                epoch=progress.epoch,
                averaged=epochs,
                score=score,
                precision=self.state.optimization.precision,
            )
        progress.set_averaged(score)

    def _keep(self, weights: Weights, score: float) -> None:
        """On a tie the latest epoch is best; many epochs tie while all masks are empty."""
        progress = self.state.progress
        precision = self.state.optimization.precision
        facts = {"epoch": progress.epoch, "score": score, "precision": precision}
        if (
            self.n_averaged > 1
            and progress.keep(score, n=self.n_averaged)
            and distributed.is_main()
        ):
            self.files.save_weights(self.files.kept(progress.epoch), weights, **facts)
        if score >= progress.best_score:
            progress.set_best(score)
            if distributed.is_main():
                self.files.save_weights(self.files.best, weights, **facts)

    def _kept_epochs(self) -> set[int]:
        return {epoch for _, epoch in self.state.progress.kept}


def mean(states: Sequence[Weights]) -> Weights:
    """The mean of several sets of weights of one network; integers come from the first set."""
    return {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in states[0].items()
    }


def estimate_batch_norms(network: nn.Module, images: Iterable[torch.Tensor]) -> None:
    """Estimate batch norm statistics from scratch, as the mean over batches of images.

    Averaged weights need this: averaging the statistics, too, would not give theirs.
    """
    swa_utils.update_bn(images, network)
    distributed.average_buffers(network)
