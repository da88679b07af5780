"""The report's HTML page: one file with its style and script inside, opened without a network or a server."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import jinja2
import pandas as pd

from pneumothorax import metrics, plotting
from pneumothorax.pipeline import artifacts
from pneumothorax.pipeline.artifacts import ALL_EMPTY, FINAL
from pneumothorax.report import gallery

MISSING = "–"
LABELS = {
    "siim_dice": "SIIM Dice",
    "positive_dice": "Dice of positives",
    "pooled_dice": "pooled Dice",
    "pooled_precision": "pooled precision",
    "pooled_recall": "pooled recall",
    "pooled_iou": "pooled IoU",
    "image_precision": "image-wise precision",
    "image_recall": "image-wise recall",
    "image_iou": "image-wise IoU",
    "auc": "AUC",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "ppv": "PPV",
}
IMAGE_MEANS = ("siim_dice", "image_precision", "image_recall", "image_iou")
POOLED = ("pooled_dice", "pooled_precision", "pooled_recall", "pooled_iou")
PAPER = {  # its Table 1: Dice, precision, recall, IoU in percent
    "U-Net": (82.36, 89.56, 84.51, 78.85),
    "CheXLocNet": (82.82, 90.36, 84.78, 79.17),
    "AlbuNet": (83.25, 91.41, 86.58, 79.92),
    "ICA-ResUNet": (85.67, 92.42, 87.25, 81.37),
}
THRESHOLDS = artifacts.TRIPLET_COLUMNS


@dataclass(frozen=True)
class Evaluated:
    """What was evaluated.

    Args:
        grouping: how patients are known, as part of a sentence.
        cautions: sentences the reader must know before the numbers.
        drawn: the images are the demo data's drawn chests.
    """

    images: int
    positives: int
    patients: int
    folds: int
    grouping: str
    cautions: Sequence[str] = ()
    drawn: bool = False


@dataclass(frozen=True)
class Cost:
    """What a network costs, or all networks of a blend together; None where it is not known.

    Args:
        multiply_adds: of one image.
        seconds: of training, all folds together.
        device: where it was trained.
    """

    parameters: int | None = None
    multiply_adds: int | None = None
    seconds: float | None = None
    peak_memory_mib: float | None = None
    device: str = ""


@dataclass(frozen=True)
class Run:
    """One run's tables.

    Args:
        table: artifacts.Submission.cross_validation rows.
        intervals: score, low, high (bootstrap.intervals, all images); may be empty.
        strata: strata.table rows; may be empty.
        steps: artifacts.Submission.steps rows; may be empty.
        weights: of a blend's runs: the row of the cross-validation table -> run -> weight; {} where it is no blend.
    """

    name: str
    table: pd.DataFrame
    intervals: pd.DataFrame = field(
        default_factory=lambda: pd.DataFrame(columns=["score", "low", "high"])
    )
    strata: pd.DataFrame = field(default_factory=pd.DataFrame)
    steps: pd.DataFrame = field(default_factory=pd.DataFrame)
    weights: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)


@dataclass(frozen=True)
class Figure:
    """A picture; `light` and `dark` are paths seen from the page, `dark` for dark screens; `wide` fills the row."""

    title: str
    caption: str
    light: str
    alt: str
    dark: str | None = None
    wide: bool = False


@dataclass(frozen=True)
class Content:
    """All that the page shows.

    Args:
        differences: comparison.all_pairs rows; may be empty.
        figures: by group title, in order.
        has_gallery: gallery.write has written its files beside the page.
    """

    evaluated: Evaluated
    runs: Sequence[Run]
    differences: pd.DataFrame = field(default_factory=pd.DataFrame)
    figures: Mapping[str, Sequence[Figure]] = field(default_factory=dict)
    has_gallery: bool = True


def render(content: Content) -> str:
    """The whole page; every text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pneumothorax.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"count": count, "anchor": anchor}
    return environment.get_template("report.html").render(
        evaluated=content.evaluated,
        share=percent(
            content.evaluated.positives / content.evaluated.images
            if content.evaluated.images
            else None,
            1,
        ),
        networks=[
            network_row(ALL_EMPTY, _row(content.runs[0], ALL_EMPTY), Cost(), {}),
            *map(run_row, content.runs),
        ],
        paper={name: [f"{score:.2f}" for score in scores] for name, scores in PAPER.items()},
        devices=devices(content.runs),
        runs=[
            {"name": run.name, "rows": fold_rows(run), "weights": weight_rows(run)}
            for run in content.runs
        ],
        optimism=[optimism(run) for run in content.runs],
        steps=[
            {"name": run.name, "rows": step_rows(run)}
            for run in content.runs
            if not run.steps.empty
        ],
        differences=[difference_row(row) for row in content.differences.to_dict("records")],
        strata=strata(content.runs),
        figures={title: list(figures) for title, figures in content.figures.items() if figures},
        has_gallery=content.has_gallery,
        data_file=gallery.DATA,
        labels=LABELS,
        thresholds=THRESHOLDS,
        definitions=metrics.DEFINITIONS,
        image_means=IMAGE_MEANS,
        pooled=POOLED,
        truth="#" + bytes(plotting.TRUTH_RGB).hex(),
        prediction="#" + bytes(plotting.PREDICTION_RGB).hex(),
        style=_own("report.css"),
        script=_own("gallery.js"),
    )


