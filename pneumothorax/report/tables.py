"""The page's tables: every number as text, in the order in which the page shows it."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from pneumothorax.pipeline.artifacts import (
    ALL_EMPTY,
    FINAL,
    SCORE_COLUMNS,
    TEST_ALL,
    TEST_CLAIMED,
    TEST_UNSEEN,
    TRIPLET_COLUMNS,
)
from pneumothorax.report import wording
from pneumothorax.report.runs import Cost, Run, TestResults
from pneumothorax.report.statistics import Statistics

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
TEST_GROUPS = TEST_ALL, TEST_UNSEEN
STRATUM_SCORES = ("siim_dice", "positive_dice", "sensitivity", "specificity")


def all_of(runs: Sequence[Run], statistics: Statistics) -> dict[str, Any]:
    """The page's tables, every number as text."""
    intervals = {run.name: _intervals(statistics.intervals[run.name]) for run in runs}
    tested = {run.name: run.test for run in runs if run.test}
    baseline = runs[0].row(ALL_EMPTY)
    networks = [
        network_row(ALL_EMPTY, baseline, Cost(), {}),
        *(network_row(run.name, run.row("all"), run.cost, intervals[run.name]) for run in runs),
    ]
    return {
        "networks": [
            {"title": "cross-validation", "counts": counts(baseline), "rows": networks},
            *(test_networks(tested, row) for row in TEST_GROUPS if tested),
        ],
        "test_scores": test_scores(tested) if tested else [],
        "transfer": [transfer(run) for run in runs if run.test],
        "devices": devices(runs),
        "runs": [
            {
                "name": run.name,
                "rows": fold_rows(run, intervals[run.name]),
                "weights": weight_rows(run),
            }
            for run in runs
        ],
        "optimism": [optimism(run) for run in runs],
        "steps": [{"name": run.name, "rows": step_rows(run)} for run in runs if len(run.steps)],
        "differences": difference_rows(statistics.differences),
        "test_differences": difference_rows(statistics.test.differences) if statistics.test else [],
        "strata": strata({run.name: statistics.strata[run.name] for run in runs}),
    }


def devices(runs: Sequence[Run]) -> list[str]:
    """Where the runs were trained: once if it is the same for all, else run by run."""
    names = {run.cost.device for run in runs}
    if len(names) == 1:
        return sorted(names - {""})
    return [f"{run.name}: {run.cost.device or wording.MISSING}" for run in runs]


def network_row(
    name: str,
    scores: Mapping[str, Any],
    cost: Cost | None,
    intervals: Mapping[str, tuple[float, float]],
) -> dict[str, Any]:
    """A row of Table 1; scores in percent, as in the paper. Without a cost, `costs` is []."""
    return {
        "name": name,
        "scores": {score: wording.percent(scores.get(score)) for score in (*IMAGE_MEANS, *POOLED)},
        "interval": wording.interval(intervals.get("siim_dice"), wording.percent),
        "costs": [
            wording.scaled(cost.parameters),
            wording.scaled(cost.multiply_adds),
            wording.duration(cost.seconds),
            wording.memory(cost.peak_memory_mib),
        ]
        if cost
        else [],
    }


def counts(row: Mapping[str, Any]) -> str:
    """Of a row with `images` and `positives`: 1,372 images, 290 with pneumothorax"""
    images = f"{wording.count(row['images'])} image{'' if row['images'] == 1 else 's'}"
    return f"{images}, {wording.count(row['positives'])} with pneumothorax"


def test_networks(tested: Mapping[str, TestResults], row: str) -> dict[str, Any]:
    """Rows of Table 1 on the test images; what a network costs is in the rows above them.

    Args:
        row: one of TEST_GROUPS.
    """
    first = next(iter(tested.values()))
    lines = {ALL_EMPTY: first.baseline(row)} | {run: test.row(row) for run, test in tested.items()}
    return {
        "title": row if row == TEST_ALL else f"{TEST_ALL}, {row}",
        "counts": counts(first.row(row)),
        "rows": [
            network_row(name, line, None, {"siim_dice": _ends(line, "siim_dice")})
            for name, line in lines.items()
        ],
    }


def test_scores(tested: Mapping[str, TestResults]) -> list[dict[str, Any]]:
    """Every score of the all-empty baseline and of each run, with intervals.

    All test images first, then those of unseen patients.
    """
    lines = {run: [test.row(row) for row in TEST_GROUPS] for run, test in tested.items()}
    first = next(iter(tested.values()))
    lines = {ALL_EMPTY: [first.baseline(row) for row in TEST_GROUPS], **lines}
    return [
        {
            "name": name,
            "rows": [_test_row(row, line) for row, line in zip(TEST_GROUPS, of_run, strict=True)],
        }
        for name, of_run in lines.items()
    ]


def _test_row(row: str, line: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "patients": {TEST_ALL: "all", TEST_UNSEEN: "unseen"}[row],
        "images": wording.count(line["images"]),
        "positives": wording.count(line["positives"]),
        "scores": {score: wording.score(line[score]) for score in SCORE_COLUMNS},
        "intervals": {
            score: wording.interval(_ends(line, score), wording.score) for score in SCORE_COLUMNS
        },
    }


def transfer(run: Run) -> dict[str, str]:
    """SIIM Dice out of fold, on the test images, and as their own thresholds would claim it."""
    assert run.test is not None
    settled, claimed = (run.test.row(row)["siim_dice"] for row in (TEST_ALL, TEST_CLAIMED))
    return {
        "name": run.name,
        "cross_validation": wording.score(run.row("all")["siim_dice"]),
        "settled": wording.score(settled),
        "claimed": wording.score(claimed),
        "gap": wording.signed(claimed - settled),
    }


