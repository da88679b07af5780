"""Thresholds are fitted on maps of single networks and used on maps of all networks together.

A simulation: five networks see the same lesions and the same false alarms, and each makes
its own errors, too. Mean logits stay closer to single networks than mean probabilities do.
"""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from pneumothorax.masks import postprocess, thresholds
from pneumothorax.prediction import probability_maps
from tests.helpers.images import disc

SIZE, IMAGES = 32, 400
SHARES = {"as in training": 0.3, "half as many": 0.15, "twice as many": 0.6}


class Opinionated(nn.Module):
    """Bright spots are lesions, and so is what its own filter finds in the noise."""

    def __init__(self, seed):
        super().__init__()
        own = torch.randn(9, 9, generator=torch.Generator().manual_seed(seed))
        self.own = (own + own.flip(1))[None, None] / 2

    def outputs(self, images):
        bright = functional.avg_pool2d(images, 5, 1, 2, count_include_pad=False)
        own = functional.conv2d(images - bright, self.own, padding=4)
        return 80 * (bright - 0.5) - 14 + 20 * functional.avg_pool2d(own, 7, 1, 3), None


def radiographs(seed):
    """(images (N, 1, 32, 32) in [0, 1], truths (N, 32, 32)); the first half has a lesion."""
    rng = np.random.default_rng(seed)
    images = 0.5 + 0.12 * rng.standard_normal((IMAGES, SIZE, SIZE))
    truths = np.zeros((IMAGES, SIZE, SIZE), np.uint8)
    for number in range(IMAGES):
        spot = disc(SIZE, *rng.integers(6, 26, 2), int(rng.integers(3, 6)))
        lesion = number < IMAGES // 2
        truths[number] = spot * lesion
        images[number] += spot * max(0.0, rng.normal(0.2 if lesion else 0.08, 0.08))
    return torch.from_numpy(images.clip(0, 1)).float()[:, None], truths


def stored(networks, images):
    maps, _ = probability_maps.probabilities(networks, images)
    return postprocess.quantise(maps[:, 0].numpy())


def search(maps, truths):
    grid = thresholds.Grid()
    profiles = [thresholds.profile(*pair, grid) for pair in zip(maps, truths, strict=True)]
    return thresholds.Search(profiles, grid)


def chosen_images(share):
    """(N,) bool: all negatives, and as many positives as the share asks for; at most all."""
    half = IMAGES // 2
    positives = min(half, round(half * share / (1 - share)))
    negatives = min(half, round(positives * (1 - share) / share))
    numbers = np.arange(IMAGES)
    return (numbers < positives) | ((numbers >= half) & (numbers < half + negatives))


@pytest.fixture(scope="module")
def found():
    """(thresholds of single networks, searches over test images: {way of averaging: Search})."""
    networks = [Opinionated(seed) for seed in range(5)]
    images, truths = radiographs(seed=1)
    maps = np.empty((IMAGES, SIZE, SIZE), np.uint8)
    for number, network in enumerate(networks):  # each image is out of one network's fold
        maps[number::5] = stored([network], images[number::5])
    share = chosen_images(SHARES["as in training"])
    triplet = search(maps, truths).scores(share).choose().triplet
    images, truths = radiographs(seed=2)
    alone = [stored([network], images) for network in networks]
    averaged = {
        "logits": stored(networks, images),
        "probabilities": np.rint(np.mean(alone, axis=0)).astype(np.uint8),
        "none": alone[0],
    }
    return triplet, {way: search(maps, truths) for way, maps in averaged.items()}


def test_thresholds_of_single_networks_suit_the_mean_logit_better(found):
    triplet, searches = found
    score = {
        (way, name): search.image_dice(triplet)[chosen_images(share)].mean()
        for way, search in searches.items()
        for name, share in SHARES.items()
    }
    logits, probabilities = (
        np.array([score[way, name] for name in SHARES]) for way in ("logits", "probabilities")
    )
    assert logits.mean() > probabilities.mean() + 0.002
    assert score["logits", "as in training"] > score["probabilities", "as in training"]
    assert (logits > probabilities - 0.01).all()  # whatever the share of positives
    assert score["logits", "as in training"] > score["none", "as in training"]  # averaging helps


def test_the_mean_logit_calls_more_images_positive_than_the_mean_probability(found):
    triplet, searches = found
    top = searches["logits"].grid.tops.index(triplet.top)
    images = chosen_images(SHARES["as in training"])
    called = {
        way: float((one.top_areas[images, top] >= max(triplet.min_area, 1)).mean())
        for way, one in searches.items()
    }
    assert called["probabilities"] < called["logits"] < called["none"]