def devices(runs: Sequence[Run]) -> list[str]:
    """Where the runs were trained: once where it was the same for all, else run by run."""
    names = {run.cost.device for run in runs}
    return (
        sorted(names - {""})
        if len(names) == 1
        else [f"{run.name}: {run.cost.device or MISSING}" for run in runs]
    )


def run_row(run: Run) -> dict[str, Any]:
    return network_row(run.name, _row(run, "all"), run.cost, _intervals(run))


def network_row(
    name: str, scores: Mapping[str, Any], cost: Cost, intervals: Mapping[str, tuple[float, float]]
) -> dict[str, Any]:
    """One line of Table 1, as text; scores in percent, as in the paper."""
    return {
        "name": name,
        "scores": {score: percent(scores.get(score)) for score in (*IMAGE_MEANS, *POOLED)},
        "interval": interval(intervals.get("siim_dice"), percent),
        "parameters": scaled(cost.parameters),
        "multiply_adds": scaled(cost.multiply_adds),
        "seconds": duration(cost.seconds),
        "memory": memory(cost.peak_memory_mib),
    }


def fold_rows(run: Run) -> list[dict[str, Any]]:
    """The cross-validation table's lines: all-empty baseline, the folds, mean, standard deviation, all images."""
    table = run.table.set_index("row")
    folds = [name for name in table.index if name.startswith("fold ")]
    titles = {ALL_EMPTY: ALL_EMPTY, **dict(zip(folds, folds, strict=True)), "mean": "mean of folds"}
    titles |= {
        "std": "standard deviation",
        "all": "all images",
        FINAL: "thresholds for test images",
    }
    lines = [_fold_line(titles[name], name, table) for name in titles if name in table.index]
    bounds = {name: interval(ends, score) for name, ends in _intervals(run).items()}
    if bounds:
        blank = dict.fromkeys(("images", "positives", "nothing", "naive", *THRESHOLDS), "")
        line = {
            "title": "95 % interval",
            "kind": "interval",
            "scores": {name: bounds.get(name, "") for name in LABELS},
        }
        lines.insert([each["kind"] for each in lines].index("all") + 1, {**blank, **line})
    return lines


def _fold_line(title: str, name: str, table: pd.DataFrame) -> dict[str, Any]:
    row = dict(table.loc[name])
    nothing = {
        "all": ALL_EMPTY,
        **{each: f"{ALL_EMPTY}, {each}" for each in table.index if each.startswith("fold ")},
    }
    baseline = table["siim_dice"].get(nothing.get(name, ""))
    scored = name != FINAL
    return {
        "title": title,
        "kind": name.split(maxsplit=1)[0],
        "images": count(row["images"]) if scored and name not in ("mean", "std") else "",
        "positives": count(row["positives"]) if scored and name not in ("mean", "std") else "",
        "scores": {column: score(row[column]) if scored else "" for column in LABELS},
        "nothing": score(baseline) if name in nothing else "",
        "naive": "" if pd.isna(row["naive_siim_dice"]) else score(row["naive_siim_dice"]),
        **{column: threshold(column, row[column]) for column in THRESHOLDS},
    }


def weight_rows(run: Run) -> list[dict[str, Any]]:
    """One line per run of a blend: its weight for each fold, and for the test images last."""
    rows = {"test images" if row == FINAL else row: weights for row, weights in run.weights.items()}
    members = next(iter(rows.values()), {})
    return [
        {"name": member, "weights": {row: f"{own[member]:g}" for row, own in rows.items()}}
        for member in members
    ]


def step_rows(run: Run) -> list[dict[str, str]]:
    """What each part of the post-processing adds: SIIM Dice of all images, nested and naive."""
    return [
        {
            "step": str(row["step"]),
            "nested": score(row["siim_dice"]),
            "naive": score(row["naive_siim_dice"]),
        }
        for row in run.steps.to_dict("records")
    ]


