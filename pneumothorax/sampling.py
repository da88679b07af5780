"""Sliding sampling: which images an epoch holds, as a function of seed and epoch alone.

Paper, section 3.1.1: positives to negatives 2:1 early, 1:1 in the middle and late stages. An epoch holds every
positive once and as many negatives as the ratio asks for; no negative comes twice before all have come once.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


class SlidingSampling:
    """Indices of each epoch. Nothing is remembered between calls: a resumed run draws the same images.

    Args:
        positives, negatives: indices into the data set.
        schedule: (share of training done, positives per negative), the shares rising from 0.
    """

    def __init__(
        self,
        positives: Sequence[int],
        negatives: Sequence[int],
        schedule: Sequence[tuple[float, float]],
        *,
        epochs: int,
        seed: int,
    ) -> None:
        self.positives = np.asarray(positives, dtype=np.int64)
        self.negatives = np.asarray(negatives, dtype=np.int64)
        self.schedule = tuple(schedule)
        self.epochs = epochs
        self.seed = seed

    def ratio(self, epoch: int) -> float:
        """Positives per negative asked for in this epoch (counted from 0)."""
        return [ratio for share, ratio in self.schedule if share <= epoch / self.epochs][-1]

    def n_negatives(self, epoch: int) -> int:
        return round(len(self.positives) / self.ratio(epoch)) if len(self.negatives) else 0

    def indices(self, epoch: int) -> np.ndarray:
        """(positives + negatives,) int64, shuffled."""
        first = sum(self.n_negatives(earlier) for earlier in range(epoch))
        drawn = np.concatenate([self.positives, self._negatives(first, first + self.n_negatives(epoch))])
        return np.random.default_rng([self.seed, 0, epoch]).permutation(drawn)

    def _negatives(self, first: int, last: int) -> np.ndarray:
        """Positions first..last of an endless row of shuffles, each of which holds every negative once."""
        n = len(self.negatives)
        if first == last:
            return self.negatives[:0]
        rounds = range(first // n, (last - 1) // n + 1)
        shuffles = [np.random.default_rng([self.seed, 1, number]).permutation(self.negatives) for number in rounds]
        start = first - rounds.start * n
        return np.concatenate(shuffles)[start : start + last - first]


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) for a DataLoader; the epoch travels with the index, so workers need no state."""

    def __init__(self, sampling: SlidingSampling, batch_size: int) -> None:
        self.sampling = sampling
        self.batch_size = batch_size
        self.epoch = 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        indices = self.sampling.indices(self.epoch).tolist()
        for start in range(0, len(indices), self.batch_size):
            batch = indices[start : start + self.batch_size]
            if len(batch) > 1 or len(indices) == 1:  # batch normalisation has no statistics of a single image
                yield [(self.epoch, index) for index in batch]

    def __len__(self) -> int:
        full, rest = divmod(len(self.sampling.positives) + self.sampling.n_negatives(self.epoch), self.batch_size)
        return full + (rest > 1) if full else 1
