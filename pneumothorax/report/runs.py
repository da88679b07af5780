"""The submissions that a report compares, as stage 04 left them, and what their networks cost."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pneumothorax.errors import BadInput, bad_list
from pneumothorax.pipeline import artifacts, lineage, records
from pneumothorax.scores import per_image


@dataclass(frozen=True)
class Cost:
    """What a network costs, or all networks of a blend together; None where it is not known.

    Args:
        multiply_adds: for one image.
        seconds: of training, all folds together.
        device: where it was trained.
    """

    parameters: int | None = None
    multiply_adds: int | None = None
    seconds: float | None = None
    peak_memory_mib: float | None = None
    device: str = ""


@dataclass(frozen=True)
class TestResults:
    """A submission on the labelled test images.

    Args:
        table: artifacts.Submission.test_scores rows.
        images: artifacts.Submission.test_images rows.
        per_image: per_image.test_table rows.
    """

    table: pd.DataFrame
    images: pd.DataFrame
    per_image: pd.DataFrame

    def row(self, name: str) -> dict[str, Any]:
        """A row of the table of test scores, e.g. artifacts.TEST_ALL."""
        return dict(self.table.set_index("row").loc[name])

    def baseline(self, name: str) -> dict[str, Any]:
        """The all-empty baseline of the images in row `name`."""
        return self.row(f"{artifacts.ALL_EMPTY}, {name}")


@dataclass(frozen=True)
class Run:
    """One submission: of a single training run, or of a blend.

    Args:
        members: names of the training runs behind the submission.
        table: artifacts.Submission.cross_validation rows.
        images: artifacts.Submission.out_of_fold rows.
        per_image: artifacts.PER_IMAGE rows.
        surface: artifacts.Submission.threshold_surface rows.
        steps: artifacts.Submission.steps rows.
        weights: of a blend: row of `table` -> member -> weight; {} for a single run.
        histories: history.csv of each fold; () for a blend.
        network: network.json (network_cost.trace); None for a blend or without the file.
        test: None without labelled test images.
        phantoms: a network was trained on phantoms, or started from one that was.
    """

    name: str
    members: tuple[str, ...]
    table: pd.DataFrame
    images: pd.DataFrame
    per_image: pd.DataFrame
    surface: pd.DataFrame
    steps: pd.DataFrame
    weights: dict[str, dict[str, float]]
    histories: tuple[pd.DataFrame, ...]
    network: dict[str, Any] | None
    cost: Cost
    test: TestResults | None = None
    phantoms: bool = False

    def row(self, name: str) -> dict[str, Any]:
        """A row of the cross-validation table, e.g. "all" or "all-empty baseline"."""
        return dict(self.table.set_index("row").loc[name])

    def all_images(self) -> pd.DataFrame:
        """`images`, then the labelled test images with `fold` per_image.TEST_FOLD."""
        if self.test is None:
            return self.images
        tested = self.test.images.assign(fold=per_image.TEST_FOLD)
        return pd.concat([self.images, tested], ignore_index=True)


def load(output: Path, name: str, manifest: pd.DataFrame, folds: pd.DataFrame) -> Run:
    """Everything that earlier stages wrote about the submission `name` and its runs."""
    submission = artifacts.Submission(name)
    members = tuple(lineage.runs_of(output, name))
    images = artifacts.read_table(output, submission.out_of_fold)
    folds_used = sorted(set(images["fold"]))
    weights = _weights(output, name, members)
    # Only runs with a weight are needed to predict the test images.
    used = [run for run in members if weights[artifacts.FINAL][run] > 0]
    networks = [_network(output, run) for run in used]
    trained = [
        records.read(output, artifacts.Run(run).fold(fold).trained)
        for run in used
        for fold in folds_used
    ]
    single = len(members) == 1
    histories = [
        artifacts.read_table(output, artifacts.Run(members[0]).fold(fold).history)
        for fold in folds_used
    ]
    return Run(
        name=name,
        members=members,
        table=artifacts.read_table(output, submission.cross_validation),
        images=images,
        per_image=per_image.table(images, manifest, folds, name),
        surface=artifacts.read_table(output, submission.threshold_surface),
        steps=artifacts.read_table(output, submission.steps),
        weights={} if single else weights,
        histories=tuple(histories) if single else (),
        network=networks[0] if single else None,
        cost=_cost(trained, networks),
        test=_test_results(output, submission, manifest),
        phantoms=any(record.get("phantoms") for record in trained),
    )


def check_tested(runs: list[Run]) -> None:
    """Raises BadInput if some runs have scores of the labelled test images and others do not."""
    without = [run for run in runs if run.test is None]
    if not 0 < len(without) < len(runs):
        return
    problems = []
    for run in without:
        predict = " and ".join(artifacts.Run(name).predicted.made_by for name in run.members)
        problems.append(f"{run.name}: run {predict}, then {artifacts.Submission(run.name).made_by}")
    headline = "these submissions have no scores of the labelled test images, others have"
    raise bad_list(f"{headline} (or leave them out with --names)", problems)


def sources(runs: list[Run]) -> list[str]:
    """Paths, below the output folder, of the files that decide what the report says.

    The records among them vouch for everything else that is read.
    """
    submitted = [artifacts.Submission(run.name).record.path for run in runs]
    networks = [artifacts.Run(name).network_facts for run in runs for name in run.members]
    return [artifacts.PREPARED.path, artifacts.FOLDED.path, *submitted, *networks]


def _test_results(
    output: Path, submission: artifacts.Submission, manifest: pd.DataFrame
) -> TestResults | None:
    labelled = lineage.has_test_labels(output)
    scored = submission.test_scores.path in records.read(output, submission.record)["outputs"]
    if not (labelled and scored):
        return None
    images = artifacts.read_table(output, submission.test_images)
    patients = artifacts.read_table(output, artifacts.TEST_PATIENTS)
    return TestResults(
        table=artifacts.read_table(output, submission.test_scores),
        images=images,
        per_image=per_image.test_table(images, manifest, patients, submission.name),
    )


def _cost(trained: list[dict[str, Any]], networks: list[dict[str, Any] | None]) -> Cost:
    """Of the networks with these records of stage 02."""
    memory = [record.get("peak_memory_mib") for record in trained]
    return Cost(
        parameters=_sum(networks, "parameters"),
        multiply_adds=_sum(networks, "multiply_adds"),
        seconds=sum(record["seconds"] for record in trained),
        peak_memory_mib=max((mib for mib in memory if mib is not None), default=None),
        device=", ".join(sorted({record.get("device", "") for record in trained})),
    )


def _sum(networks: list[dict[str, Any] | None], fact: str) -> int | None:
    """Over all networks; None unless it is known for each."""
    return sum(network[fact] for network in networks if network) if all(networks) else None


def _weights(output: Path, name: str, members: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Row of the cross-validation table -> run -> weight, from stage 04's record."""
    record = artifacts.Submission(name).record
    try:
        found: dict[str, list[float]] = records.read(output, record)["weights"]
        folds = sorted(int(left_out) for left_out in found if left_out != "final")
        rows = {f"fold {fold}": found[str(fold)] for fold in folds}
        rows[artifacts.FINAL] = found["final"]
        return {row: dict(zip(members, of_row, strict=True)) for row, of_row in rows.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(
            f"{output / record.path} is damaged or from an earlier version: "
            f"run {record.made_by} again"
        ) from error


def _network(output: Path, run: str) -> dict[str, Any] | None:
    path = output / artifacts.Run(run).network_facts
    if not path.is_file():
        return None
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for key in ("network", "size", "parameters", "multiply_adds", "parts", "attention"):
            facts[key]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{path} is damaged: delete it and run 02_train.py --run {run} again"
        ) from error
    return facts