def _ends(line: Mapping[str, Any], score: str) -> tuple[float, float]:
    return line[f"{score}_low"], line[f"{score}_high"]


def fold_rows(run: Run, intervals: Mapping[str, tuple[float, float]]) -> list[dict[str, Any]]:
    """The cross-validation table: baseline, folds, mean, deviation, all images, its interval."""
    table = run.table.set_index("row")
    folds = [name for name in table.index if name.startswith("fold ")]
    titles = {ALL_EMPTY: ALL_EMPTY, **dict(zip(folds, folds, strict=True))}
    titles |= {"mean": "mean of folds", "std": "standard deviation", "all": "all images"}
    titles[FINAL] = "thresholds for test images"
    lines = [_fold_row(titles[name], name, table) for name in titles if name in table.index]
    bounds = {name: wording.interval(ends, wording.score) for name, ends in intervals.items()}
    if bounds:
        line = dict.fromkeys(("images", "positives", "all_empty", "naive", *TRIPLET_COLUMNS), "")
        line |= {"title": "95 % interval", "kind": "interval"}
        scores = {name: bounds.get(name, "") for name in LABELS}
        place = [each["kind"] for each in lines].index("all") + 1
        lines.insert(place, {**line, "scores": scores})
    return lines


def _fold_row(title: str, name: str, table: pd.DataFrame) -> dict[str, Any]:
    row = dict(table.loc[name])
    baseline_row = {"all": ALL_EMPTY}.get(name, f"{ALL_EMPTY}, {name}")
    baseline = table["siim_dice"].get(baseline_row)
    scored, counted = name != FINAL, name not in (FINAL, "mean", "std")
    return {
        "title": title,
        "kind": name.split(maxsplit=1)[0],
        "images": wording.count(row["images"]) if counted else "",
        "positives": wording.count(row["positives"]) if counted else "",
        "scores": {column: wording.score(row[column]) if scored else "" for column in LABELS},
        "all_empty": "" if baseline is None else wording.score(baseline),
        "naive": "" if pd.isna(row["naive_siim_dice"]) else wording.score(row["naive_siim_dice"]),
        **{column: wording.threshold(column, row[column]) for column in TRIPLET_COLUMNS},
    }


def weight_rows(run: Run) -> list[dict[str, Any]]:
    """A row per run of a blend: its weight for each fold, and for the test images last."""
    rows = {"test images" if row == FINAL else row: weights for row, weights in run.weights.items()}
    members = run.members if rows else ()
    return [
        {
            "name": member,
            "weights": {row: f"{weights[member]:g}" for row, weights in rows.items()},
        }
        for member in members
    ]


def step_rows(run: Run) -> list[dict[str, str]]:
    """What each step of the post-processing adds: SIIM Dice of all images, nested and naive."""
    return [
        {
            "step": str(row["step"]),
            "nested": wording.score(row["siim_dice"]),
            "naive": wording.score(row["naive_siim_dice"]),
        }
        for row in run.steps.to_dict("records")
    ]


def optimism(run: Run) -> dict[str, str]:
    """SIIM Dice of all images with nested and with naive thresholds."""
    row = run.row("all")
    nested, naive = row["siim_dice"], row["naive_siim_dice"]
    return {
        "name": run.name,
        "nested": wording.score(nested),
        "naive": wording.score(naive),
        "optimism": wording.signed(naive - nested),
    }


def difference_rows(table: pd.DataFrame) -> list[dict[str, str]]:
    """Of comparison.all_pairs rows."""
    return [
        {
            "first": str(row["first"]),
            "second": str(row["second"]),
            "score": LABELS.get(row["score"], str(row["score"])),
            "difference": wording.signed(row["difference"]),
            "interval": wording.interval((row["low"], row["high"]), wording.signed),
            "p": wording.p_value(row["p"]),
            "p_holm": wording.p_value(row["p_holm"]),
        }
        for row in table.to_dict("records")
    ]


def strata(tables: Mapping[str, pd.DataFrame]) -> dict[str, list[dict[str, Any]]]:
    """{run: strata.table rows} -> {stratum: levels}, each level with a line of scores per run."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for run, table in tables.items():
        for row in table.to_dict("records"):
            level = {
                "level": row["level"],
                "images": wording.count(row["images"]),
                "positives": wording.count(row["positives"]),
                "all_empty": wording.score(row["all_empty"]),
                "runs": [],
            }
            levels = found.setdefault(str(row["stratum"]), {})
            levels.setdefault(str(row["level"]), level)["runs"].append(_stratum_scores(run, row))
    return {stratum: list(levels.values()) for stratum, levels in found.items()}


def _stratum_scores(run: str, row: Mapping[Any, Any]) -> dict[str, str]:
    line = {"name": run} | {name: wording.score(row[name]) for name in STRATUM_SCORES}
    for name in ("siim_dice", "positive_dice"):
        ends = row[f"{name}_low"], row[f"{name}_high"]
        line[f"{name}_interval"] = wording.interval(ends, wording.score)
    return line


def _intervals(table: pd.DataFrame) -> dict[str, tuple[float, float]]:
    ends = zip(table["low"].tolist(), table["high"].tolist(), strict=True)
    return dict(zip(table["score"], ends, strict=True))
