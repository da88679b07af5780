"""Sliding sampling: schedule, seed and epoch alone decide what an epoch holds."""

import pytest

from pneumothorax.training.sampling import EpochBatches, SlidingSampling

POSITIVES, NEGATIVES = range(100, 130), range(500, 600)
PAPER = [(0, 2), (0.33, 1)]


def sampling(
    schedule=PAPER,
    *,
    positives=POSITIVES,
    negatives=NEGATIVES,
    epochs=12,
    seed=0,
    positive_repeat=1,
):
    return SlidingSampling(
        list(positives),
        list(negatives),
        schedule,
        epochs=epochs,
        seed=seed,
        positive_repeat=positive_repeat,
    )


def split(items):
    """(positives, negatives) of an epoch, as lists of positions."""
    positions = [item.position for item in items]
    return [i for i in positions if i in POSITIVES], [i for i in positions if i in NEGATIVES]


def test_the_papers_schedule_is_two_to_one_at_first_and_one_to_one_from_a_third_on():
    # 12 epochs: 0.33 is reached at epoch 4 (4 / 12 = 0.333), not at epoch 3 (0.25).
    for epoch in range(12):
        positives, negatives = split(sampling().items(epoch))
        assert len(positives) == 30
        assert len(negatives) == (15 if epoch < 4 else 30)


@pytest.mark.parametrize(
    ("schedule", "ratios", "counts"),
    [
        ([(0, 1)], [1] * 4, [30] * 4),
        ([(0, 0.5), (0.5, 3)], [0.5, 0.5, 3, 3], [60, 60, 10, 10]),
        ([(0, 0.25)], [0.25] * 4, [120] * 4),  # more than exist: some are repeated
        # 30 / 4 = 7.5, to the even 8
        ([(0, 4), (0.25, 2), (0.5, 1), (0.75, 0.5)], [4, 2, 1, 0.5], [8, 15, 30, 60]),
    ],
)
def test_every_epoch_has_the_ratio_of_the_schedule(schedule, ratios, counts):
    drawn = sampling(schedule, epochs=4)
    assert [len(split(drawn.items(epoch))[1]) for epoch in range(4)] == counts
    assert [drawn.n_negatives(epoch) for epoch in range(4)] == counts
    assert [drawn.ratio(epoch) for epoch in range(4)] == ratios


def test_every_positive_is_used_once_per_epoch():
    for epoch in range(12):
        assert sorted(split(sampling().items(epoch))[0]) == list(POSITIVES)


@pytest.mark.parametrize("schedule", [PAPER, [(0, 0.7)], [(0, 0.2), (0.5, 3)]])
def test_no_negative_is_repeated_before_all_have_been_used(schedule):
    drawn = sampling(schedule, epochs=40)
    stream = []
    for epoch in range(40):
        stream.append(split(drawn.items(epoch))[1])
    counts = dict.fromkeys(NEGATIVES, 0)
    for negatives in stream:
        for negative in negatives:
            counts[negative] += 1
        # After any number of epochs, no negative is two ahead of another.
        assert max(counts.values()) - min(counts.values()) <= 1
    assert min(counts.values()) >= 3


def test_an_epoch_does_not_depend_on_the_epochs_drawn_before_it():
    forward = [sampling().items(epoch) for epoch in range(12)]
    drawn = sampling()
    backward = [drawn.items(epoch) for epoch in reversed(range(12))]
    assert forward == backward[::-1]
    assert forward != [sampling(seed=1).items(epoch) for epoch in range(12)]


def test_epochs_differ_and_are_shuffled():
    first, second = (sampling().items(epoch) for epoch in (5, 6))
    assert first != second
    assert split(sampling().items(5))[0] != list(POSITIVES)
    assert set(split(sampling().items(5))[1]) != set(split(sampling().items(6))[1])


def test_without_negatives_or_positives_an_epoch_holds_the_others():
    assert sorted(item.position for item in sampling(negatives=[]).items(0)) == list(POSITIVES)
    assert sampling(positives=[]).items(0) == []


@pytest.mark.parametrize(
    ("positives", "size", "sizes"),
    [
        (10, 4, [4, 4, 2]),
        (9, 4, [4, 4]),  # of a last batch of one image, batch norm has no statistics
        (8, 4, [4, 4]),
        (3, 4, [3]),
        (1, 4, [1]),  # nothing else to train on
    ],
)
def test_batches_hold_every_image_except_a_single_last_one(positives, size, sizes):
    batches = EpochBatches(sampling([(0, 1)], positives=range(positives), negatives=[]), size)
    batches.set_epoch(3)
    found = list(batches)
    assert [len(batch) for batch in found] == sizes
    assert len(batches) == len(sizes)
    assert {item.epoch for batch in found for item in batch} == {3}
    assert [item for batch in found for item in batch] == batches.sampling.items(3)[: sum(sizes)]


