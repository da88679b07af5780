"""Figures of the report: how they look, how they are saved, and the curves.

Every function takes data and a style and returns a Figure; none touches pyplot or its settings, and the same data
give the same bytes.
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

# roc.svg for a light page, roc~dark.svg for a dark one; no run has a ~ in its name.
DARK_SUFFIX = "~dark"


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
        points: {run: fpr, tpr, one row}: where the submitted masks stand (curves.operating_point).
    """
    with style.settings():
        figure = plotting.new(style, 6.0, 5.6)
        axes = figure.add_subplot()
        axes.plot(
            [0, 1], [0, 1], color=style.muted, linewidth=1, linestyle=(0, (1, 2)), label="chance"
        )
        for number, (run, curve) in enumerate(curves.items()):
            if len(curve):
                label = f"{run}: AUC {auc[run]:.3f}"
                axes.plot(
                    curve["fpr"], curve["tpr"], **style.line(number), linewidth=1.8, label=label
                )
        for number, run in enumerate(curves):
            if points and run in points:
                dot: Look = {
                    "markersize": 8,
                    "markeredgecolor": style.text,
                    "linestyle": "none",
                    "clip_on": False,
                }
                axes.plot(
                    points[run]["fpr"], points[run]["tpr"], **style.dots(number), **dot, zorder=3
                )
        if points:
            look: Look = {
                "marker": "o",
                "linestyle": "none",
                "markeredgecolor": style.text,
                "markerfacecolor": "none",
            }
            axes.plot([], [], **look, label="submitted masks")
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        axes.set(xlabel="false positive rate (1 - specificity)", ylabel="sensitivity")
        axes.legend(loc="lower right")
    return figure


def calibration(
    tables: Mapping[str, pd.DataFrame], error: Mapping[str, float], style: Style
) -> Figure:
    """Share of positive images against predicted probability, with 95 % intervals, above the number of images.

    Args:
        tables: {run: p_positive, positive_share, share_low, share_high, images, low, high} (curves.calibration).
        error: {run: expected calibration error}.
    """
    with style.settings():
        figure = plotting.new(style, 6.0, 6.6)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        upper.plot(
            [0, 1], [0, 1], color=style.muted, linewidth=1, linestyle=(0, (1, 2)), label="perfect"
        )
        for number, (run, table) in enumerate(tables.items()):
            share = table["positive_share"]
            spread = np.abs(table[["share_low", "share_high"]].to_numpy().T - share.to_numpy())
            label = f"{run}: ECE {error[run]:.3f}"
            look: Look = {
                **style.line(number),
                **style.dots(number),
                "markersize": 5,
                "linewidth": 1.5,
            }
            upper.errorbar(
                table["p_positive"],
                share,
                yerr=spread,
                **look,
                elinewidth=1,
                capsize=2,
                label=label,
            )
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
    chosen: tuple[float, float, float],
    style: Style,
    *,
    run: str,
    nothing: float | None = None,
) -> Figure:
    """SIIM Dice over top threshold and minimum area, at the best bottom threshold of each, with the chosen triplet.

    Args:
        surface: top, min_area, bottom, siim_dice, one row per triplet tried; -inf and NaN are left out.
        chosen: top, minimum area, bottom.
        nothing: SIIM Dice of the all-empty baseline, drawn as a contour where the surface crosses it.
    """
    tried = surface[np.isfinite(surface["siim_dice"])]
    best = tried.groupby(["top", "min_area"])["siim_dice"].max().unstack("top")  # (areas, tops)
    tops, areas, values = (
        best.columns.tolist(),
        best.index.tolist(),
        np.ma.masked_invalid(best.to_numpy()),
    )
    with style.settings():
        figure = plotting.new(style, 8.0, 5.6)
        axes = figure.add_subplot()
        axes.grid(visible=False)
        picture = axes.imshow(values, origin="lower", aspect="auto", cmap="viridis")
        if min(values.shape) > 1 and values.min() < values.max():
            lines = axes.contour(values, levels=6, colors="white", linewidths=0.7, alpha=0.8)
            axes.clabel(lines, fmt="%.3f", fontsize=8)
            if nothing is not None and values.min() < nothing < values.max():
                axes.contour(
                    values, levels=[nothing], colors="#D55E00", linewidths=1.5, linestyles="--"
                )
                axes.plot(
                    [],
                    [],
                    color="#D55E00",
                    linestyle="--",
                    label=f"all-empty baseline: {nothing:.4f}",
                )
        top, area, bottom = chosen
        rows = tried[
            (tried["top"] == top) & (tried["min_area"] == area) & (tried["bottom"] == bottom)
        ]
        score = f": {rows['siim_dice'].iloc[0]:.4f}" if len(rows) else ""
        at = np.searchsorted(tops, top), np.searchsorted(areas, area)
        label = f"chosen: top {top:g}, minimum area {area:g}, bottom {bottom:g}{score}"
        star: Look = {
            "marker": "*",
            "markersize": 18,
            "markerfacecolor": "white",
            "markeredgecolor": "black",
        }
        axes.plot(*([one] for one in at), **star, linestyle="none", label=label)
        axes.set_xticks(range(len(tops)), [f"{value:g}" for value in tops])
        axes.set_yticks(range(len(areas)), [f"{value:g}" for value in areas])
        axes.set(xlabel="top threshold", ylabel="minimum area above it, pixels of 1024 x 1024")
        axes.set_title(run)
        bar = figure.colorbar(picture, ax=axes, pad=0.02)
        bar.set_label("SIIM Dice at the best bottom threshold")
        figure.legend(loc="outside lower center", ncols=2, markerscale=0.6)
    return figure


