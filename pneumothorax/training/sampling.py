"""Sliding sampling: which images an epoch holds and in which batches, as a function of seed and epoch alone.

Paper, section 3.1.1. An epoch holds every positive once (or `positive_repeat` times, each copy augmented in its own
way) and as many negatives as the schedule asks for; no negative comes twice before all have come once.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from pneumothorax.data.dataset import Item
from pneumothorax.training import schedules


class SlidingSampling:
    """Items of each epoch. Nothing is remembered between calls: a resumed run draws the same images.

    Args:
        positives, negatives: indices into the data set.
        schedule: a name or steps, see schedules.
        positive_repeat: copies of every positive in an epoch.
    """

    def __init__(
        self,
        positives: Sequence[int],
        negatives: Sequence[int],
        schedule: str | schedules.Steps,
        *,
        epochs: int,
        seed: int,
        positive_repeat: int = 1,
    ) -> None:
        self.positives = np.tile(np.asarray(positives, dtype=np.int64), positive_repeat)
        self.copies = np.repeat(np.arange(positive_repeat), len(positives))
        self.negatives = np.asarray(negatives, dtype=np.int64)
        self.schedule = schedule
        self.epochs = epochs
        self.seed = seed

    def ratio(self, epoch: int) -> float:
        """Positives per negative asked for in this epoch (counted from 0)."""
        natural = len(self.positives) / max(1, len(self.negatives))
        return schedules.positives_per_negative(self.schedule, epoch, self.epochs, natural=natural)

    def n_negatives(self, epoch: int) -> int:
        return round(len(self.positives) / self.ratio(epoch)) if len(self.negatives) else 0

    def items(self, epoch: int) -> list[Item]:
        """The positives and the negatives, shuffled together."""
        first = sum(self.n_negatives(earlier) for earlier in range(epoch))
        negatives = self._negatives(first, first + self.n_negatives(epoch))
        indices = np.concatenate([self.positives, negatives])
        copies = np.concatenate([self.copies, np.zeros(len(negatives), dtype=np.int64)])
        order = np.random.default_rng([self.seed, 0, epoch]).permutation(len(indices))
        return [Item(epoch, int(indices[place]), int(copies[place])) for place in order]

    def _negatives(self, first: int, last: int) -> np.ndarray:
        """Positions first..last of an endless row of shuffles, each of which holds every negative once."""
        n = len(self.negatives)
        if first == last:
            return self.negatives[:0]
        rounds = range(first // n, (last - 1) // n + 1)
        shuffles = [
            np.random.default_rng([self.seed, 1, number]).permutation(self.negatives)
            for number in rounds
        ]
        start = first - rounds.start * n
        return np.concatenate(shuffles)[start : start + last - first]


class EpochBatches(Sampler[list[Item]]):
    """An epoch's batches for the DataLoader of one of `size` processes, each batch in parts that are computed in turn.

    The epoch holds the same items in the same batches whatever the number of processes. Of every part, a process gets
    every size-th item from its rank on; where a part has not enough for all, its first items fill up, to be left out
    of the loss (`real` says how many count). `epoch` and `first_part` (parts already trained on are left out) are set
    from outside; the epoch travels with the item, so workers need no state.
    """

    def __init__(
        self,
        sampling: SlidingSampling,
        batch_size: int,
        *,
        parts: int = 1,
        rank: int = 0,
        size: int = 1,
    ) -> None:
        self.sampling = sampling
        self.batch_size = batch_size
        self.part_size = batch_size // parts
        self.rank, self.size = rank, size
        self.epoch = 0
        self.first_part = 0

    def steps(self) -> list[list[list[Item]]]:
        """Every batch of the epoch over all processes, as a list of parts, from the first on."""
        items = self.sampling.items(self.epoch)
        steps = [_chunks(batch, self.part_size) for batch in _chunks(items, self.batch_size)]
        if (
            len(items) > 1 and len(steps[-1][-1]) == 1
        ):  # batch normalisation has no statistics of a single image
            steps[-1].pop()
        return [step for step in steps if step]

    def __iter__(self) -> Iterator[list[Item]]:
        parts = [part for step in self.steps() for part in step]
        for part in parts[self.first_part :]:
            yield self.own(part)

    def own(self, part: list[Item]) -> list[Item]:
        """This process's items of a part: the same number on every process, at least two where the part has two."""
        n = max(-(-len(part) // self.size), min(2, len(part)))
        return [part[(self.rank + self.size * place) % len(part)] for place in range(n)]

    def real(self, part: list[Item], rank: int) -> int:
        """How many items of `own` count on a process: the ones before the part is used up."""
        return len(range(rank, len(part), self.size))

    def __len__(self) -> int:
        return sum(len(step) for step in self.steps()) - self.first_part


def _chunks(items: list[Item], size: int) -> list[list[Item]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