def test_the_batches_are_those_of_the_epoch_that_is_set():
    batches = EpochBatches(sampling(epochs=3), 8)
    lengths = []
    for epoch in range(3):
        batches.set_epoch(epoch)
        assert len(list(batches)) == len(batches)
        lengths.append(len(batches))
    assert lengths == [6, 8, 8]  # 45 images in batches of 8, then 60


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("batch_size", [4, 6, 44])
@pytest.mark.parametrize("positives", [1, 2, 30, 33])
def test_the_number_of_batches_is_known_without_drawing_them(positives, batch_size, parts):
    drawn = sampling([(0, 2), (0.5, 0.75)], positives=range(positives), epochs=4)
    batches = EpochBatches(drawn, batch_size, parts=parts)
    for epoch in range(4):
        batches.set_epoch(epoch)
        assert len(batches.batches()) == drawn.n_batches(epoch, batch_size)


def test_a_closing_batch_of_one_image_is_no_batch():
    # 30 positives and 15 negatives: 45 images.
    drawn = sampling([(0, 2)])
    assert [drawn.n_batches(0, size) for size in (44, 45, 46, 4, 11, 2)] == [1, 1, 1, 11, 4, 22]


def test_named_schedules_by_hand():
    # 4 epochs. Shares of positives: linear 0.8, 0.6067, 0.4133, 0.22;
    # steps 0.8, 0.8, 0.6, 0.4 (at 0, 1/4, 1/2, 3/4).
    def ratios(name):
        drawn = sampling(name, epochs=4)
        return [drawn.ratio(epoch) for epoch in range(4)]

    assert ratios("paper") == [2, 2, 1, 1]
    assert ratios("linear") == pytest.approx(
        [4, 0.60667 / 0.39333, 0.41333 / 0.58667, 0.22 / 0.78], rel=1e-4
    )
    assert ratios("steps") == pytest.approx([4, 4, 1.5, 2 / 3])
    assert ratios("natural") == pytest.approx([0.3] * 4)  # 30 positives, 100 negatives
    assert sorted(split(sampling("natural", epochs=4).items(2))[1]) == list(
        NEGATIVES
    )  # every negative once


def test_repeated_positives_keep_the_ratio_of_the_schedule():
    drawn = sampling([(0, 2)], positive_repeat=3)
    items = drawn.items(0)
    positives, negatives = split(items)
    assert sorted(positives) == sorted(list(POSITIVES) * 3)
    assert len(negatives) == 45  # 90 / 2
    assert len(set(items)) == len(
        items
    )  # copies are told apart, so that each is augmented in its own way
    assert {item.copy for item in items if item.position in NEGATIVES} == {0}


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("n", [12, 13, 15, 18, 19])
def test_processes_share_the_single_process_batches_and_count_every_image_once(size, parts, n):
    def batches(rank, size):
        return EpochBatches(
            sampling([(0, 1)], positives=range(n), negatives=[]),
            6,
            parts=parts,
            rank=rank,
            size=size,
        )

    alone = list(batches(0, 1))
    whole = batches(0, 1)
    shared = [list(batches(rank, size)) for rank in range(size)]
    for number, part in enumerate(alone):
        own = [process[number] for process in shared]
        assert (
            len({len(items) for items in own}) == 1
        )  # equal work, as the exchange of logits needs
        assert len(own[0]) >= min(2, len(part))  # batch normalisation
        counted = [
            item
            for rank, items in enumerate(own)
            for item in items[: whole_count(size, part, rank)]
        ]
        assert sorted(counted) == sorted(part)
    assert [len(part) for part in alone] == [
        len(part) for batch in whole.batches() for part in batch
    ]


def whole_count(size, part, rank):
    return EpochBatches(sampling(), 6, rank=rank, size=size).real(part, rank)


def test_the_rest_of_an_epoch_is_the_whole_epoch_without_its_first_batches():
    batches = EpochBatches(sampling(epochs=3), 8, parts=2)
    whole = list(batches)
    batches.set_epoch(0, done=3)
    assert list(batches) == whole[6:]
    assert len(batches) == len(whole) - 6


def test_a_batch_in_parts_holds_the_same_images():
    in_parts = EpochBatches(sampling(epochs=3), 8, parts=4).batches()
    whole = EpochBatches(sampling(epochs=3), 8).batches()
    together = [[item for part in batch for item in part] for batch in in_parts]
    assert together[:-1] == [parts[0] for parts in whole[:-1]]
    assert {len(part) for batch in in_parts[:-1] for part in batch} == {2}
