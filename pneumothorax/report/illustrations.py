"""Which figures the report shows, with their captions: drawn, saved below report/figures, and listed for the page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from pneumothorax import augment, plotting
from pneumothorax.pipeline import artifacts, atomic
from pneumothorax.plotting import Style
from pneumothorax.report import figures, network_diagram, page, paper_figures
from pneumothorax.report.contents import Run, Statistics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_LINES = 8  # runs in one figure: more cannot be told apart
MAX_COLUMNS = 6  # runs beside each other in one figure


def draw(
    output: Path, runs: list[Run], found: Statistics, manifest: pd.DataFrame, *, cache_size: int
) -> dict[str, list[page.Figure]]:
    """All figures, by group, in the page's order. Earlier ones of other runs are removed.

    Args:
        manifest: artifacts.MANIFEST rows.
    """
    album = Album(output / artifacts.REPORT_FIGURES)
    groups = {
        "Curves": curves(album, runs[:MAX_LINES], found),
        "Thresholds": [surface(album, run) for run in runs],
        "Figures of the paper": pictures(album, output, runs[:MAX_COLUMNS], manifest, cache_size)
        + diagrams(album, runs),
    }
    album.sweep()
    return groups


class Album:
    """The folder of figures: saves them, and afterwards knows which files are no longer wanted."""

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
        files = {plotting.LIGHT: f"{name}.svg", plotting.DARK: f"{name}{figures.DARK_SUFFIX}.svg"}
        for style, file in files.items():
            self._save(make(style), file)
        light, dark = (f"{self.folder.name}/{file}" for file in files.values())
        return page.Figure(title, caption, light, alt, dark, wide)

    def picture(
        self, name: str, figure: Figure, *, title: str, caption: str, alt: str
    ) -> page.Figure:
        """One PNG of radiographs, on black."""
        self._save(figure, f"{name}.png")
        return page.Figure(title, caption, f"{self.folder.name}/{name}.png", alt)

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
    roc, calibration, levels = (
        {name: tables[name] for name in names}
        for tables in (found.roc, found.calibration, found.strata)
    )
    auc = {run.name: float(run.row("all")["auc"]) for run in runs}
    nothing = float(runs[0].row(artifacts.ALL_EMPTY)["siim_dice"])
    by_fold = pd.DataFrame(
        [
            {"run": run.name, "fold": row["row"], "value": row["siim_dice"]}
            for run in runs
            for row in run.table[run.table["row"].str.startswith("fold ")].to_dict("records")
        ]
    )
    return [
        album.curve(
            "roc",
            lambda style: figures.roc(roc, auc, style, points=found.operating_points),
            title="Which images have a pneumothorax",
            caption="ROC curve of the image-level probability, calibrated out of fold; dots: submitted masks.",
            alt="ROC curves of all runs",
        ),
        album.curve(
            "calibration",
            lambda style: figures.calibration(calibration, found.calibration_errors, style),
            title="Calibration of the image-level probability",
            caption="Share of positives among images of similar probability, ten bins of equal width, 95 % Wilson "
            "intervals; below, how many images a bin holds. ECE: expected calibration error over these bins.",
            alt="Calibration curves of all runs",
        ),
        album.curve(
            "folds",
            lambda style: figures.folds(by_fold, style, nothing=nothing),
            title="Score of every fold",
            caption="SIIM Dice per fold with nested thresholds; the dashed line is the all-empty baseline.",
            alt="SIIM Dice of every fold and run, with mean and standard deviation",
        ),
        album.curve(
            "strata",
            lambda style: figures.strata(levels, style),
            title="Where the score comes from",
            caption="Dice of the positive images by mask size, view and sex, with 95 % intervals over patients.",
            alt="Dice of positive images by mask size, view and sex",
            wide=True,
        ),
    ]


def surface(album: Album, run: Run) -> page.Figure:
    final = run.row(artifacts.FINAL)
    chosen = final["top"], final["min_area"], final["bottom"]
    nothing = float(run.row(artifacts.ALL_EMPTY)["siim_dice"])
    return album.curve(
        f"surface-{run.name}",
        lambda style: figures.threshold_surface(
            run.surface, chosen, style, run=run.name, nothing=nothing
        ),
        title=f"Thresholds of {run.name}",
        caption="SIIM Dice of all out-of-fold images (naive: fitted where it is scored) over the thresholds tried; "
        "the star is the triplet for test images.",
        alt=f"Heat map of SIIM Dice over thresholds, {run.name}",
    )


def pictures(
    album: Album, output: Path, runs: list[Run], manifest: pd.DataFrame, cache_size: int
) -> list[page.Figure]:
    """The paper's figures 4 to 7."""
    train = manifest[manifest["split"] == artifacts.TRAIN]
    sample = [
        paper_figures.read(output, cache_size, each) for each in paper_figures.choose_sample(train)
    ]
    images = {run.name: run.images for run in runs}
    sizes = zip(train["height"].tolist(), train["width"].tolist(), strict=True)
    shape_of = dict(zip(train["image_id"], sizes, strict=True))
    compared = [
        paper_figures.read_compared(output, cache_size, each, shape_of[each], images)
        for each in paper_figures.choose_compared(images)
    ]
    shown = sample[len(sample) // 2]  # a mask of middling size
    augmented = augment.each_alone(shown.image, shown.truth)
    return [
        album.picture(
            "data-sample",
            paper_figures.data_sample(sample),
            title="Data sample",
            caption="The paper’s figure 4: radiographs of this data set, from small to large masks, and a negative.",
            alt="Radiographs and masks of the training data",
        ),
        album.picture(
            "augmentation",
            paper_figures.augmentation(shown, augmented),
            title="Augmentation",
            caption="The paper’s figure 5: each augmentation of training alone, at its strongest of some draws.",
            alt="One radiograph under every augmentation",
        ),
        album.curve(
            "learning",
            lambda style: figures.learning({run.name: run.histories for run in runs}, style),
            title="Learning rate",
            caption="The paper’s figure 6, with the loss and the validation score of the same epochs: thin, the folds.",
            alt="Learning rate, loss and validation score by epoch",
            wide=True,
        ),
        album.picture(
            "comparison",
            paper_figures.comparison(compared),
            title="Comparison of networks",
            caption="The paper’s figure 7: out-of-fold predictions of every run (orange) and the truth (blue line), "
            "from small to large masks, and the largest false alarm. Chosen by the truth, not by the score.",
            alt="Radiographs with the predictions of every run",
        ),
    ]


def diagrams(album: Album, runs: list[Run]) -> list[page.Figure]:
    """The paper's figures 1 and 3, of every run that knows its network."""
    drawn = []
    for run in runs:
        trace = run.network
        if trace is None:
            continue
        drawn.append(
            album.curve(
                f"network-{run.name}",
                lambda style, trace=trace: network_diagram.draw(trace, style),  # type: ignore[misc]
                title=f"Network of {run.name}",
                caption=f"As the paper’s figure 1: {trace['network']} with the shapes of a real forward pass "
                f"(channels × height × width, {trace['size']} × {trace['size']} image).",
                alt=f"Diagram of the network of {run.name}",
                wide=True,
            )
        )
    attended = next((run for run in runs if run.network and run.network["attention"]), None)
    if attended is not None:
        trace = attended.network
        drawn.append(
            album.curve(
                "attention",
                lambda style: network_diagram.draw_attention(trace, style),  # type: ignore[arg-type]
                title="Improved coordinate attention",
                caption=f"The paper’s figure 3: the first attention block of {attended.name}, with true shapes.",
                alt="Diagram of the coordinate attention block",
                wide=True,
            )
        )
    return drawn
