"""The model card: what a model was trained on, how good it is, where it is weak, what it is for.

Every number is from the stages' records, or is one that the report shows as well. There are
counts, but no id of an image or a patient.
"""

import importlib.metadata
import platform
import re
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from pneumothorax.masks.postprocess import Triplet
from pneumothorax.pipeline import artifacts, lineage, records
from pneumothorax.pipeline.artifacts import ALL_EMPTY, FINAL, TEST_ALL, TEST_CLAIMED, TEST_UNSEEN
from pneumothorax.report import runs, statistics, summary, tables, wording
from pneumothorax.report.runs import Run
from pneumothorax.scores import strata

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = "model_card.md"
OUT_OF_FOLD = "out of fold"
# Scores of the card; `facts` has all of them
SHOWN = "siim_dice positive_dice auc sensitivity specificity ppv pooled_dice".split()


def describes(output: Path, name: str) -> bool:
    """Whether stage 02 trained all runs of the submission, so that their settings are known."""
    configs = (artifacts.Run(run).config for run in lineage.runs_of(output, name))
    return all((output / config).is_file() for config in configs)


def facts(output: Path, name: str) -> dict[str, Any]:
    """What the card says of the submission `name` and its runs: JSON types, None for undefined.

    The intervals are bootstrapped with the submission's seed, those of the report by default.
    Raises BadInput, naming the command to run, if something is missing or stale.
    """
    record = lineage.submitted(output, name)
    prepared, folded = lineage.prepared(output), lineage.folded(output)
    manifest = artifacts.read_table(output, artifacts.MANIFEST)
    run = runs.load(output, name, manifest, artifacts.read_table(output, artifacts.FOLDS))
    seed = record["settings"]["seed"]
    found = statistics.compute([run], seed=seed)
    about = statistics.evaluated([run], prepared, folded)
    numbers = summary.summary([run], found, about, seed=seed)
    own = numbers["runs"][name]
    return {
        "name": name,
        "phantoms": run.phantoms or about.phantoms,
        "cautions": _cautions(run),
        "data": _data(run, numbers, prepared, folded),
        "networks": _networks(output, run),
        "cost": own["cost"],
        "scores": {OUT_OF_FOLD: _out_of_fold(own, numbers)} | _test_scores(numbers, name),
        "called_positive": record["called_positive"],
        "strata": own["strata"],
        "thresholds": record["final"],
        "calibration": {
            **record["calibration"]["final"],
            "curve": own["calibration"],
            "expected_calibration_error": record["expected_calibration_error"],
        },
        "definitions": numbers["definitions"],
        "bootstrap": numbers["bootstrap"],
        "software": _software(),
    }


def _cautions(run: Run) -> list[str]:
    """What the reader must know before the scores."""
    found = [statistics.caution(run.per_image)]
    if run.test:
        found.append(statistics.caution(run.test.per_image, "test images"))
    return [text for text in found if text]


def _data(
    run: Run, numbers: dict[str, Any], prepared: dict[str, Any], folded: dict[str, Any]
) -> dict[str, Any]:
    """Counts of the images, and the hashes that identify them."""
    about, test = numbers["evaluated"], numbers.get("test")
    counts = ("images", "positives", "patients")
    of_test = ("in_training", "unseen", "unknown")
    return {
        "phantoms": about["phantoms"],
        "layout": prepared["settings"]["layout"],
        "training": {key: about[key] for key in counts} | _values(run.per_image),
        "test": {key: test[key] for key in (*counts, *of_test)} | _values(run.test.per_image)
        if test and run.test
        else None,
        "grouping": about["grouping"],
        "folds": folded["settings"]["folds"],
        "leaks": folded["leaks"],
        "sha256": {
            "training images": prepared[artifacts.TRAINING_IMAGES],
            "folds": folded["outputs"][artifacts.FOLDS.path],
        },
    }


def _values(frame: pd.DataFrame) -> dict[str, dict[str, int]]:
    """The number of images with each value of "view" and "sex"."""
    found = {column: frame[column].replace("", strata.UNKNOWN) for column in ("view", "sex")}
    return {
        column: {str(value): int(count) for value, count in values.value_counts().items()}
        for column, values in found.items()
    }


