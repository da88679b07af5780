"""Sliding sampling: which images an epoch holds, in which batches, given seed and epoch alone.

Paper, section 3.1.1. An epoch holds every positive once (or `positive_repeat` times, each
copy augmented differently) and as many negatives as the schedule asks for. No negative is
repeated before all have been used.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from pneumothorax.data.dataset import Item

# (share of training done, positives per negative) pairs, the shares rising from 0.
Steps = tuple[tuple[float, float], ...]

NATURAL = "natural"  # every image once: the data's own ratio
LINEAR = "linear"  # the share of positives falls evenly from LINEAR_SHARES[0] to LINEAR_SHARES[1]
LINEAR_SHARES = (0.8, 0.22)  # 0.22: the share in the competition's training images
NAMED_STEPS: dict[str, Steps] = {
    # Paper: 2:1 early, 1:1 in the middle and late stages. It gives no switch point.
    "paper": ((0.0, 2.0), (0.33, 1.0)),
    # First place of SIIM-ACR: shares of positives 0.8, 0.6 and 0.4, a third of training each.
    "steps": ((0.0, 0.8 / 0.2), (1 / 3, 0.6 / 0.4), (2 / 3, 0.4 / 0.6)),
}

Batch = list[list[Item]]  # in parts, which are computed one after the other


def positives_per_negative(
    schedule: str | Steps, epoch: int, epochs: int, *, natural: float
) -> float:
    """What the schedule asks for in `epoch` (from 0) of `epochs`.

    Args:
        schedule: a name (TrainConfig.sampling), or steps.
        natural: positives per negative in the data.
    """
    if schedule == NATURAL:
        return natural
    if schedule == LINEAR:
        first, last = LINEAR_SHARES
        share = first + (last - first) * epoch / max(1, epochs - 1)
        return share / (1 - share)
    steps = NAMED_STEPS[schedule] if isinstance(schedule, str) else schedule
    return [ratio for share, ratio in steps if share <= epoch / epochs][-1]


class SlidingSampling:
    """The items of each epoch. They depend on the epoch alone: a resumed run draws the same images.

    Args:
        positives, negatives: indices into the data set.
        schedule: a name (TrainConfig.sampling), or steps.
        positive_repeat: copies of every positive in an epoch.
    """

    def __init__(
        self,
        positives: Sequence[int],
        negatives: Sequence[int],
        schedule: str | Steps,
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
        """Positives per negative asked for in this epoch (from 0)."""
        natural = len(self.positives) / max(1, len(self.negatives))
        return positives_per_negative(self.schedule, epoch, self.epochs, natural=natural)

    def n_negatives(self, epoch: int) -> int:
        return round(len(self.positives) / self.ratio(epoch)) if len(self.negatives) else 0

    def n_batches(self, epoch: int, batch_size: int) -> int:
        """The number of an epoch's batches, as EpochBatches makes them."""
        n = len(self.positives) + self.n_negatives(epoch)
        return -(-n // batch_size) - (n > 1 and n % batch_size == 1)

    def items(self, epoch: int) -> list[Item]:
        """The epoch's positives and negatives, shuffled together."""
        first = sum(self.n_negatives(earlier) for earlier in range(epoch))
        negatives = self._negatives(first, first + self.n_negatives(epoch))
        indices = np.concatenate([self.positives, negatives])
        copies = np.concatenate([self.copies, np.zeros(len(negatives), dtype=np.int64)])
        order = np.random.default_rng([self.seed, 0, epoch]).permutation(len(indices))
        return [Item(epoch, int(indices[place]), int(copies[place])) for place in order]

    def _negatives(self, first: int, last: int) -> np.ndarray:
        """Positions first..last of an endless row of shuffles, each of all negatives."""
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
    """One process's share of an epoch's batches, part by part, for its DataLoader.

    The batches are the same for any number of processes. Of every part, a process gets
    every `size`-th item, starting with its rank. If a part does not divide evenly, its
    first items are repeated so that all processes have equal work; `real` says how many
    items count in the loss. The epoch travels with each item, so workers need no state.
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
        self.set_epoch(0)

    def set_epoch(self, epoch: int, *, done: int = 0) -> None:
        """Choose the epoch (from 0) to iterate over, without the first `done` batches."""
        self._epoch, self._done = epoch, done

    def batches(self) -> list[Batch]:
        """The epoch's remaining batches, over all processes."""
        items = self.sampling.items(self._epoch)
        batches = [_chunks(batch, self.part_size) for batch in _chunks(items, self.batch_size)]
        if len(items) > 1 and len(batches[-1][-1]) == 1:  # batch norm needs two images
            batches[-1].pop()
        return [batch for batch in batches if batch][self._done :]

    def __iter__(self) -> Iterator[list[Item]]:
        for batch in self.batches():
            yield from map(self.own, batch)

    def own(self, part: list[Item]) -> list[Item]:
        """This process's items of a part, the same number on each process, two if possible."""
        n = max(-(-len(part) // self.size), min(2, len(part)))
        return [part[(self.rank + self.size * place) % len(part)] for place in range(n)]

    def real(self, part: list[Item], rank: int) -> int:
        """How many of a process's first items of a part count: those that are not repeats."""
        return len(range(rank, len(part), self.size))

    def __len__(self) -> int:
        return sum(map(len, self.batches()))


def _chunks(items: list[Item], size: int) -> list[list[Item]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
