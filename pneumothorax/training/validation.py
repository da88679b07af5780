"""Scores of a network on its held-out fold, at label resolution, to choose an epoch by."""

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from pneumothorax import rle
from pneumothorax.compute import beside, distributed
from pneumothorax.compute.interruption import StopRequest
from pneumothorax.data.dataset import Sample, to_network
from pneumothorax.masks import postprocess, thresholds
from pneumothorax.masks.thresholds import Grid, Profile

SELECTION_GRID = Grid(
    tops=(0.5, 0.7, 0.9), min_areas=(0, 500, 1000, 2000, 4000), bottoms=(0.3, 0.5)
)
WITH_HEAD = thresholds.by_probability(SELECTION_GRID)
MAX_EXAMPLES = 4


class Scores(NamedTuple):
    """Scores of an epoch, in [0, 1]; all NaN without validation or with maps that are not finite.

    siim_dice: at the best thresholds of SELECTION_GRID; with a classification head, of
        the image's probability and the bottom one, as stage 04 uses them.
    positive_dice: of positive images, at 0.5.
    all_empty: SIIM Dice of the all-empty baseline.
    """

    siim_dice: float = math.nan
    positive_dice: float = math.nan
    all_empty: float = math.nan


class Measured(NamedTuple):
    """What the scores need to know about an image.

    `p_positive` is the output of the classification head, None without one.
    """

    profile: Profile
    p_positive: float | None = None


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
                logits, of_images = network.outputs(to_network(batch.image, device))
            maps = _sigmoid(logits)[:, 0]  # (N, S, S)
            p_positive = [None] * len(maps) if of_images is None else _sigmoid(of_images).tolist()
            finite = all(p is None or math.isfinite(p) for p in [float(maps.sum()), *p_positive])
            if not finite:
                return
            images.keep_examples(batch, maps)
            positions = batch.position.tolist()  # type: ignore[attr-defined]
            yield from zip(positions, maps, p_positive, strict=True)

    own = dict(beside.in_order(images.measure, predicted()))
    everyones = distributed.gather((stop.is_due(), finite, own))
    if any(stopped for stopped, _, _ in everyones):
        return None
    if not all(finite for _, finite, _ in everyones):
        return Scores(), []
    everyone = {position: one for _, _, found in everyones for position, one in found.items()}
    return scores([everyone[position] for position in range(len(rows))]), images.examples


def _sigmoid(logits: torch.Tensor) -> np.ndarray:
    return logits.float().sigmoid().cpu().numpy()


class _Images:
    """The validation images' labels, by position, and a few images as examples."""

    def __init__(self, rows: pd.DataFrame, labels: dict[str, tuple[str, ...]]) -> None:
        self.runs = [labels.get(image_id, ()) for image_id in rows["image_id"]]
        self.shapes = list(zip(rows["height"], rows["width"], strict=True))
        self.examples: list[Example] = []

    def measure(self, predicted: tuple[int, np.ndarray, float | None]) -> tuple[int, Measured]:
        """An image's position, its probability map (S, S) and its probability, if there is one."""
        position, probabilities, p_positive = predicted
        truth = rle.union(self.runs[position], self.shapes[position])
        stored = postprocess.quantise(probabilities)
        grid = SELECTION_GRID if p_positive is None else WITH_HEAD
        return position, Measured(thresholds.profile(stored, truth, grid), p_positive)

    def keep_examples(self, batch: Sample, maps: np.ndarray) -> None:
        """The first positive images, with their probability maps, (N, S, S)."""
        for place, position in enumerate(batch.position.tolist()):  # type: ignore[attr-defined]
            if self.runs[position] and len(self.examples) < MAX_EXAMPLES:
                image, mask = batch.image[place, 0].numpy(), batch.mask[place, 0].numpy()
                self.examples.append(Example(image, mask, maps[place]))


def scores(images: list[Measured]) -> Scores:
    """Scores of all images of a fold."""
    profiles = [image.profile for image in images]
    p_positive = [image.p_positive for image in images if image.p_positive is not None]
    search = thresholds.Search(profiles, WITH_HEAD if p_positive else SELECTION_GRID)
    negative = search.empty_dice == 1
    at_half = SELECTION_GRID.bottoms.index(0.5)
    everyone = np.ones(len(images), dtype=bool)
    return Scores(
        siim_dice=search.best(everyone, np.array(p_positive) if p_positive else None).siim_dice,
        positive_dice=float(search.dice[~negative, at_half, 0, 0].mean()),
        all_empty=float(negative.mean()),
    )
