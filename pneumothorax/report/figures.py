"""Figures of the scores: ROC, calibration, thresholds, folds, strata.

Every function takes data and a style and returns a Figure. None touches pyplot or its
settings, and the same data give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pneumothorax import plotting
from pneumothorax.plotting import Look, Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BASELINE_COLOUR = "#D55E00"  # visible on all colours of the threshold surface
DOTTED = (0, (1, 2))  # a line style
MOST_LABELS = 20  # of values on an axis; more would overlap
SHORT = {
    "top": "top",
    "min_area": "minimum area",
    "bottom": "bottom",
    "min_probability": "image threshold",
}
AXIS_LABELS = {
    "top": "top threshold",
    "min_area": "minimum area above it, pixels of 1024 x 1024",
    "bottom": "bottom threshold",
    "min_probability": "image threshold",
}


def roc(
    curves: Mapping[str, pd.DataFrame],
    auc: Mapping[str, float],
    style: Style,
    *,
    points: Mapping[str, pd.DataFrame] | None = None,
) -> Figure:
    """Sensitivity against false positive rate of each run.

    Args:
        curves: {run: fpr, tpr} (curves.roc); runs without rows are left out.
        auc: {run: area under the curve}.
        points: {run: fpr, tpr, one row}: the submitted masks (curves.operating_point).
    """
    points = points or {}
    with style.settings():
        figure = plotting.new(style, 6.0, 5.6)
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=style.muted, linewidth=1, linestyle=DOTTED, label="chance")
        for number, (run, curve) in enumerate(curves.items()):
            if len(curve):
                look = style.line(number) | {"label": f"{run}: AUC {auc[run]:.3f}"}
                axes.plot(curve["fpr"], curve["tpr"], **look, linewidth=1.8)
            if run in points:
                look = style.dots(number) | {"markersize": 8, "markeredgecolor": style.text}
                x, y = points[run]["fpr"], points[run]["tpr"]
                axes.plot(x, y, **look, linestyle="none", clip_on=False, zorder=3)
        if points:
            look = {"markeredgecolor": style.text, "markerfacecolor": "none"}
            axes.plot([], [], **look, marker="o", linestyle="none", label="submitted masks")
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        axes.set(xlabel="false positive rate (1 - specificity)", ylabel="sensitivity")
        axes.legend(loc="lower right")
    return figure


def calibration(
    tables: Mapping[str, pd.DataFrame], error: Mapping[str, float], style: Style
) -> Figure:
    """Share of positive images against predicted probability, above the number of images.

    Args:
        tables: {run: p_positive, positive_share, share_low, share_high, images, low,
            high} (curves.calibration); shares are drawn with their 95 % intervals.
        error: {run: expected calibration error}.
    """
    with style.settings():
        figure = plotting.new(style, 6.0, 6.6)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        line: Look = {"color": style.muted, "linewidth": 1, "linestyle": DOTTED}
        upper.plot([0, 1], [0, 1], **line, label="perfect")
        for number, (run, table) in enumerate(tables.items()):
            share = table["positive_share"]
            spread = np.abs(table[["share_low", "share_high"]].to_numpy().T - share.to_numpy())
            look = style.line(number) | style.dots(number) | {"markersize": 5, "linewidth": 1.5}
            look |= {"elinewidth": 1, "capsize": 2, "label": f"{run}: ECE {error[run]:.3f}"}
            upper.errorbar(table["p_positive"], share, yerr=spread, **look)
            # Bars of the runs side by side within each bin.
            width = (table["high"] - table["low"]) * 0.9 / len(tables)
            left = table["low"] + (table["high"] - table["low"]) * 0.05 + width * number
            lower.bar(left, table["images"], width, align="edge", color=style.colour(number))
        upper.set(xlim=(-0.01, 1.01), ylim=(-0.03, 1.03), ylabel="share with a pneumothorax")
        upper.legend(loc="upper left")
        lower.set(xlabel="predicted probability of a pneumothorax", ylabel="images", yscale="log")
        lower.set_ylim(bottom=0.8)
        lower.grid(visible=False)
    return figure


def threshold_surface(
    surface: pd.DataFrame,
    chosen: Mapping[str, float] | None,
    style: Style,
    *,
    run: str,
    baseline: float,
) -> Figure:
    """SIIM Dice over top threshold and minimum area, at the best bottom threshold of each, or,
    where an image threshold was tried, over that and the bottom threshold.

    Args:
        surface: top, min_area, bottom, min_probability, siim_dice, one row for each set of
            thresholds tried; -inf and NaN are left out.
        chosen: top, min_area, bottom, min_probability, marked with a star; None: every
            image is empty.
        baseline: the all-empty baseline, a contour where the surface crosses it.
    """
    tried = surface[np.isfinite(surface["siim_dice"])]
    by_probability = tried["min_probability"].nunique() > 1
    x, y = ("min_probability", "bottom") if by_probability else ("top", "min_area")
    best = tried.groupby([x, y])["siim_dice"].max().unstack(x)
    values = np.ma.masked_invalid(best.to_numpy())
    with style.settings():
        figure = plotting.new(style, 8.0, 5.6)
        axes = figure.add_subplot()
        axes.grid(visible=False)
        picture = axes.imshow(values, origin="lower", aspect="auto", cmap="viridis")
        _contours(axes, values, baseline)
        _star(axes, tried, best, chosen)
        labelled = range(0, len(best.columns), 1 + len(best.columns) // MOST_LABELS)
        axes.set_xticks(labelled, [f"{best.columns[at]:g}" for at in labelled])
        axes.set_yticks(range(len(best.index)), [f"{value:g}" for value in best.index])
        axes.set(xlabel=AXIS_LABELS[x], ylabel=AXIS_LABELS[y])
        axes.set_title(run)
        bar = figure.colorbar(picture, ax=axes, pad=0.02)
        bar.set_label("SIIM Dice" if by_probability else "SIIM Dice at the best bottom threshold")
        figure.legend(loc="outside lower center", ncols=2, markerscale=0.6)
    return figure


def _contours(axes: Axes, values: np.ma.MaskedArray, baseline: float) -> None:
    if min(values.shape) < 2 or values.min() == values.max():
        return
    lines = axes.contour(values, levels=6, colors="white", linewidths=0.7, alpha=0.8)
    axes.clabel(lines, fmt="%.3f", fontsize=8)
    if values.min() < baseline < values.max():
        colour = BASELINE_COLOUR
        axes.contour(values, levels=[baseline], colors=colour, linewidths=1.5, linestyles="--")
        label = f"all-empty baseline: {baseline:.4f}"
        axes.plot([], [], color=colour, linestyle="--", label=label)


def _star(
    axes: Axes, tried: pd.DataFrame, best: pd.DataFrame, chosen: Mapping[str, float] | None
) -> None:
    if chosen is None:
        axes.plot([], [], linestyle="none", label="chosen: every image empty")
        return
    same = (tried[list(chosen)] == pd.Series(chosen)).all(axis=1)
    score = f": {tried.loc[same, 'siim_dice'].iloc[0]:.4f}" if same.any() else ""
    axis_x, axis_y = str(best.columns.name), str(best.index.name)
    label = ", ".join(
        f"{SHORT[name]} {chosen[name]:g}" for name in dict.fromkeys((axis_x, axis_y, "bottom"))
    )
    x = np.searchsorted(best.columns, chosen[axis_x])
    y = np.searchsorted(best.index, chosen[axis_y])
    look: Look = {"marker": "*", "markersize": 18, "linestyle": "none"}
    look |= {"markerfacecolor": "white", "markeredgecolor": "black"}
    axes.plot([x], [y], **look, label=f"chosen: {label}{score}")


def folds(scores: pd.DataFrame, style: Style, *, baseline: float) -> Figure:
    """SIIM Dice of every fold as a dot, next to mean and standard deviation, a column per run.

    Args:
        scores: run, fold, value; runs in order of appearance.
        baseline: the all-empty baseline.
    """
    runs = list(dict.fromkeys(scores["run"]))
    with style.settings():
        figure = plotting.new(style, max(4.5, 1.6 + 1.3 * len(runs)), 4.6)
        axes = figure.add_subplot()
        for number, run in enumerate(runs):
            values = scores.loc[scores["run"] == run, "value"].to_numpy()
            _fold_dots(axes, values, number, style)
        axes.axhline(baseline, color=style.muted, linestyle="--", linewidth=1.2)
        place: Look = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        look: Look = {"ha": "right", "va": "bottom", "fontsize": 9}
        axes.annotate("all-empty baseline", (1.0, baseline), xytext=(0, 3), **place, **look)
        axes.set_xticks(range(len(runs)), [wrapped(run) for run in runs])
        axes.set_ylabel("SIIM Dice of each fold; mean ± standard deviation")
        axes.set_xlim(-0.5, len(runs) - 0.4)
        axes.margins(y=0.18)
        axes.grid(visible=False, axis="x")
    return figure


def _fold_dots(axes: Axes, values: np.ndarray, number: int, style: Style) -> None:
    """One run: dots left of its position, mean and standard deviation to the right."""
    n = len(values)
    places = number + (np.arange(n) - (n - 1) / 2) * min(0.08, 0.4 / n) - 0.2
    axes.plot(places, values, **style.dots(number), linestyle="none", markersize=6, alpha=0.85)
    mean, spread = values.mean(), values.std(ddof=1) if n > 1 else 0.0
    look: Look = {"color": style.text, "marker": "_", "markersize": 14, "linewidth": 1.5}
    axes.errorbar([number + 0.3], [mean], yerr=[spread], **look, capsize=4)
    text, above = f"{mean:.4f}\n± {spread:.4f}", (number + 0.3, mean + spread)
    place: Look = {"xytext": (0, 5), "textcoords": "offset points"}
    axes.annotate(text, above, **place, ha="center", va="bottom", fontsize=8.5)


def strata(tables: Mapping[str, pd.DataFrame], style: Style) -> Figure:
    """Dice of positives by mask size, view and sex, with 95 % intervals, a panel per stratum.

    Args:
        tables: {run: strata.table rows}; levels without positives are left out.
    """
    named = [
        table.assign(run=run, number=number) for number, (run, table) in enumerate(tables.items())
    ]
    rows = pd.concat(named, ignore_index=True)
    rows = rows[rows["positive_dice"].notna()]
    if rows.empty:
        return _message("no positive images", style)
    levels = {
        stratum: list(dict.fromkeys(part["level"]))
        for stratum, part in rows.groupby("stratum", sort=False)
    }
    widths = [len(names) for names in levels.values()]
    with style.settings():
        figure = plotting.new(style, max(6.0, 1.5 + 1.15 * sum(widths)), 4.8)
        panels = figure.subplots(1, len(levels), sharey=True, width_ratios=widths, squeeze=False)[0]
        for axes, (stratum, names) in zip(panels, levels.items(), strict=True):
            part = rows[rows["stratum"] == stratum]
            _stratum(axes, part, names, list(tables), style)
            axes.set_title(stratum)
        panels[0].set(ylabel="Dice of positive images, 95 % interval", ylim=(0, 1))
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=6)
    return figure


def _stratum(
    axes: Axes, rows: pd.DataFrame, levels: Sequence[str], runs: Sequence[str], style: Style
) -> None:
    """One panel: the runs side by side at each level."""
    for number, run in enumerate(runs):
        of_run = rows[rows["number"] == number]
        aside = 0.6 * ((number + 0.5) / len(runs) - 0.5)
        places = [levels.index(level) + aside for level in of_run["level"]]
        ends = of_run[["positive_dice_low", "positive_dice_high"]].to_numpy(dtype=float).T
        spread = np.abs(ends - of_run["positive_dice"].to_numpy())
        look = style.dots(number) | {"linestyle": "none", "markersize": 6, "label": run}
        look |= {"elinewidth": 1.4, "capsize": 3}
        axes.errorbar(places, of_run["positive_dice"], yerr=spread, **look)
    positives = rows.groupby("level")["positives"].max()
    ticks = [f"{wrapped(level, 15)}\nn = {positives[level]}" for level in levels]
    axes.set_xticks(range(len(levels)), ticks, fontsize=9)
    axes.set_xlim(-0.5, len(levels) - 0.5)
    axes.grid(visible=False, axis="x")


def _message(text: str, style: Style) -> Figure:
    with style.settings():
        figure = plotting.new(style, 6.0, 1.5)
        axes = figure.add_subplot()
        axes.set_axis_off()
        axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)
    return figure


def wrapped(text: str, width: int = 16) -> str:
    """Break after spaces and underscores into lines of about `width`; "5 %" stays whole."""
    lines = [""]
    for word in text.replace(" %", "\u00a0%").replace("_", "_\0").replace(" ", " \0").split("\0"):
        if lines[-1] and len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] += word
    return "\n".join(line.rstrip(" ") for line in lines)
