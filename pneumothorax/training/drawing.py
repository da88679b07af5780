"""The history of a fold as pictures: progress.png, and event files for TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from pneumothorax import plotting
from pneumothorax.pipeline import atomic
from pneumothorax.plotting import PREDICTION_RGB, TRUTH_RGB

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]  # artifacts.HISTORY_COLUMNS

# On white, for image viewers: the file is not part of a page.
STYLE = plotting.Style(
    "progress", "#1a1a1a", "#6b6b6b", plotting.LIGHT.series, "#ffffff", background="#ffffff"
)
# The tags of the columns in TensorBoard.
GROUPS = {
    "loss": ("train_loss", "skipped_steps"),
    "score": ("siim_dice", "positive_dice", "all_empty"),
    "schedule": ("learning_rate", "positives_per_negative", "positives", "negatives"),
    "speed": ("seconds", "images_per_second"),
}


def write_progress(path: Path, rows: Sequence[Row], *, epochs: int, title: str) -> None:
    """Write progress.png of at least one row of the history, with room for all `epochs`."""
    figure = progress_figure(rows, epochs=epochs, title=title)
    atomic.write_bytes(path, plotting.rendered(figure, "png"))


def progress_figure(rows: Sequence[Row], *, epochs: int, title: str) -> Figure:
    """Four panels by epoch: training loss, scores, learning rate and sampling ratio."""
    with STYLE.settings():
        figure = plotting.new(STYLE, 9, 5.5)
        figure.suptitle(title)
        (loss, scores), (rate, ratio) = figure.subplots(2, 2, sharex=True)
        _draw_loss(loss, rows)
        _draw_scores(scores, rows)
        _draw_learning_rate(rate, rows)
        _draw_ratio(ratio, rows)
        for axes in (rate, ratio):
            axes.set_xlabel("epoch")
            axes.xaxis.get_major_locator().set_params(integer=True)
        ratio.set_xlim(0.5, epochs + 0.5)
    return figure


def _column(rows: Sequence[Row], name: str) -> list[float]:
    return [row[name] for row in rows]


def _draw_loss(axes: Axes, rows: Sequence[Row]) -> None:
    losses = _column(rows, "train_loss")
    axes.plot(_column(rows, "epoch"), losses, **STYLE.line(0), marker=".")
    if all(map(math.isnan, losses)):
        _say_empty(axes, "no epoch has a loss")
    axes.set_title("training loss")


def _draw_scores(axes: Axes, rows: Sequence[Row]) -> None:
    validated = [row for row in rows if not math.isnan(row["siim_dice"])]
    names = {"siim_dice": "SIIM Dice", "positive_dice": "positives alone"}
    for number, (name, label) in enumerate(names.items()):
        look = {**STYLE.line(number), "marker": "."}
        axes.plot(_column(validated, "epoch"), _column(validated, name), **look, label=label)
    if validated:
        all_empty = validated[-1]["all_empty"]
        axes.axhline(all_empty, color=STYLE.muted, linestyle=":", label="all-empty baseline")
        axes.legend(loc="best")
    else:
        _say_empty(axes, "no epoch has a score")
    axes.set_title("Dice on the validation fold")


def _draw_learning_rate(axes: Axes, rows: Sequence[Row]) -> None:
    rates = _column(rows, "learning_rate")
    axes.plot(_column(rows, "epoch"), rates, **STYLE.line(0), marker=".")
    if max(rates) >= 10 * min(rates) > 0:
        axes.set_yscale("log")
    else:
        axes.ticklabel_format(
            axis="y", style="sci", scilimits=(-2, 2), useMathText=True, useOffset=False
        )
    axes.set_title("learning rate")


def _draw_ratio(axes: Axes, rows: Sequence[Row]) -> None:
    epochs, ratios = _column(rows, "epoch"), _column(rows, "positives_per_negative")
    axes.step(epochs, ratios, where="mid", **STYLE.line(0))
    axes.plot(epochs, ratios, linestyle="none", marker=".", color=STYLE.colour(0))
    axes.set_ylim(bottom=0)
    axes.set_title("positives per negative")


def _say_empty(axes: Axes, why: str) -> None:
    """A text in place of the scale that matplotlib invents for an empty panel."""
    axes.set_yticks([])
    axes.text(0.5, 0.5, why, ha="center", va="center", color=STYLE.muted, transform=axes.transAxes)


class TensorBoardLog:
    """Event files below `folder`, for `tensorboard --logdir output/runs`.

    Epochs after `finished_epochs` that an interrupted process wrote are hidden.
    """

    def __init__(self, folder: Path, *, finished_epochs: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=finished_epochs + 1)

    def scalars(self, row: Row) -> None:
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
        """One picture of several images side by side.

        Args:
            images: (S, S) uint8.
            masks: (S, S) uint8 of 0 and 1.
            maps: (S, S) float32 probabilities in [0, 1].
        """
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

    The thin outline of the prediction is drawn over the thick one of the truth: both show
    where they agree.
    """
    picture = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    for mask, colour, width in ((truth, TRUTH_RGB, 3), (predicted, PREDICTION_RGB, 1)):
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, contours, -1, colour, width)
    return picture