def folds(
    scores: pd.DataFrame, style: Style, *, nothing: float | None = None, score: str = "SIIM Dice"
) -> Figure:
    """The score of every fold as a dot with its number, mean and standard deviation beside it, one column per run.

    Args:
        scores: run, fold, value; runs in order of appearance.
        nothing: what the all-empty baseline scores.
    """
    runs = list(dict.fromkeys(scores["run"]))
    with style.settings():
        figure = plotting.new(style, max(4.5, 1.6 + 1.3 * len(runs)), 4.6)
        axes = figure.add_subplot()
        for number, run in enumerate(runs):
            rows = scores[scores["run"] == run]
            values, n = rows["value"].to_numpy(), len(rows)
            places = number + (np.arange(n) - (n - 1) / 2) * min(0.08, 0.4 / n) - 0.2
            axes.plot(
                places, values, **style.dots(number), linestyle="none", markersize=6, alpha=0.85
            )
            spread = values.std(ddof=1) if n > 1 else 0.0
            look: Look = {
                "color": style.text,
                "marker": "_",
                "markersize": 14,
                "capsize": 4,
                "linewidth": 1.5,
            }
            axes.errorbar([number + 0.3], [values.mean()], yerr=[spread], **look)
            text = f"{values.mean():.4f}\n± {spread:.4f}"
            place: Look = {
                "textcoords": "offset points",
                "ha": "center",
                "va": "bottom",
                "fontsize": 8.5,
            }
            axes.annotate(text, (number + 0.3, values.mean() + spread), xytext=(0, 5), **place)
        if nothing is not None:
            axes.axhline(nothing, color=style.muted, linestyle="--", linewidth=1.2)
            at = (1.0, nothing), ("axes fraction", "data")
            corner: Look = {
                "textcoords": "offset points",
                "ha": "right",
                "va": "bottom",
                "fontsize": 9,
            }
            axes.annotate("all-empty baseline", at[0], xycoords=at[1], xytext=(0, 3), **corner)
        axes.set_xticks(range(len(runs)), [wrapped(run) for run in runs])
        axes.set(
            xlim=(-0.5, len(runs) - 0.4), ylabel=f"{score} of each fold; mean ± standard deviation"
        )
        axes.margins(y=0.18)
        axes.grid(visible=False, axis="x")
    return figure


def strata(tables: Mapping[str, pd.DataFrame], style: Style) -> Figure:
    """Positives-only Dice by mask size, view and sex, with 95 % intervals, one panel per stratum.

    Args:
        tables: {run: strata.table rows}; levels without positives are left out.
    """
    named = [
        table.assign(run=run, number=number) for number, (run, table) in enumerate(tables.items())
    ]
    rows = pd.concat(named, ignore_index=True)
    rows = rows[rows["positive_dice"].notna()]
    levels = {
        stratum: list(dict.fromkeys(part["level"]))
        for stratum, part in rows.groupby("stratum", sort=False)
    }
    with style.settings():
        widths = [len(one) for one in levels.values()]
        if not widths:
            return _nothing_to_draw("no positive images", style)
        figure = plotting.new(style, max(6.0, 1.5 + 1.15 * sum(widths)), 4.8)
        panels = figure.subplots(1, len(levels), sharey=True, width_ratios=widths, squeeze=False)[0]
        for axes, (stratum, names) in zip(panels, levels.items(), strict=True):
            part = rows[rows["stratum"] == stratum]
            for number, run in enumerate(tables):
                own = part[part["number"] == number]
                places = [
                    names.index(level) + 0.6 * ((number + 0.5) / len(tables) - 0.5)
                    for level in own["level"]
                ]
                ends = own[["positive_dice_low", "positive_dice_high"]].to_numpy(dtype=float).T
                spread = np.abs(ends - own["positive_dice"].to_numpy())
                look: Look = {
                    **style.dots(number),
                    "linestyle": "none",
                    "markersize": 6,
                    "elinewidth": 1.4,
                    "capsize": 3,
                }
                axes.errorbar(places, own["positive_dice"], yerr=spread, **look, label=run)
            positives = part.groupby("level")["positives"].max()
            ticks = [f"{wrapped(name, 15)}\nn = {positives[name]}" for name in names]
            axes.set_xticks(range(len(names)), ticks, fontsize=9)
            axes.set(xlim=(-0.5, len(names) - 0.5), title=stratum)
            axes.grid(visible=False, axis="x")
        panels[0].set(ylabel="Dice of positive images, 95 % interval", ylim=(0, 1))
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=6)
    return figure


