"""Stage 05 on the output of the other stages: page, tables and summary."""

import json
import re
import shutil

import pytest

from pneumothorax import plotting
from pneumothorax.data import discovery
from pneumothorax.pipeline import artifacts
from pneumothorax.report import statistics
from tests.helpers.stages import run_all, run_on, scores


def test_the_report_shows_the_scores_and_every_file_it_names_exists(finished):
    _, output = finished
    folder = output / "report"
    page = (folder / "index.html").read_text("utf-8")
    table = scores(output)
    assert f"{table.at['all', 'siim_dice']:.4f}" in page
    assert f"{100 * table.at['all', 'pooled_iou']:.2f}" in page  # Table 1 is in percent
    assert "are positive: these scores say that the pipeline runs, not how good it is" in page
    named = set(re.findall(r'(?:src|srcset)="((?!data:)[^"]+)"', page))
    figures = {"figures/roc.svg", "figures/roc~dark.svg", "figures/comparison.png"}
    assert figures | {"gallery.js"} <= named
    assert [name for name in named if not (folder / name).is_file()] == []
    made = artifacts.read_table(output, artifacts.MANIFEST)
    train = made.loc[made["split"] == artifacts.TRAIN, "image_id"]
    assert {path.stem for path in (folder / "gallery").iterdir()} == set(train)


def test_the_per_image_table_lets_anyone_compute_the_scores_again(finished):
    _, output = finished
    rows = artifacts.read_table(output, artifacts.PER_IMAGE)
    table = scores(output)
    for run, row in (("tiny", "all"), ("all-empty baseline", "all-empty baseline")):
        own = rows[rows["run"] == run]
        assert own["dice"].mean() == pytest.approx(table.at[row, "siim_dice"])
        assert own["iou"].mean() == pytest.approx(table.at[row, "image_iou"])
        assert own.loc[own["positive"] == 1, "dice"].mean() == pytest.approx(
            table.at[row, "positive_dice"]
        )
    folds = artifacts.read_table(output, artifacts.FOLDS).set_index("image_id")
    patients = folds.loc[rows["image_id"], "patient_id"]
    assert (rows["patient_id"].to_numpy() == patients.to_numpy()).all()


def test_the_summary_is_strict_json_with_the_intervals_of_every_score(finished):
    _, output = finished

    def refuse(name):
        raise ValueError(name)

    text = (output / artifacts.REPORT_SUMMARY).read_text("utf-8")
    summary = json.loads(text, parse_constant=refuse)  # NaN and Infinity are not JSON
    assert summary["evaluated"]["images"] == 12
    assert summary["evaluated"]["phantoms"] is False
    found = {row["score"]: row for row in summary["runs"]["tiny"]["intervals"]}
    assert set(found) == set(artifacts.SCORE_COLUMNS)
    assert found["siim_dice"]["low"] <= found["siim_dice"]["value"] <= found["siim_dice"]["high"]


def test_two_submissions_of_the_same_run_do_not_differ(copied, without_pictures):
    _, output = copied
    run_on(output, "04_submit.py", "--run", "tiny", "--name", "again")
    run_on(output, "05_report.py")
    differences = json.loads((output / artifacts.REPORT_SUMMARY).read_text("utf-8"))["differences"]
    between = [row for row in differences if row["second"] == "tiny"]
    assert {(row["first"], row["difference"], row["p"]) for row in between} == {("again", 0.0, 1.0)}
    assert {row["score"] for row in between} == set(statistics.COMPARED)
    against = {
        row["first"]: row["difference"]
        for row in differences
        if row["second"] == "all-empty baseline"
    }
    table = scores(output)
    gain = table.at["all", "siim_dice"] - table.at["all-empty baseline", "siim_dice"]
    assert against == {"again": pytest.approx(gain), "tiny": pytest.approx(gain)}


def test_a_report_of_other_runs_keeps_no_figures_of_earlier_runs(copied, monkeypatch):
    _, output = copied
    monkeypatch.setattr(plotting, "rendered", lambda *_: b"a figure")  # rendering takes seconds
    run_on(output, "04_submit.py", "--run", "tiny", "--name", "again")
    run_on(output, "05_report.py")
    figures = output / artifacts.REPORT_FIGURES
    assert (figures / "surface-again.svg").is_file()
    run_on(output, "05_report.py", "--names", "tiny")
    assert not (figures / "surface-again.svg").exists()
    assert (figures / "surface-tiny.svg").is_file()


def test_the_report_says_that_the_demo_data_are_phantoms(
    copied, config, tmp_path, without_pictures
):
    made, output = copied
    shutil.copytree(made.folder, tmp_path / "input")
    (tmp_path / "input" / discovery.PHANTOM_NOTE).touch()
    run_all(tmp_path / "input", output, config)
    assert "phantoms" in (output / artifacts.REPORT_PAGE).read_text("utf-8")