def optimism(run: Run) -> dict[str, str]:
    """Nested beside naive thresholds: SIIM Dice of all images."""
    row = _row(run, "all")
    nested, naive = row["siim_dice"], row["naive_siim_dice"]
    return {
        "name": run.name,
        "nested": score(nested),
        "naive": score(naive),
        "optimism": signed(naive - nested),
    }


def difference_row(row: Mapping[Any, Any]) -> dict[str, str]:
    return {
        "first": str(row["first"]),
        "second": str(row["second"]),
        "score": LABELS.get(row["score"], str(row["score"])),
        "difference": signed(row["difference"]),
        "interval": interval((row["low"], row["high"]), signed),
        "p": p_value(row["p"]),
        "p_holm": p_value(row["p_holm"]),
    }


def strata(runs: Sequence[Run]) -> dict[str, list[dict[str, Any]]]:
    """{stratum: levels}, each level with its images and a line of scores per run."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for run in runs:
        for row in run.strata.to_dict("records"):
            levels = found.setdefault(str(row["stratum"]), {})
            facts = {name: count(row[name]) for name in ("images", "positives")}
            baseline = {
                "level": row["level"],
                **facts,
                ALL_EMPTY: score(row["all_empty"]),
                "runs": [],
            }
            levels.setdefault(str(row["level"]), baseline)["runs"].append(
                {
                    "name": run.name,
                    **{
                        name: score(row[name])
                        for name in ("siim_dice", "positive_dice", "sensitivity", "specificity")
                    },
                    **{
                        f"{name}_interval": interval(
                            (row[f"{name}_low"], row[f"{name}_high"]), score
                        )
                        for name in ("siim_dice", "positive_dice")
                    },
                }
            )
    return {stratum: list(levels.values()) for stratum, levels in found.items()}


def score(value: float | None) -> str:
    """0.85673 -> 0.8567"""
    return MISSING if _missing(value) else f"{value:.4f}"


def percent(value: float | None, digits: int = 2) -> str:
    """0.85673 -> 85.67, without the sign"""
    return MISSING if value is None or _missing(value) else f"{100 * value:.{digits}f}"


def signed(value: float | None) -> str:
    """-0.01234 -> −0.0123, with a minus sign as wide as the plus"""
    return MISSING if _missing(value) else f"{value:+.4f}".replace("-", "−")


def interval(ends: tuple[float, float] | None, text: Any) -> str:
    """(low, high) -> "low to high", each by `text`; "" where there is none."""
    if ends is None or _missing(ends[0]) or _missing(ends[1]):
        return ""
    return f"{text(ends[0])} to {text(ends[1])}"


def p_value(value: float | None) -> str:
    if value is None or _missing(value):
        return MISSING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def threshold(name: str, value: float) -> str:
    """0.35 -> 0.35; whether holes are filled as a word"""
    if pd.isna(value):
        return ""
    return ("filled" if value else "kept") if name == "fill_holes" else f"{value:.7g}"


def count(value: float) -> str:
    """12047 -> 12,047"""
    return f"{int(value):,}"


def scaled(value: float | None) -> str:
    """24436369 -> 24.4 M"""
    if value is None or _missing(value):
        return MISSING
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:,.1f} {unit}"
    return f"{value:.0f}"


def duration(seconds: float | None) -> str:
    """11520 -> 3 h 12 min"""
    if seconds is None or _missing(seconds):
        return MISSING
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def memory(mib: float | None) -> str:
    """8090 -> 7.9 GiB"""
    if mib is None or _missing(mib):
        return MISSING
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.0f} MiB"


def anchor(text: str) -> str:
    """Letters, digits and hyphens, for an element's id."""
    return "".join(
        letter if letter.isascii() and letter.isalnum() else "-" for letter in text.lower()
    )


def _missing(value: Any) -> bool:
    return value is None or bool(pd.isna(value))


def _row(run: Run, name: str) -> dict[str, Any]:
    return dict(run.table.set_index("row").loc[name])


def _intervals(run: Run) -> dict[str, tuple[float, float]]:
    rows: Iterable[tuple[str, float, float]] = run.intervals[["score", "low", "high"]].itertuples(
        index=False
    )
    return {name: (low, high) for name, low, high in rows}


def _own(name: str) -> str:
    """A file beside the page's template that goes in as it is."""
    return (
        resources.files("pneumothorax.report")
        .joinpath("templates", name)
        .read_text(encoding="utf-8")
    )
