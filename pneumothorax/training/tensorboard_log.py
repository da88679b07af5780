"""The history for TensorBoard, with a few validation images: `tensorboard --logdir output/runs`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pneumothorax.plotting import PREDICTION_RGB, TRUTH_RGB

GROUPS = {
    "loss": ("train_loss", "skipped_steps"),
    "score": ("siim_dice", "positive_dice", "all_empty"),
    "schedule": ("learning_rate", "positives_per_negative", "positives", "negatives"),
    "speed": ("seconds", "images_per_second"),
}


class TensorBoardLog:
    """Event files below `folder`; epochs that an interrupted process wrote after `finished_epochs` are not shown."""

    def __init__(self, folder: Path, *, finished_epochs: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=finished_epochs + 1)

    def scalars(self, row: dict[str, Any]) -> None:
        """One row of the history, as "<group>/<column>" at its epoch."""
        for group, names in GROUPS.items():
            for name in names:
                if not math.isnan(row[name]):
                    self.writer.add_scalar(f"{group}/{name}", row[name], row["epoch"])
        self.writer.flush()

    def overlays(
        self,
        images: Sequence[np.ndarray],
        masks: Sequence[np.ndarray],
        maps: Sequence[np.ndarray],
        *,
        epoch: int,
    ) -> None:
        """One picture of several images side by side: (S, S) uint8 each, masks of 0 and 1, maps float32 in [0, 1]."""
        pictures = [
            overlay(image, mask, found >= 0.5)
            for image, mask, found in zip(images, masks, maps, strict=True)
        ]
        self.writer.add_image(
            "truth blue, prediction orange", np.hstack(pictures), epoch, dataformats="HWC"
        )
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


def overlay(image: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """(S, S) image and masks of 0 and 1 -> (S, S, 3) uint8 RGB with both outlines.

    The prediction's is thin and on top of the truth's thick one: where they agree, both are seen.
    """
    picture = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    for mask, colour, width in ((truth, TRUTH_RGB, 3), (predicted, PREDICTION_RGB, 1)):
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, contours, -1, colour, width)
    return picture
