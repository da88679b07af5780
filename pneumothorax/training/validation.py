"""Scores of a network on its held-out fold, at label resolution, to choose an epoch by."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from pneumothorax import rle
from pneumothorax.compute import beside, distributed
from pneumothorax.compute.interruption import StopRequest
from pneumothorax.data.dataset import Sample, to_network
from pneumothorax.masks import calibration, postprocess, thresholds
from pneumothorax.masks.thresholds import Grid, Profile

SELECTION_GRID = Grid(
    tops=(0.5, 0.7, 0.9), min_areas=(0, 500, 1000, 2000, 4000), bottoms=(0.3, 0.5)
)
WITH_HEAD = thresholds.by_probability(SELECTION_GRID)
MAX_EXAMPLES = 4


class Scores(NamedTuple):
    """Scores of an epoch, in [0, 1]; all NaN without validation or with maps that are not finite.

    siim_dice: at the best thresholds of SELECTION_GRID; with a classification head, of
        the image's calibrated probability and the bottom one, as stage 04 uses them.
    positive_dice: of positive images, at 0.5.
    all_empty: SIIM Dice of the all-empty baseline.
    """

    siim_dice: float = math.nan
    positive_dice: float = math.nan
    all_empty: float = math.nan


class Measured(NamedTuple):
    """What the scores need to know about an image.

    `score` is that of the image as a whole, None without a classification head.
    """

    profile: Profile
    score: float | None = None


class Example(NamedTuple):
    """One validation image with its mask (S, S) uint8 and its probability map (S, S) float32."""

    image: np.ndarray
    mask: np.ndarray
    probabilities: np.ndarray


@torch.inference_mode()
def validate(
    network: Any,
    batches: Iterable[Sample],
    rows: pd.DataFrame,
    labels: dict[str, tuple[str, ...]],
    *,
    autocast: torch.autocast,
    device: torch.device,
    stop: StopRequest,
) -> tuple[Scores, list[Example]] | None:
    """Scores over all processes, and this process's first positive images; None if stopped.

    SIIM Dice is that of the best thresholds for this fold: fixed thresholds would prefer
    epochs in which the network still leaves every mask empty. This score is optimistic;
    stage 04 scores with thresholds of the other folds.

    Args:
        network: has `outputs`, as models.network.SegmentationNetwork.
        rows: manifest rows of the fold, by the samples' position.
        labels: run-length masks by image id.
    """
    network.eval()
    distributed.take_buffers_of_main(network)
    images = _Images(rows, labels)
    finite = True

    def predicted() -> Iterator[tuple[int, np.ndarray, float | None]]:
        nonlocal finite
        for batch in batches:
            if stop.is_due():
                return
            with autocast:
                maps, of_head = _probabilities(network, to_network(batch.image, device))
            finite = bool(np.isfinite(maps).all()) and all(
                p is None or math.isfinite(p) for p in of_head
            )
            if not finite:
                return
            images.keep_examples(batch, maps)
            positions = batch.position.tolist()  # type: ignore[attr-defined]
            yield from zip(positions, maps, of_head, strict=True)

    own = dict(beside.in_order(images.measure, predicted()))
    everyones = distributed.gather((stop.is_due(), finite, own))
    if any(stopped for stopped, _, _ in everyones):
        return None
    if not all(finite for _, finite, _ in everyones):
        return Scores(), []
    everyone = {position: one for _, _, found in everyones for position, one in found.items()}
    return scores([everyone[position] for position in range(len(rows))]), images.examples


def _probabilities(network: Any, images: torch.Tensor) -> tuple[np.ndarray, Sequence[float | None]]:
    """(N, S, S) of the pixels; of the N images by the classification head, None without one."""
    maps, of_images = network.outputs(images)
    of_head = [None] * len(images)
    if of_images is not None:
        of_head = of_images.float().sigmoid().tolist()
    return maps.float().sigmoid().cpu().numpy()[:, 0], of_head


class _Images:
    """The validation images' labels, by position, and a few images as examples."""

    def __init__(self, rows: pd.DataFrame, labels: dict[str, tuple[str, ...]]) -> None:
        self.runs = [labels.get(image_id, ()) for image_id in rows["image_id"]]
        self.shapes = list(zip(rows["height"], rows["width"], strict=True))
        self.examples: list[Example] = []

    def measure(self, predicted: tuple[int, np.ndarray, float | None]) -> tuple[int, Measured]:
        """An image's position, its map (S, S), and its probability by a classification head."""
        position, probabilities, of_head = predicted
        truth = rle.union(self.runs[position], self.shapes[position])
        stored = postprocess.quantise(probabilities)
        if of_head is None:
            return position, Measured(thresholds.profile(stored, truth, SELECTION_GRID))
        highest, classification = np.array([[probabilities.max()], [of_head]])
        score = calibration.score(highest, classification).item()
        return position, Measured(thresholds.profile(stored, truth, WITH_HEAD), score)

    def keep_examples(self, batch: Sample, maps: np.ndarray) -> None:
        """The first positive images, with their probability maps, (N, S, S)."""
        for place, position in enumerate(batch.position.tolist()):  # type: ignore[attr-defined]
            if self.runs[position] and len(self.examples) < MAX_EXAMPLES:
                image, mask = batch.image[place, 0].numpy(), batch.mask[place, 0].numpy()
                self.examples.append(Example(image, mask, maps[place]))


def scores(images: list[Measured]) -> Scores:
    """Scores of all images of a fold."""
    profiles = [image.profile for image in images]
    score = np.array([image.score for image in images if image.score is not None])
    search = thresholds.Search(profiles, WITH_HEAD if score.size else SELECTION_GRID)
    negative = search.empty_dice == 1
    p = calibration.fit(score, ~negative)(score) if score.size else None
    at_half = SELECTION_GRID.bottoms.index(0.5)
    everyone = np.ones(len(images), dtype=bool)
    return Scores(
        siim_dice=search.best(everyone, p).siim_dice,
        positive_dice=float(search.dice[~negative, at_half, 0, 0].mean()),
        all_empty=float(negative.mean()),
    )
