"""Which figures the report shows: drawn, saved below report/figures, and captioned for the page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from pneumothorax import augment, plotting
from pneumothorax.pipeline import artifacts, atomic
from pneumothorax.plotting import Style
from pneumothorax.report import figures, network_diagram, page, paper_figures
from pneumothorax.report.runs import Run
from pneumothorax.report.statistics import Statistics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_LINES = 8  # runs in one figure: more cannot be told apart
MAX_COLUMNS = 6  # runs next to each other in one figure
DARK_SUFFIX = "~dark"  # roc~dark.svg is for dark pages; no run's name contains a ~


def draw(
    output: Path, runs: list[Run], found: Statistics, manifest: pd.DataFrame, *, cache_size: int
) -> dict[str, list[page.Figure]]:
    """All figures, by section, in the page's order. Figures of earlier reports are removed.

    Args:
        manifest: artifacts.MANIFEST rows.
    """
    album = Album(output / artifacts.REPORT_FIGURES)
    train = manifest[manifest["split"] == artifacts.TRAIN]
    shown = runs[:MAX_COLUMNS]
    groups = {
        "Curves": curves(album, runs[:MAX_LINES], found),
        "Thresholds": [surface(album, run) for run in runs],
        "Figures of the paper": [
            *data_pictures(album, output, train, cache_size),
            learning_curves(album, shown),
            comparison(album, output, shown, train, cache_size),
            *diagrams(album, runs),
        ],
    }
    album.sweep()
    return groups


class Album:
    """The folder of figures: saves them and removes those of earlier reports."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written: set[str] = set()

    def curve(
        self,
        name: str,
        make: Callable[[Style], Figure],
        *,
        title: str,
        caption: str,
        alt: str,
        wide: bool = False,
    ) -> page.Figure:
        """One SVG for light and one for dark pages."""
        files = {plotting.LIGHT: f"{name}.svg", plotting.DARK: f"{name}{DARK_SUFFIX}.svg"}
        for style, file in files.items():
            self._save(make(style), file)
        light, dark = (f"{self.folder.name}/{file}" for file in files.values())
        return page.Figure(title, caption, light, alt, dark, wide)

    def picture(
        self, name: str, figure: Figure, *, title: str, caption: str, alt: str
    ) -> page.Figure:
        """One PNG of radiographs, on black."""
        self._save(figure, f"{name}.png")
        light = f"{self.folder.name}/{name}.png"
        return page.Figure(title, caption, light, alt, radiographs=True)

    def _save(self, figure: Figure, file: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        atomic.write_bytes(self.folder / file, plotting.rendered(figure, file.rpartition(".")[2]))
        self.written.add(file)

    def sweep(self) -> None:
        """Remove the figures of earlier reports."""
        for path in self.folder.iterdir():
            if path.is_file() and path.name not in self.written:
                path.unlink()


def curves(album: Album, runs: list[Run], found: Statistics) -> list[page.Figure]:
    names = [run.name for run in runs]
    points = {name: found.operating_points[name] for name in names}
    by_name = {name: found.roc[name] for name in names}
    bins = {name: found.calibration[name] for name in names}
    levels = {name: found.strata[name] for name in names}
    auc = {run.name: float(run.row("all")["auc"]) for run in runs}
    baseline = float(runs[0].row(artifacts.ALL_EMPTY)["siim_dice"])
    return [
        album.curve(
            "roc",
            lambda style: figures.roc(by_name, auc, style, points=points),
            title="Detecting images with a pneumothorax",
            caption="ROC curve of the image-level probability, calibrated out of fold. Dots: the "
            "submitted masks.",
            alt="ROC curves of all runs",
        ),
        album.curve(
            "calibration",
            lambda style: figures.calibration(bins, found.calibration_errors, style),
            title="Calibration of the image-level probability",
            caption="Share of positives among images of similar probability, in ten bins of equal "
            "width with 95 % Wilson intervals; below, the number of images in each bin. ECE: "
            "expected calibration error over these bins.",
            alt="Calibration curves of all runs",
        ),
        album.curve(
            "folds",
            lambda style: figures.folds(fold_scores(runs), style, baseline=baseline),
            title="Score of every fold",
            caption="SIIM Dice per fold with nested thresholds. Dashed: the all-empty baseline.",
            alt="SIIM Dice of every fold and run, with mean and standard deviation",
        ),
        album.curve(
            "strata",
            lambda style: figures.strata(levels, style),
            title="Where the score comes from",
            caption="Dice of positive images by mask size, view and sex, with 95 % intervals over "
            "patients.",
            alt="Dice of positive images by mask size, view and sex",
            wide=True,
        ),
    ]


def fold_scores(runs: list[Run]) -> pd.DataFrame:
    """run, fold, value: SIIM Dice of every fold."""
    rows = []
    for run in runs:
        of_folds = run.table[run.table["row"].str.startswith("fold ")]
        for fold, value in zip(of_folds["row"], of_folds["siim_dice"], strict=True):
            rows.append({"run": run.name, "fold": fold, "value": value})
    return pd.DataFrame(rows)


def surface(album: Album, run: Run) -> page.Figure:
    final = run.row(artifacts.FINAL)
    tried = final["min_area"] <= run.surface["min_area"].max()
    names = ("top", "min_area", "bottom", "min_probability")
    chosen = {name: float(final[name]) for name in names} if tried else None
    baseline = float(run.row(artifacts.ALL_EMPTY)["siim_dice"])
    return album.curve(
        f"surface-{run.name}",
        lambda style: figures.threshold_surface(
            run.surface, chosen, style, run=run.name, baseline=baseline
        ),
        title=f"Thresholds of {run.name}",
        caption="SIIM Dice of all out-of-fold images for the thresholds tried (naive: fitted and "
        "scored on the same images). The star marks the triplet used for test images: not "
        "the highest score, but the middle of the high ones.",
        alt=f"Heat map of SIIM Dice over thresholds, {run.name}",
    )


def data_pictures(
    album: Album, output: Path, train: pd.DataFrame, cache_size: int
) -> list[page.Figure]:
    """The paper's figures 4 and 5."""
    sample = [
        paper_figures.read(output, cache_size, image_id)
        for image_id in paper_figures.choose_sample(train)
    ]
    shown = sample[len(sample) // 2]  # a mask of medium size
    augmented = augment.each_alone(shown.image, shown.truth)
    return [
        album.picture(
            "data-sample",
            paper_figures.data_sample(sample),
            title="Data sample",
            caption="Like the paper’s figure 4: radiographs of this data set, from small to large "
            "masks, and a negative.",
            alt="Radiographs and masks of the training data",
        ),
        album.picture(
            "augmentation",
            paper_figures.augmentation(shown, augmented),
            title="Augmentation",
            caption="Like the paper’s figure 5: each training augmentation applied alone, the "
            "strongest of several random draws.",
            alt="One radiograph under every augmentation",
        ),
    ]


def learning_curves(album: Album, runs: list[Run]) -> page.Figure:
    histories = {run.name: run.histories for run in runs}
    return album.curve(
        "learning",
        lambda style: paper_figures.learning(histories, style),
        title="Learning rate, loss and validation score",
        caption="Like the paper’s figure 6, with loss and validation score added. Thin lines: the "
        "folds; thick lines: their mean. The learning rate is that of an epoch’s first step.",
        alt="Learning rate, loss and validation score by epoch",
        wide=True,
    )


def comparison(
    album: Album, output: Path, runs: list[Run], train: pd.DataFrame, cache_size: int
) -> page.Figure:
    """The paper's figure 7."""
    images = {run.name: run.images for run in runs}
    shape_of = artifacts.image_shapes(train)
    compared = [
        paper_figures.read_compared(output, cache_size, image_id, shape_of[image_id], images)
        for image_id in paper_figures.choose_compared(images)
    ]
    return album.picture(
        "comparison",
        paper_figures.comparison(compared),
        title="Comparison of networks",
        caption="Like the paper’s figure 7: out-of-fold predictions of every run (orange) and the "
        "truth (blue outline), from small to large masks, and the largest false positive. Images "
        "are chosen by their true masks, not by their scores.",
        alt="Radiographs with the predictions of every run",
    )


def diagrams(album: Album, runs: list[Run]) -> list[page.Figure]:
    """The paper's figure 1 of every run whose network is known, and figure 3 of the first."""
    made = []
    known = [(run.name, run.network) for run in runs if run.network]
    for name, network in known:
        size = network["size"]
        made.append(
            album.curve(
                f"network-{name}",
                lambda style, network=network: network_diagram.draw(network, style),  # type: ignore[misc]
                title=f"Network of {name}",
                caption=f"Like the paper’s figure 1: {network['network']} with the shapes of a "
                f"forward pass of a {size} × {size} image (channels × height × width).",
                alt=f"Diagram of the network of {name}",
                wide=True,
            )
        )
    attended = next(((name, network) for name, network in known if network["attention"]), None)
    if attended:
        name, network = attended
        made.append(
            album.curve(
                "attention",
                lambda style: network_diagram.draw_attention(network, style),
                title="Improved coordinate attention",
                caption=f"Like the paper’s figure 3: the first attention block of {name}, with the "
                "shapes of its tensors (channels × height × width).",
                alt="Diagram of the coordinate attention block",
                wide=True,
            )
        )
    return made
