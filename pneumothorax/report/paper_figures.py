"""The paper's figures 4 to 7 of the user's data: sample, augmentation, learning, comparison.

Zhang: Segmentation of Pneumothorax Disease based on Deep Learning. Figures 1 and 3 are in
network_diagram.py. Pictures contain no ids or names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pneumothorax import plotting, png, rle
from pneumothorax.pipeline import artifacts
from pneumothorax.plotting import Look, Style
from pneumothorax.report import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CELL = 2.3  # inches of one radiograph
MAX_SWITCHES = 4  # more sampling switches are not marked


@dataclass(frozen=True)
class LabelledImage:
    """image (S, S) uint8 and its true mask (S, S) uint8 of 0 and 1."""

    image: np.ndarray
    truth: np.ndarray


@dataclass(frozen=True)
class Compared:
    """One radiograph with the out-of-fold predictions: {run: (mask (S, S) of 0 and 1, Dice)}."""

    shown: LabelledImage
    predictions: Mapping[str, tuple[np.ndarray, float]]


def data_sample(radiographs: Sequence[LabelledImage], style: Style = plotting.PICTURES) -> Figure:
    """Figure 4: a row per radiograph: the image, its mask, and both."""
    with style.settings():
        figure, cells = _grid(style, len(radiographs), 3)
        for row, radiograph in zip(cells, radiographs, strict=True):
            _show(row[0], radiograph.image)
            _show(row[1], radiograph.truth * np.uint8(255))
            _show(row[2], radiograph.image)
            _fill(row[2], radiograph.truth, plotting.TRUTH_RGB)
            row[1].spines[:].set_visible(True)  # black on black otherwise
            row[1].set_xlabel(_size_text(radiograph.truth))
        _head(cells[0], ("radiograph", "mask", "both"))
    return figure


def augmentation(
    original: LabelledImage,
    augmented: Mapping[str, tuple[np.ndarray, np.ndarray]],
    style: Style = plotting.PICTURES,
) -> Figure:
    """Figure 5: one radiograph under each augmentation alone, with its mask outlined.

    Args:
        augmented: {name: (image, mask)} (augment.each_alone).
    """
    shown = {"original": (original.image, original.truth), **augmented}
    columns = min(4, len(shown))
    with style.settings():
        figure, cells = _grid(style, -(-len(shown) // columns), columns)
        for axes in cells.ravel()[len(shown) :]:
            axes.remove()
        for axes, (name, (image, mask)) in zip(cells.ravel(), shown.items(), strict=False):
            _show(axes, image)
            _outline(axes, mask)
            axes.set_title(name)
    return figure


def learning(histories: Mapping[str, Sequence[pd.DataFrame]], style: Style) -> Figure:
    """Figure 6: learning rate, training loss and validation SIIM Dice of each epoch.

    A thin line per fold, a thick one for their mean; validated epochs are dots, joined past
    those that were not validated. A dotted line marks where every run
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
            panels[-1].axhline(float(np.mean(baselines)), **dashed, label=artifacts.ALL_EMPTY)
        handles, labels = panels[-1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=6)
    return figure


def comparison(images: Sequence[Compared], style: Style = plotting.PICTURES) -> Figure:
    """Figure 7: a row per radiograph: the image, the truth, and each run's mask with its Dice.

    The truth is outlined in every column but the first; predictions are filled.
    """
    runs = list(images[0].predictions)
    with style.settings():
        figure, cells = _grid(style, len(images), 2 + len(runs))
        for row, one in zip(cells, images, strict=True):
            for axes in row:
                _show(axes, one.shown.image)
            _outline(row[1], one.shown.truth)
            for axes, run in zip(row[2:], runs, strict=True):
                mask, dice = one.predictions[run]
                _fill(axes, mask, plotting.PREDICTION_RGB)
                _outline(axes, one.shown.truth)
                axes.set_xlabel(f"Dice {dice:.3f}")
            row[1].set_xlabel(_size_text(one.shown.truth))
        _head(cells[0], ("radiograph", "truth", *(figures.wrapped(run, 22) for run in runs)))
    return figure


def read(output: Path, cache_size: int, image_id: str) -> LabelledImage:
    """One training image from the cache. Raises BadInput if a file is damaged or missing."""
    image = png.read(output / artifacts.Cache(cache_size).image(image_id))
    path = output / artifacts.Cache(cache_size).mask(image_id)
    has_mask = path.exists()  # only positives have one
    truth = (png.read(path) > 0).astype(np.uint8) if has_mask else np.zeros_like(image)
    return LabelledImage(image, truth)


