"""The look of all figures and pages. The same data give the same bytes.

No function touches pyplot or its settings.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Truth and prediction on grey radiographs; can be told apart with any colour vision.
TRUTH_RGB, PREDICTION_RGB = (0, 158, 255), (255, 176, 0)

Look = dict[str, Any]  # keywords of matplotlib

LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")


@dataclass(frozen=True)
class Style:
    """Colours of a figure.

    Args:
        series: from Okabe and Ito's palette for any colour vision, those visible on `page`.
        page: the colour behind the figure; pale fills are mixed with it.
        background: None is transparent.
    """

    name: str
    text: str
    muted: str
    series: tuple[str, ...]
    page: str
    background: str | None = None

    @contextlib.contextmanager
    def settings(self) -> Iterator[None]:
        """matplotlib's defaults with these colours; the user's matplotlibrc is ignored."""
        import matplotlib

        own: Look = {
            "font.family": ["DejaVu Sans"],
            "font.size": 10.0,
            "axes.titlesize": 11.0,
            "legend.fontsize": 9.0,
            "text.color": self.text,
            "axes.labelcolor": self.text,
            "axes.titlecolor": self.text,
            "xtick.color": self.muted,
            "ytick.color": self.muted,
            "xtick.labelcolor": self.text,
            "ytick.labelcolor": self.text,
            "axes.edgecolor": self.muted,
            "axes.facecolor": "none",
            "figure.facecolor": self.background or "none",
            "savefig.facecolor": "auto",
            "axes.grid": True,
            "grid.color": self.muted,
            "grid.alpha": 0.3,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
            "svg.hashsalt": "pneumothorax",
            "svg.fonttype": "path",
        }
        defaults: Look = {
            key: value
            for key, value in matplotlib.rcParamsDefault.items()
            if not key.startswith("backend")
        }
        with matplotlib.rc_context():
            current: Any = matplotlib.rcParams
            current.update({**defaults, **own})
            yield

    def colour(self, number: int) -> str:
        return self.series[number % len(self.series)]

    def pale(self, number: int, share: float = 0.18) -> tuple[float, ...]:
        """The colour of series `number` mixed with the page's, opaque."""
        from matplotlib.colors import to_rgb

        mixed = zip(to_rgb(self.colour(number)), to_rgb(self.page), strict=True)
        return tuple(share * one + (1 - share) * page for one, page in mixed)

    def line(self, number: int) -> Look:
        """Colour and dash of the series `number`; dashes help where colours do not."""
        return {"color": self.colour(number), "linestyle": LINES[number % len(LINES)]}

    def dots(self, number: int) -> Look:
        return {"color": self.colour(number), "marker": MARKERS[number % len(MARKERS)]}


_SHARED = ("#E69F00", "#009E73", "#CC79A7")
LIGHT = Style(
    "light",
    "#1a1a1a",
    "#6b6b6b",
    ("#0072B2", "#D55E00", *_SHARED[1:], _SHARED[0], "#56B4E9", "#7a7a7a"),
    "#ffffff",
)
DARK = Style(
    "dark", "#eeeeee", "#9a9a9a", ("#56B4E9", *_SHARED, "#F0E442", "#D55E00", "#bbbbbb"), "#111111"
)
PICTURES = Style(
    "pictures", "#eeeeee", "#9a9a9a", DARK.series, "#000000", background="#000000"
)  # radiographs: on both pages


def new(style: Style, width: float, height: float) -> Figure:
    """An empty figure of width x height inches; call it within `style.settings()`."""
    from matplotlib.figure import Figure

    return Figure(
        figsize=(width, height), layout="constrained", facecolor=style.background or "none"
    )


def rendered(figure: Figure, ending: str, *, dpi: int = 100) -> bytes:
    """The figure as the bytes of an "svg" or "png" file; the same figure gives the same bytes."""
    metadata = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}
    if ending not in metadata:
        raise ValueError(f"figures are svg or png, got {ending!r}")
    buffer = io.BytesIO()
    with LIGHT.settings():  # what saving looks up is the same in all styles
        figure.savefig(buffer, format=ending, dpi=dpi, metadata=metadata[ending])
    return buffer.getvalue()


def template(package: str, name: str) -> str:
    """A file of the package's `templates`; those of "pneumothorax" are inside every page."""
    return resources.files(package).joinpath("templates", name).read_text(encoding="utf-8")
