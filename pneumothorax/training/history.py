"""The history of a fold's training: history.csv, the source of truth, and its pictures.

The pictures are progress.png and event files for TensorBoard.
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import cv2
import numpy as np
from tqdm import tqdm

from pneumothorax import plotting
from pneumothorax.compute import distributed
from pneumothorax.pipeline import artifacts, atomic
from pneumothorax.plotting import PREDICTION_RGB, TRUTH_RGB
from pneumothorax.training.validation import Example

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
# Between two versions of progress.png. Drawing one takes a tenth of a short epoch's time.
PICTURE_SECONDS = 60


class Log:
    """with Log(...) as log: log.epoch(...) after every epoch; the main process alone writes.

    Args:
        files: where the fold's files are, below `output`.
        epochs: of the whole training.
    """

    def __init__(self, output: Path, files: artifacts.Fold, *, epochs: int) -> None:
        self.output, self.files, self.epochs = output, files, epochs
        self.finished_epochs = 0
        self.undrawn: Sequence[Row] = ()
        self.drawn_at = time.monotonic()

    def rewrite(self, rows: Sequence[Row]) -> None:
        """Resume after these rows: the file may have an epoch that the checkpoint lacks."""
        self.finished_epochs = len(rows)
        if distributed.is_main():
            self._write(rows)

    def __enter__(self) -> Self:
        if distributed.is_main():
            folder = self.output / self.files.tensorboard
            self.tensorboard = TensorBoardLog(folder, finished_epochs=self.finished_epochs)
        return self

    def epoch(self, rows: Sequence[Row], examples: Sequence[Example], line: str) -> None:
        """Write the last of all rows so far, and print the line."""
        if not distributed.is_main():
            return
        self._write(rows)
        self.undrawn = rows
        if time.monotonic() - self.drawn_at >= PICTURE_SECONDS:
            self._draw()
        self.tensorboard.scalars(rows[-1])
        if examples:
            images, masks, maps = zip(*examples, strict=True)
            self.tensorboard.overlays(images, masks, maps, epoch=rows[-1]["epoch"])
        tqdm.write(line)

    def __exit__(self, *_: object) -> None:
        if distributed.is_main():
            self.tensorboard.close()
            if self.undrawn:
                self._draw()

    def _draw(self) -> None:
        title = f"{self.files.run}, fold {self.files.number}"
        path = self.output / self.files.progress
        write_progress(path, self.undrawn, epochs=self.epochs, title=title)
        self.undrawn, self.drawn_at = (), time.monotonic()

    def _write(self, rows: Sequence[Row]) -> None:
        text = io.StringIO(newline="")
        columns = (*artifacts.HISTORY_COLUMNS, artifacts.HISTORY_COMPUTED)
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _rounded(value) for key, value in row.items()} for row in rows)
        atomic.write_text(self.output / self.files.history.path, text.getvalue())


def has_stalled(rows: Sequence[Row], *, patience: int | None) -> bool:
    """Whether the first best score is at least `patience` validations old."""
    scores = [row["siim_dice"] for row in rows if not math.isnan(row["siim_dice"])]
    return (
        patience is not None
        and bool(scores)
        and len(scores) - 1 - scores.index(max(scores)) >= patience
    )


def _rounded(value: float | str) -> float | str:
    if isinstance(value, int | str):
        return value
    return "" if math.isnan(value) else f"{value:.6g}"


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
    names = {"siim_dice": "SIIM Dice", "positive_dice": "positive images"}
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
