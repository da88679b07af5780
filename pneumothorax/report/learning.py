"""Learning curves: the paper's figure 6, with the loss and the validation score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pneumothorax import plotting
from pneumothorax.pipeline.artifacts import ALL_EMPTY
from pneumothorax.plotting import Look, Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_SWITCHES = 4  # more sampling switches are not marked


def learning(histories: Mapping[str, Sequence[pd.DataFrame]], style: Style) -> Figure:
    """Learning rate, training loss and validation SIIM Dice of each epoch.

    A thin line per fold, a thick one for their mean. A dotted line marks where every run
    changes its ratio of positives to negatives.

    Args:
        histories: {run: history.csv of each fold}; runs without folds are left out.
    """
    numbers = {run: number for number, run in enumerate(histories)}  # colours as in all figures
    histories = {run: folds for run, folds in histories.items() if folds}
    quantities = {
        "learning_rate": "learning rate",
        "train_loss": "training loss",
        "siim_dice": "SIIM Dice, validation fold",
    }
    with style.settings():
        figure = plotting.new(style, 13.0, 4.4)
        panels = figure.subplots(1, len(quantities))
        for axes, (column, label) in zip(panels, quantities.items(), strict=True):
            for place, (run, folds) in enumerate(histories.items()):
                # Learning rates are often the same: the first is widest, so all can be seen.
                above = len(histories) - 1 - place
                width = 2.0 + 1.4 * above if column == "learning_rate" else 2.0
                look = style.line(numbers[run]) | {"linewidth": width, "label": run}
                _mean_line(axes, folds, column, look)
            _sampling_switches(axes, histories, style, named=column == "learning_rate")
            axes.set(xlabel="epoch", ylabel=label)
            axes.xaxis.get_major_locator().set_params(integer=True)
        panels[0].ticklabel_format(axis="y", style="sci", scilimits=(-2, 2), useMathText=True)
        baselines = [fold["all_empty"].iloc[-1] for folds in histories.values() for fold in folds]
        if baselines:
            dashed: Look = {"color": style.muted, "linestyle": "--", "linewidth": 1}
            panels[-1].axhline(float(np.mean(baselines)), **dashed, label=ALL_EMPTY)
        handles, labels = panels[-1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=6)
    return figure


def _mean_line(axes: Axes, folds: Sequence[pd.DataFrame], column: str, look: Look) -> None:
    """The mean over the folds that have reached an epoch, and thin lines where folds differ."""
    mean = pd.concat(list(folds)).groupby("epoch")[column].mean()
    if column != "learning_rate" and len(folds) > 1:
        for fold in folds:
            axes.plot(fold["epoch"], fold[column], color=look["color"], linewidth=0.7, alpha=0.45)
    axes.plot(mean.index, mean.to_numpy(), **look)


def _sampling_switches(
    axes: Axes, histories: Mapping[str, Sequence[pd.DataFrame]], style: Style, *, named: bool
) -> None:
    """Dotted lines at the epochs where the sampling ratio changes, if all runs share them."""
    found = []
    for folds in histories.values():
        history = folds[0]
        ratio = history["positives_per_negative"].astype(float)
        changed = ratio.ne(ratio.shift()) & (np.arange(len(ratio)) > 0)
        epochs = history["epoch"][changed].astype(int)
        found.append(list(zip(epochs, ratio[changed], strict=True)))
    if not found or any(switches != found[0] for switches in found):
        return
    for epoch, to in found[0] if len(found[0]) <= MAX_SWITCHES else ():
        axes.axvline(epoch, color=style.muted, linestyle=":", linewidth=1)
        if named:
            place: Look = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
            look: Look = {"rotation": 90, "ha": "left", "va": "top", "fontsize": 8}
            text = f"{to:g} positive : 1 negative"
            axes.annotate(text, (epoch, 1.0), xytext=(3, -3), **place, **look)