def _networks(output: Path, run: Run) -> dict[str, Any]:
    """{training run: its weight, folds, settings, ...} of the runs that predict."""
    weights = run.weights[FINAL] if run.weights else {run.members[0]: 1.0}
    return {
        member: {"weight": weight, **_network(output, artifacts.Run(member))}
        for member, weight in weights.items()
        if weight > 0
    }


def _network(output: Path, run: artifacts.Run) -> dict[str, Any]:
    folds = records.read(output, run.predicted)["settings"]["folds"]
    trained = [records.read(output, run.fold(fold).trained) for fold in folds]
    probabilities = artifacts.read_table(output, run.predictions)["p_classification"]
    return {
        "folds": folds,
        "classification_head": bool(probabilities.notna().any()),
        "precisions": sorted({record["precision"] for record in trained if "precision" in record}),
        "settings": _without_folders(trained[0]["settings"]),
    }


def _without_folders(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run; of a file with weights the name alone."""
    network = settings["model_settings"]
    if isinstance(weights := network.get("encoder_weights"), str):
        network = {**network, "encoder_weights": re.split(r"[/\\]", weights)[-1]}
    return {**settings, "model_settings": network}


def _out_of_fold(own: dict[str, Any], numbers: dict[str, Any]) -> dict[str, Any]:
    """The cross-validation of all images together."""
    rows = {row["row"]: row for row in own["cross_validation"]}
    ends = {row["score"]: {end: row[end] for end in ("low", "high")} for row in own["intervals"]}
    return {
        "images": rows["all"]["images"],
        "positives": rows["all"]["positives"],
        "scores": {
            score: {"value": rows["all"][score], **ends[score]} for score in artifacts.SCORE_COLUMNS
        },
        "all_empty": {score: rows[ALL_EMPTY][score] for score in artifacts.SCORE_COLUMNS},
        "above_all_empty": _above_all_empty(numbers["differences"]),
        "naive_siim_dice": rows["all"]["naive_siim_dice"],
    }


def _test_scores(numbers: dict[str, Any], name: str) -> dict[str, Any]:
    """All labelled test images, and those of unseen patients; {} without any."""
    if "test" not in numbers:
        return {}
    rows = {row["row"]: row for row in numbers["test"]["runs"][name]}
    found = {group: _test_group(rows, group) for group in (TEST_ALL, TEST_UNSEEN)}
    found[TEST_ALL]["above_all_empty"] = _above_all_empty(numbers["test"]["differences"])
    found[TEST_ALL]["naive_siim_dice"] = rows[TEST_CLAIMED]["siim_dice"]
    return found


def _test_group(rows: dict[str, dict[str, Any]], group: str) -> dict[str, Any]:
    own, all_empty = rows[group], rows[f"{ALL_EMPTY}, {group}"]
    return {
        "images": own["images"],
        "positives": own["positives"],
        "scores": {
            score: {"value": own[score], "low": own[f"{score}_low"], "high": own[f"{score}_high"]}
            for score in artifacts.SCORE_COLUMNS
        },
        "all_empty": {score: all_empty[score] for score in artifacts.SCORE_COLUMNS},
    }


def _above_all_empty(differences: list[dict[str, Any]]) -> dict[str, Any]:
    """How much higher the SIIM Dice is, of the only pair: the model and the baseline."""
    only = next(row for row in differences if row["second"] == ALL_EMPTY)
    return {key: only[key] for key in ("difference", "low", "high", "p")}


def _software() -> dict[str, str | None]:
    """What the card was written with; the training's own versions are in no record."""
    import torch

    return {
        "pneumothorax": _version(),
        "commit": _commit(),
        "Python": platform.python_version(),
        "PyTorch": str(torch.__version__),
        "NumPy": np.__version__,
        "OpenCV": cv2.__version__,
    }


def _version() -> str:
    """Of this package, also where it is not installed."""
    try:
        return importlib.metadata.version("pneumothorax")
    except importlib.metadata.PackageNotFoundError:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
        return str(project["version"])


def _commit() -> str | None:
    """Of the git checkout that this file is in, with "-dirty" after changes; None without one."""
    if not (ROOT / ".git").exists():
        return None
    words = "describe --always --dirty --abbrev=40 --exclude=*".split()
    try:
        done = subprocess.run(  # noqa: S603
            ["git", "-C", str(ROOT), *words],  # noqa: S607
            check=True,
            capture_output=True,
            text=True,
        )
    except (OSError, subprocess.CalledProcessError):  # no git, or it does not trust the folder
        return None
    return done.stdout.strip()


def as_markdown(facts: Mapping[str, Any]) -> str:
    """MODEL_CARD.md from `facts`, which may have been JSON in between."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pneumothorax.inference"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    formats = (wording.score, wording.percent, wording.signed, wording.count, wording.scaled)
    environment.filters |= {each.__name__: each for each in (*formats, wording.duration)}
    environment.filters |= {"interval": _interval, "values": _values_in_words, "g": "{:.7g}".format}
    final = Triplet(**facts["thresholds"])
    unknown = _unknown_strata(facts["strata"])
    validated = facts["scores"][OUT_OF_FOLD]
    missed, called = _mistakes(validated)
    return environment.get_template(TEMPLATE).render(
        **facts,
        tested=facts["scores"].get(TEST_ALL),
        unseen=facts["scores"].get(TEST_UNSEEN),
        validated=validated,
        missed=missed,
        called=called,
        epoch_was_chosen=_epoch_was_chosen(facts["networks"]),
        kind=_kind(facts),
        shown=SHOWN,
        labels=tables.LABELS,
        weakest=_weakest(facts["strata"]),
        positive_if=_positive_if(final),
        levels=[row for row in facts["strata"] if row["stratum"] not in unknown],
        unknown=unknown,
        final=final,
    )


def _kind(facts: Mapping[str, Any]) -> str:
    """What the training images are."""
    if facts["data"]["phantoms"]:
        return "phantoms"
    return "images" if facts["phantoms"] else "radiographs"


def _mistakes(scores: Mapping[str, Any]) -> tuple[int, int | None]:
    """The positives without a mask, and the negatives with one: None without negatives."""
    rates = [scores["scores"][name]["value"] for name in ("sensitivity", "specificity")]
    missed = round((1 - rates[0]) * scores["positives"])
    if rates[1] is None:
        return missed, None
    return missed, round((1 - rates[1]) * (scores["images"] - scores["positives"]))


def _epoch_was_chosen(networks: Mapping[str, Any]) -> bool:
    """Whether some training validated more than its last epoch."""
    settings = [network["settings"] for network in networks.values()]
    return any(each["validate_every"] < each["epochs"] for each in settings)


def _interval(score: Mapping[str, Any], name: str = "", *, signed: bool = False) -> str:
    """The interval of {"low", "high"}, or of {"<name>_low", "<name>_high"}; a dash without one."""
    low, high = (score[f"{name}_{end}" if name else end] for end in ("low", "high"))
    return wording.interval((low, high), wording.signed if signed else wording.score) or "–"


def _values_in_words(counts: Mapping[str, int]) -> str:
    """{"PA": 300, "AP": 202} -> 300 PA, 202 AP"""
    return ", ".join(f"{wording.count(number)} {value}" for value, number in counts.items())


def _weakest(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The size of masks with the lowest Dice."""
    sizes = [row for row in rows if row["stratum"] == "mask size" and row["positives"]]
    return min(sizes, key=lambda row: row["positive_dice"])


def _unknown_strata(rows: list[dict[str, Any]]) -> list[str]:
    """A view or a sex that no image states: its scores are those of all images."""
    known = {row["stratum"] for row in rows if row["level"] != strata.UNKNOWN}
    return [row["stratum"] for row in rows if row["stratum"] not in known]


def _positive_if(final: Triplet) -> list[str]:
    """The conditions that an image must meet, all of them, to be called positive."""
    found = []
    if final.min_probability:
        found.append(f"its image-level probability is at least {final.min_probability:g}")
    if final.min_area:
        pixels = f"{final.min_area:,.0f} pixels"
        found.append(f"at least {pixels} have a probability above {final.top:g}")
    pixels = f"{final.min_component:,.0f} connected pixels have"
    pixels = pixels if final.min_component else "one pixel has"
    return [*found, f"at least {pixels} a probability above {final.bottom:g}"]