def read_compared(
    output: Path,
    cache_size: int,
    image_id: str,
    shape: tuple[int, int],
    images: Mapping[str, pd.DataFrame],
) -> Compared:
    """One image with every run's out-of-fold mask.

    Args:
        shape: (H, W) of the labels.
        images: {run: artifacts.Submission.out_of_fold rows}, all with this image.
    """
    predictions = {}
    for run, table in images.items():
        row = table[table["image_id"] == image_id].iloc[0]
        mask = png.downsample_mask(rle.decode(str(row["rle"]), shape), cache_size)
        predictions[run] = mask, float(row["dice"])
    return Compared(read(output, cache_size, image_id), predictions)


def choose_sample(manifest: pd.DataFrame, n: int = 4) -> list[str]:
    """Ids for `data_sample`: positives from small to large masks, then one negative.

    Args:
        manifest: training rows of the manifest.
    """
    ordered = manifest.sort_values(["mask_pixels", "image_id"])
    positives = ordered.loc[ordered["positive"] == 1, "image_id"].tolist()
    negatives = ordered.loc[ordered["positive"] == 0, "image_id"].tolist()
    return [*_spread(positives, n - 1 if negatives else n), *negatives[:1]]


def choose_compared(images: Mapping[str, pd.DataFrame], n: int = 5) -> list[str]:
    """Ids for `comparison`: positives from small to large masks, then the largest false positive.

    Chosen by the true masks, not by the scores, so that no run is flattered.

    Args:
        images: {run: artifacts.Submission.out_of_fold rows}; only images of every run are
            chosen.
    """
    tables = list(images.values())
    common = set.intersection(*(set(table["image_id"]) for table in tables))
    rows = pd.concat([table[table["image_id"].isin(common)] for table in tables])
    rows = rows.groupby("image_id", as_index=False)[["true_px", "predicted_px"]].max()
    false_positives = rows[(rows["true_px"] == 0) & (rows["predicted_px"] > 0)]
    false_positives = false_positives.sort_values(
        ["predicted_px", "image_id"], ascending=[False, True]
    )
    largest = false_positives["image_id"].tolist()[:1]
    positives = rows[rows["true_px"] > 0].sort_values(["true_px", "image_id"])["image_id"].tolist()
    return [*_spread(positives, n - len(largest)), *largest]


def _spread(ordered: list[str], n: int) -> list[str]:
    """Up to n, evenly between the 10th and the 90th percentile."""
    if len(ordered) <= n:
        return ordered
    places = np.linspace(0.1, 0.9, n) if n > 1 else np.array([0.5])
    return [ordered[at] for at in np.unique((places * (len(ordered) - 1)).round().astype(int))]


def _grid(style: Style, rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    """A figure and its (rows, columns) empty cells."""
    figure = plotting.new(style, CELL * columns, (CELL + 0.28) * rows + 0.3)
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    cells = figure.subplots(rows, columns, squeeze=False)
    for axes in cells.ravel():
        axes.set(xticks=[], yticks=[])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
    return figure, cells


def _head(row: np.ndarray, titles: Sequence[str]) -> None:
    for axes, title in zip(row, titles, strict=True):
        axes.set_title(title)


def _show(axes: Axes, image: np.ndarray) -> None:
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="antialiased")


def _fill(axes: Axes, mask: np.ndarray, rgb: tuple[int, int, int]) -> None:
    """The mask, half transparent, on top of the image."""
    tint = np.zeros((*mask.shape, 4))
    tint[mask > 0] = (*(value / 255 for value in rgb), 0.45)
    axes.imshow(tint, interpolation="nearest")


def _outline(axes: Axes, mask: np.ndarray) -> None:
    """The mask's border in the colour of the truth."""
    if mask.any():
        size = mask.shape[0]
        places = np.arange(-1, size + 1)  # a frame of 0 closes the border at the image's edge
        colour = tuple(value / 255 for value in plotting.TRUTH_RGB)
        axes.contour(places, places, np.pad(mask, 1), levels=[0.5], colors=[colour], linewidths=1.0)
        axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5))


def _size_text(truth: np.ndarray) -> str:
    share = float(truth.mean())
    return f"{100 * share:.2f} % of the image" if share else "no pneumothorax"


def _mean_line(axes: Axes, folds: Sequence[pd.DataFrame], column: str, look: Look) -> None:
    """The mean over the folds that have reached an epoch, and thin lines where folds differ."""
    known = [fold.dropna(subset=[column]) for fold in folds]
    marker = "." if column == "siim_dice" else ""
    if column != "learning_rate" and len(folds) > 1:
        thin: Look = {"color": look["color"], "marker": marker, "linewidth": 0.7, "alpha": 0.45}
        for fold in known:
            axes.plot(fold["epoch"], fold[column], **thin)
    mean = pd.concat(known).groupby("epoch")[column].mean()
    axes.plot(mean.index, mean.to_numpy(), **look, marker=marker)


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
