"""How good a network is on the fold it was not trained on, at label resolution: to choose an epoch by."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from pneumothorax import rle
from pneumothorax.compute import distributed
from pneumothorax.compute.interruption import StopRequest
from pneumothorax.data.dataset import Sample, to_network
from pneumothorax.masks import postprocess, thresholds
from pneumothorax.masks.thresholds import Grid, Profile

SELECTION_GRID = Grid(
    tops=(0.5, 0.7, 0.9), min_areas=(0, 500, 1000, 2000, 4000), bottoms=(0.3, 0.5)
)
MAX_EXAMPLES = 4


class Scores(NamedTuple):
    """siim_dice at the best thresholds of SELECTION_GRID; positive_dice at 0.5; what an empty prediction scores.

    All NaN where nothing was validated or a map was not finite.
    """

    siim_dice: float = math.nan
    positive_dice: float = math.nan
    all_empty: float = math.nan


class Example(NamedTuple):
    """One validation image with its mask (S, S) uint8 and its probabilities (S, S) float32."""

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
    """Scores over all processes, and this one's first positive images; None when asked to stop.

    SIIM Dice is that of the best thresholds for this fold: thresholds fixed beforehand would prefer the epochs in which
    a network predicts nothing yet. It is too high as a score; stage 04 scores with thresholds of the other folds.

    Args:
        rows: manifest rows of the fold, by the samples' position.
        labels: mask rows by image id.
    """
    network.eval()
    distributed.take_buffers_of_main(network)
    image_ids, shapes = (
        rows["image_id"].tolist(),
        list(zip(rows["height"], rows["width"], strict=True)),
    )
    profiles: dict[int, Profile] = {}
    examples: list[Example] = []
    finite = True
    for batch in batches:
        if stop.is_due():
            break
        with autocast:
            logits = network(to_network(batch.image, device))
        maps = logits.float().sigmoid().cpu().numpy()[:, 0]
        finite = finite and bool(np.isfinite(maps).all())
        if not finite:
            break
        for place, position in enumerate(batch.position.tolist()):  # type: ignore[attr-defined]
            truth = rle.union(labels.get(image_ids[position], ()), shapes[position])
            profiles[position] = thresholds.profile(
                postprocess.quantise(maps[place]), truth, SELECTION_GRID
            )
            if len(examples) < MAX_EXAMPLES and labels.get(image_ids[position]):
                examples.append(
                    Example(
                        batch.image[place, 0].numpy(), batch.mask[place, 0].numpy(), maps[place]
                    )
                )

    everyones = distributed.gather((stop.is_due(), finite, profiles))
    if any(stopped for stopped, _, _ in everyones):
        return None
    if not all(finite for _, finite, _ in everyones):
        return Scores(), []
    for _, _, others in everyones:
        profiles.update(others)
    return scores([profiles[position] for position in range(len(rows))]), examples


def scores(profiles: list[Profile]) -> Scores:
    """Of the images' profiles on SELECTION_GRID."""
    search = thresholds.Search(profiles, SELECTION_GRID)
    negative = search.empty_dice == 1
    at_half = SELECTION_GRID.bottoms.index(0.5)
    return Scores(
        siim_dice=search.best(np.ones(len(profiles), dtype=bool))[1],
        positive_dice=float(search.dice[~negative, at_half, 0, 0].mean()),
        all_empty=float(negative.mean()),
    )
