"""progress.png: one fold's training so far, drawn from its history after every epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pneumothorax import plotting
from pneumothorax.pipeline import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# White, for image viewers: the file stands alone, outside any page.
STYLE = plotting.Style(
    "progress", "#1a1a1a", "#6b6b6b", plotting.LIGHT.series, "#ffffff", background="#ffffff"
)


def draw(path: Path, rows: Sequence[dict[str, Any]], *, epochs: int, title: str) -> None:
    """Write the picture of the history's rows (artifacts.HISTORY_COLUMNS), at least one, of `epochs` to come."""
    atomic.write_bytes(path, plotting.rendered(figure(rows, epochs=epochs, title=title), "png"))


def figure(rows: Sequence[dict[str, Any]], *, epochs: int, title: str) -> Figure:
    """Loss, scores, learning rate and sampling ratio over all epochs, those to come left blank."""
    epoch = [row["epoch"] for row in rows]

    def column(name: str) -> list[float]:
        return [row[name] for row in rows]

    with STYLE.settings():
        made = plotting.new(STYLE, 9, 5.5)
        made.suptitle(title)
        (loss, scores), (rate, ratio) = made.subplots(2, 2, sharex=True)
        loss.plot(epoch, column("train_loss"), **STYLE.line(0), marker=".")
        if all(map(math.isnan, column("train_loss"))):
            _without_numbers(loss, "no epoch has a loss")
        loss.set_title("training loss")

        validated = [row for row in rows if not math.isnan(row["siim_dice"])]
        for number, (name, label) in enumerate(
            (("siim_dice", "SIIM Dice"), ("positive_dice", "positives alone"))
        ):
            points = [row["epoch"] for row in validated], [row[name] for row in validated]
            scores.plot(*points, **STYLE.line(number), **{"marker": "."}, label=label)
        if validated:
            nothing = validated[-1]["all_empty"]
            scores.axhline(nothing, color=STYLE.muted, linestyle=":", label="all-empty baseline")
            scores.legend(loc="best")
        else:
            _without_numbers(scores, "no epoch has a score")
        scores.set_title("Dice on the validation fold")

        rate.plot(epoch, column("learning_rate"), **STYLE.line(0), marker=".")
        if max(column("learning_rate")) >= 10 * min(column("learning_rate")) > 0:
            rate.set_yscale("log")
        else:
            rate.ticklabel_format(
                axis="y", style="sci", scilimits=(-2, 2), useMathText=True, useOffset=False
            )
        rate.set_title("learning rate")
        ratio.step(epoch, column("positives_per_negative"), where="mid", **STYLE.line(0))
        ratio.plot(
            epoch,
            column("positives_per_negative"),
            linestyle="none",
            marker=".",
            color=STYLE.colour(0),
        )
        ratio.set_ylim(bottom=0)
        ratio.set_title("positives per negative")
        for axes in (rate, ratio):
            axes.set_xlabel("epoch")
            axes.xaxis.get_major_locator().set_params(integer=True)
        ratio.set_xlim(0.5, epochs + 0.5)
    return made


def _without_numbers(axes: Axes, why: str) -> None:
    """Instead of the scale that matplotlib makes up for an empty panel."""
    axes.set_yticks([])
    axes.text(0.5, 0.5, why, ha="center", va="center", color=STYLE.muted, transform=axes.transAxes)
