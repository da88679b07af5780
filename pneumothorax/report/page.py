"""The report's HTML page: one file with its style and script inside, readable offline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jinja2

from pneumothorax import metrics, plotting
from pneumothorax.pipeline.artifacts import TRIPLET_COLUMNS
from pneumothorax.report import gallery, tables, wording
from pneumothorax.report.runs import Run
from pneumothorax.report.statistics import Evaluated, Statistics

VERSION = 1  # of all that stage 05 writes; raise it, and up-to-date reports are made again


@dataclass(frozen=True)
class Figure:
    """`light` and `dark` are paths as seen from the page; `wide` fills the row.

    `radiographs`: it shows some, so it is left out of a page without them.
    """

    title: str
    caption: str
    light: str
    alt: str
    dark: str | None = None
    wide: bool = False
    radiographs: bool = False


def render(
    evaluated: Evaluated,
    runs: Sequence[Run],
    statistics: Statistics,
    figures: Mapping[str, Sequence[Figure]],
    *,
    with_images: bool = True,
) -> str:
    """The whole page; every text is escaped.

    Args:
        figures: by the title of their section, in order.
        with_images: False leaves out the gallery and every figure that shows radiographs.
            Otherwise gallery.write has written its files next to the page.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pneumothorax.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    shown = {
        title: [figure for figure in group if with_images or not figure.radiographs]
        for title, group in figures.items()
    }
    environment.filters |= {"count": wording.count, "anchor": wording.anchor}
    return environment.get_template("report.html").render(
        **tables.all_of(runs, statistics),
        evaluated=evaluated,
        test=statistics.test,
        share=wording.percent(evaluated.positives / max(1, evaluated.images), 1),
        paper={name: [f"{score:.2f}" for score in scores] for name, scores in tables.PAPER.items()},
        figures={title: group for title, group in shown.items() if group},
        with_images=with_images,
        data_file=gallery.DATA,
        labels=tables.LABELS,
        thresholds=TRIPLET_COLUMNS,
        stratum_scores=tables.STRATUM_SCORES,
        definitions=metrics.DEFINITIONS,
        image_means=tables.IMAGE_MEANS,
        pooled=tables.POOLED,
        truth="#" + bytes(plotting.TRUTH_RGB).hex(),
        prediction="#" + bytes(plotting.PREDICTION_RGB).hex(),
        style=_with_shared("page.css", "report.css"),
        script=_with_shared("gallery.js", "report.js"),
    )


def files(figures: Mapping[str, Sequence[Figure]]) -> list[str]:
    """The paths of all figures, as seen from the page."""
    shown = [figure for group in figures.values() for figure in group]
    return [path for figure in shown for path in (figure.light, figure.dark) if path]


def _with_shared(shared: str, own: str) -> str:
    """A template that all pages share, then the report's own."""
    template = plotting.template
    return template("pneumothorax", shared) + template("pneumothorax.report", own)
