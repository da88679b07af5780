"""Scores of a network on its held-out fold, at label resolution, to choose an epoch by."""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

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
MAX_EXAMPLES = 4


class Scores(NamedTuple):
    """Scores of an epoch, in [0, 1]; all NaN without validation or with maps that are not finite.

    siim_dice: at the best thresholds of SELECTION_GRID.
    positive_dice: of positive images, at 0.5.
    all_empty: SIIM Dice of the all-empty baseline.
    """

    siim_dice: float = math.nan
    positive_dice: float = math.nan
    all_empty: float = math.nan


class Example(NamedTuple):
    """One validation image with its mask (S, S) uint8 and its probability map (S, S) float32."""

    image: np.ndarray
    mask: np.ndarray
    probabilities: np.ndarray


@torch.inference_mode()
def validate(
    network: torch.nn.Module,
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
        rows: manifest rows of the fold, by the samples' position.
        labels: run-length masks by image id.
    """
    network.eval()
    distributed.take_buffers_of_main(network)
    images = _Images(rows, labels)
    finite = True

    def maps() -> Iterator[tuple[int, np.ndarray]]:
        nonlocal finite
        for batch in batches:
            if stop.is_due():
                return
            with autocast:
                logits = network(to_network(batch.image, device))
            found = logits.float().sigmoid().cpu().numpy()[:, 0]  # (N, S, S)
            finite = bool(np.isfinite(found).all())
            if not finite:
                return
            images.keep_examples(batch, found)
            yield from zip(batch.position.tolist(), found, strict=True)  # type: ignore[attr-defined]

    own = dict(beside.in_order(images.profile, maps()))
    everyones = distributed.gather((stop.is_due(), finite, own))
    if any(stopped for stopped, _, _ in everyones):
        return None
    if not all(finite for _, finite, _ in everyones):
        return Scores(), []
    profiles = {position: one for _, _, found in everyones for position, one in found.items()}
    return scores([profiles[position] for position in range(len(rows))]), images.examples


class _Images:
    """The validation images' labels, by position, and a few images as examples."""

    def __init__(self, rows: pd.DataFrame, labels: dict[str, tuple[str, ...]]) -> None:
        self.runs = [labels.get(image_id, ()) for image_id in rows["image_id"]]
        self.shapes = list(zip(rows["height"], rows["width"], strict=True))
        self.examples: list[Example] = []

    def profile(self, found: tuple[int, np.ndarray]) -> tuple[int, Profile]:
        """An image's position and probability map (S, S) -> its position and profile."""
        position, probabilities = found
        truth = rle.union(self.runs[position], self.shapes[position])
        stored = postprocess.quantise(probabilities)
        return position, thresholds.profile(stored, truth, SELECTION_GRID)

    def keep_examples(self, batch: Sample, maps: np.ndarray) -> None:
        """The first positive images, with their probability maps, (N, S, S)."""
        for place, position in enumerate(batch.position.tolist()):  # type: ignore[attr-defined]
            if self.runs[position] and len(self.examples) < MAX_EXAMPLES:
                image, mask = batch.image[place, 0].numpy(), batch.mask[place, 0].numpy()
                self.examples.append(Example(image, mask, maps[place]))


def scores(profiles: list[Profile]) -> Scores:
    """Scores of all images, from their profiles on SELECTION_GRID."""
    search = thresholds.Search(profiles, SELECTION_GRID)
    negative = search.empty_dice == 1
    at_half = SELECTION_GRID.bottoms.index(0.5)
    return Scores(
        siim_dice=search.best(np.ones(len(profiles), dtype=bool))[1],
        positive_dice=float(search.dice[~negative, at_half, 0, 0].mean()),
        all_empty=float(negative.mean()),
    )