def _nothing_to_draw(why: str, style: Style) -> Figure:
    figure = plotting.new(style, 6.0, 1.5)
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.text(0.5, 0.5, why, ha="center", va="center", transform=axes.transAxes)
    return figure


def learning(histories: Mapping[str, Sequence[pd.DataFrame]], style: Style) -> Figure:
    """Learning rate, training loss and validation SIIM Dice of each epoch: a thin line per fold, a thick mean.

    The paper's figure 6 is the first panel. A dotted line stands where every run changes its ratio of positives to
    negatives.

    Args:
        histories: {run: history.csv of each fold} (artifacts.HISTORY_COLUMNS); runs without folds are left out.
    """
    numbers = {
        run: number for number, run in enumerate(histories)
    }  # a run's colour is the same in every figure
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
                above = len(histories) - 1 - place
                _mean_line(axes, folds, column, style, number=numbers[run], above=above, label=run)
            _sampling_switches(axes, histories, style, named=column == "learning_rate")
            axes.set(xlabel="epoch", ylabel=label)
            axes.xaxis.get_major_locator().set_params(integer=True)
        panels[0].ticklabel_format(axis="y", style="sci", scilimits=(-2, 2), useMathText=True)
        nothing = [fold["all_empty"].iloc[-1] for folds in histories.values() for fold in folds]
        if nothing:
            label = "all-empty baseline"
            panels[-1].axhline(
                float(np.mean(nothing)), color=style.muted, linestyle="--", linewidth=1, label=label
            )
        handles, labels = panels[-1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=6)
    return figure


def _mean_line(
    axes: Axes,
    folds: Sequence[pd.DataFrame],
    column: str,
    style: Style,
    *,
    number: int,
    above: int,
    label: str,
) -> None:
    """Each fold thin where they differ, their mean over the folds that have reached an epoch thick."""
    # Learning rates are often the same in all runs: the first is drawn widest, so that none hides another.
    thick = 2.0 + 1.4 * above if column == "learning_rate" else 2.0
    mean = pd.concat(list(folds)).groupby("epoch")[column].mean()
    if column != "learning_rate" and len(folds) > 1:
        for fold in folds:
            axes.plot(
                fold["epoch"], fold[column], color=style.colour(number), linewidth=0.7, alpha=0.45
            )
    axes.plot(mean.index, mean.to_numpy(), **style.line(number), linewidth=thick, label=label)


def _sampling_switches(
    axes: Axes, histories: Mapping[str, Sequence[pd.DataFrame]], style: Style, *, named: bool
) -> None:
    """Dotted lines at the epochs from which the sampling ratio is another one, where that is so in all runs."""
    found = []
    for folds in histories.values():
        history = folds[0]
        ratio = history["positives_per_negative"].astype(float)
        changed = ratio.ne(ratio.shift()) & (np.arange(len(ratio)) > 0)
        found.append(
            [
                (int(epoch), float(to))
                for epoch, to in zip(history["epoch"][changed], ratio[changed], strict=True)
            ]
        )
    if not found or any(one != found[0] for one in found):
        return
    for epoch, to in found[0] if len(found[0]) <= 4 else ():
        axes.axvline(epoch, color=style.muted, linestyle=":", linewidth=1)
        if named:
            place: Look = {
                "textcoords": "offset points",
                "rotation": 90,
                "ha": "left",
                "va": "top",
                "fontsize": 8,
            }
            text = f"{to:g} positive : 1 negative"
            axes.annotate(
                text, (epoch, 1.0), xycoords=("data", "axes fraction"), xytext=(3, -3), **place
            )


def wrapped(text: str, width: int = 16) -> str:
    """Line breaks after spaces and underscores, so that lines have about `width` characters; "5 %" stays whole."""
    lines = [""]
    for word in text.replace(" %", "\u00a0%").replace("_", "_\0").replace(" ", " \0").split("\0"):
        if lines[-1] and len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] += word
    return "\n".join(line.rstrip(" ") for line in lines)
