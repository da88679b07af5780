"""Sliding sampling: what each epoch holds follows from the schedule, the seed and the epoch alone."""

import pytest

from pneumothorax.sampling import EpochBatches, SlidingSampling

POSITIVES, NEGATIVES = range(100, 130), range(500, 600)
PAPER = [(0, 2), (0.33, 1)]


def sampling(schedule=PAPER, *, positives=POSITIVES, negatives=NEGATIVES, epochs=12, seed=0):
    return SlidingSampling(list(positives), list(negatives), schedule, epochs=epochs, seed=seed)


def split(indices):
    """(positives, negatives) of an epoch, as lists."""
    indices = indices.tolist()
    return [i for i in indices if i in POSITIVES], [i for i in indices if i in NEGATIVES]


def test_the_papers_schedule_is_two_to_one_at_first_and_one_to_one_from_a_third_on():
    # 12 epochs: 0.33 is reached at epoch 4 (4 / 12 = 0.333), not at epoch 3 (0.25).
    for epoch in range(12):
        positives, negatives = split(sampling().indices(epoch))
        assert len(positives) == 30
        assert len(negatives) == (15 if epoch < 4 else 30)


@pytest.mark.parametrize(
    ("schedule", "counts"),
    [
        ([(0, 1)], [30] * 4),
        ([(0, 0.5), (0.5, 3)], [60, 60, 10, 10]),
        ([(0, 0.25)], [120] * 4),  # more than there are: some twice
        ([(0, 4), (0.25, 2), (0.5, 1), (0.75, 0.5)], [8, 15, 30, 60]),  # 30 / 4 = 7.5, to the even 8
    ],
)
def test_every_epoch_has_the_ratio_of_the_schedule(schedule, counts):
    drawn = sampling(schedule, epochs=4)
    assert [len(split(drawn.indices(epoch))[1]) for epoch in range(4)] == counts
    assert [drawn.n_negatives(epoch) for epoch in range(4)] == counts
    assert [drawn.ratio(epoch) for epoch in range(4)] == [
        [ratio for share, ratio in schedule if share <= epoch / 4][-1] for epoch in range(4)
    ]


def test_every_positive_comes_once_per_epoch():
    for epoch in range(12):
        assert sorted(split(sampling().indices(epoch))[0]) == list(POSITIVES)


@pytest.mark.parametrize("schedule", [PAPER, [(0, 0.7)], [(0, 0.2), (0.5, 3)]])
def test_no_negative_comes_twice_before_all_came_once(schedule):
    drawn = sampling(schedule, epochs=40)
    stream = []
    for epoch in range(40):
        stream.append(split(drawn.indices(epoch))[1])
    counts = dict.fromkeys(NEGATIVES, 0)
    for negatives in stream:
        for negative in negatives:
            counts[negative] += 1
        # After any number of epochs, no negative is two ahead of another.
        assert max(counts.values()) - min(counts.values()) <= 1
    assert min(counts.values()) >= 3


def test_an_epoch_is_the_same_whenever_and_however_often_it_is_asked_for():
    forward = [sampling().indices(epoch).tolist() for epoch in range(12)]
    drawn = sampling()
    backward = [drawn.indices(epoch).tolist() for epoch in reversed(range(12))]
    assert forward == backward[::-1]
    assert forward != [sampling(seed=1).indices(epoch).tolist() for epoch in range(12)]


def test_epochs_differ_and_are_shuffled():
    first, second = (sampling().indices(epoch).tolist() for epoch in (5, 6))
    assert first != second
    assert split(sampling().indices(5))[0] != list(POSITIVES)
    assert set(split(sampling().indices(5))[1]) != set(split(sampling().indices(6))[1])


def test_without_negatives_or_positives_an_epoch_holds_the_others():
    assert sorted(sampling(negatives=[]).indices(0).tolist()) == list(POSITIVES)
    assert sampling(positives=[]).indices(0).tolist() == []


@pytest.mark.parametrize(
    ("positives", "size", "sizes"),
    [
        (10, 4, [4, 4, 2]),
        (9, 4, [4, 4]),  # the last batch would hold one image: batch normalisation has no statistics of it
        (8, 4, [4, 4]),
        (3, 4, [3]),
        (1, 4, [1]),  # nothing else to train on
    ],
)
def test_batches_hold_every_image_but_a_last_one_alone(positives, size, sizes):
    batches = EpochBatches(sampling([(0, 1)], positives=range(positives), negatives=[]), size)
    batches.epoch = 3
    found = list(batches)
    assert [len(batch) for batch in found] == sizes
    assert len(batches) == len(sizes)
    assert {epoch for batch in found for epoch, _ in batch} == {3}
    assert [index for batch in found for _, index in batch] == batches.sampling.indices(3).tolist()[: sum(sizes)]


def test_the_batches_follow_the_epoch_that_is_set():
    batches = EpochBatches(sampling(epochs=3), 8)
    lengths = []
    for epoch in range(3):
        batches.epoch = epoch
        assert len(list(batches)) == len(batches)
        lengths.append(len(batches))
    assert lengths == [6, 8, 8]  # 45 images in batches of 8, then 60
