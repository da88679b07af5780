"""The data set: images as cached, augmented alike in any number of workers."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pneumothorax.augment import Augmentation
from pneumothorax.data.dataset import InOrder, Item, RadiographDataset, to_network
from pneumothorax.pipeline import artifacts
from pneumothorax.training.sampling import EpochBatches, SlidingSampling
from tests.helpers.stages import run_stage, tiny_input


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A tiny cache of stage 00 at 64, its training rows, and the truth."""
    folder = tmp_path_factory.mktemp("dataset")
    tiny = tiny_input(folder / "in", train=12, test=0)
    run_stage(
        "00_prepare_data.py",
        "--input",
        tiny.folder,
        "--output",
        folder / "out",
        "--size",
        64,
        "--workers",
        1,
    )
    return folder / "out", artifacts.read_table(folder / "out", artifacts.MANIFEST), tiny


def dataset(cache, *, image_size=64, augmentation=None):
    output, rows, _ = cache
    return RadiographDataset(
        output, rows, cache_size=64, image_size=image_size, augmentation=augmentation
    )


def epochs(cache, workers, n=2, seed=42):
    """[(indices, image bytes, mask bytes)] of every batch of `n` epochs."""
    augmentation = Augmentation(size=64, negative=1, positive=1, shift_scale_rotate=1, seed=seed)
    data = dataset(cache, augmentation=augmentation)
    positives, negatives = np.flatnonzero(data.positive), np.flatnonzero(~data.positive)
    batches = EpochBatches(SlidingSampling(positives, negatives, [(0, 1)], epochs=n, seed=3), 5)
    loader = DataLoader(
        data, batch_sampler=batches, num_workers=workers, persistent_workers=workers > 0
    )
    result = []
    for epoch in range(n):
        batches.set_epoch(epoch)
        result += [
            (b.position.tolist(), b.image.numpy().tobytes(), b.mask.numpy().tobytes())
            for b in loader
        ]
    return result


@pytest.mark.filterwarnings(
    "ignore:This DataLoader will create"
)  # more workers than this machine has cores
def test_batches_are_the_same_for_0_1_and_3_workers_and_differ_between_epochs(cache):
    alone = epochs(cache, 0)
    assert len(alone) == 6  # 12 images in batches of 5, 5 and 2, twice
    assert epochs(cache, 1) == alone
    assert epochs(cache, 3) == alone
    first = {
        index: image
        for indices, images, _ in alone[:3]
        for index, image in per_image(indices, images)
    }
    second = {
        index: image
        for indices, images, _ in alone[3:]
        for index, image in per_image(indices, images)
    }
    assert set(first) == set(second) == set(range(12))
    assert sum(first[index] == second[index] for index in first) == 0
    assert epochs(cache, 0, seed=1) != alone


def per_image(indices, data):
    """(index, bytes) of each image of a batch."""
    size = len(data) // len(indices)
    return [(index, data[at * size : (at + 1) * size]) for at, index in enumerate(indices)]


def test_without_augmentation_images_come_as_cached_and_negatives_have_empty_masks(cache):
    data = dataset(cache)
    _, _, tiny = cache
    assert len(data) == 12
    for index, image_id in enumerate(data.image_ids):
        one = data[Item(0, index)]
        assert one.position == index
        assert one.image.shape == one.mask.shape == (1, 64, 64)
        assert one.image.dtype == one.mask.dtype == torch.uint8
        assert bool(one.mask.any()) == bool(tiny.masks[image_id].any())
        assert set(one.mask.unique().tolist()) <= {0, 1}
        torch.testing.assert_close(data[Item(9, index)].image, one.image)
        truth = tiny.masks[image_id]
        step = len(truth) // 64
        share = truth.reshape(64, step, 64, step).mean(axis=(1, 3))
        np.testing.assert_array_equal(one.mask[0].numpy(), share >= 0.5)


def test_a_smaller_image_size_than_the_caches_is_made_from_it(cache):
    data = dataset(cache, image_size=32)
    full = dataset(cache)
    for index in range(12):
        mean = full[Item(0, index)].image[0].numpy().reshape(32, 2, 32, 2).mean(axis=(1, 3))
        assert np.abs(data[Item(0, index)].image[0].numpy() - mean).max() <= 0.5
        assert bool(data[Item(0, index)].mask.any()) == bool(full[Item(0, index)].mask.any())


def test_positives_are_augmented_with_their_own_probability(cache):
    augmentation = Augmentation(size=64, negative=0, positive=1, shift_scale_rotate=0, seed=42)
    data, plain = dataset(cache, augmentation=augmentation), dataset(cache)
    for index in range(12):
        image, original = data[Item(0, index)].image, plain[Item(0, index)].image
        unchanged = torch.equal(image, original) or torch.equal(image, original.flip(2))
        assert unchanged == (not data.positive[index])


def test_copies_of_a_positive_are_augmented_differently(cache):
    augmentation = Augmentation(size=64, negative=1, positive=1, shift_scale_rotate=1, seed=42)
    data = dataset(cache, augmentation=augmentation)
    first, second, again = (data[Item(0, 0, copy)].image for copy in (0, 1, 1))
    assert not torch.equal(first, second)
    assert torch.equal(second, again)


def test_in_order_visits_every_image_once():
    assert [[item.position for item in batch] for batch in InOrder(5, 2)] == [[0, 1], [2, 3], [4]]
    assert [[item.position for item in batch] for batch in InOrder(5, 2, rank=1, size=2)] == [
        [2, 3]
    ]
    assert [len(InOrder(n, 2)) for n in (0, 1, 2, 3, 4)] == [0, 1, 1, 2, 2]


def test_the_network_gets_floats_from_0_to_1():
    images = to_network(torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8), torch.device("cpu"))
    torch.testing.assert_close(images, torch.tensor([[[[0, 0.2, 1.0]]]]))
