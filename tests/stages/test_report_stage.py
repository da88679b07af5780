"""Stage 05 on the output of the other stages: page, tables and summary."""

import json
import re
import shutil
import zipfile

import pandas as pd
import pytest

from pneumothorax import plotting, rle
from pneumothorax.data import discovery
from pneumothorax.pipeline import artifacts, lineage, records
from pneumothorax.report import statistics
from tests.helpers.images import disc, plain_encode
from tests.helpers.stages import run_all, run_on, scores, train_from_tiny


def test_the_report_shows_the_scores_and_every_file_it_names_exists(finished):
    _, output = finished
    folder = output / "report"
    page = (folder / "index.html").read_text("utf-8")
    table = scores(output)
    assert f"{table.at['all', 'siim_dice']:.4f}" in page
    assert f"{100 * table.at['all', 'pooled_iou']:.2f}" in page  # Table 1 is in percent
    assert "are positive: these scores say that the pipeline runs, not how good it is" in page
    assert "phantoms" not in page
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


@pytest.mark.slow
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


def zipped(output, *flags):
    """{name: content} of the zip file that stage 05 writes."""
    run_on(output, "05_report.py", *flags)
    with zipfile.ZipFile(output / artifacts.REPORT_ZIP) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def private_ids(output):
    """Of all images and patients: none of them is the competition's."""
    folds = artifacts.read_table(output, artifacts.FOLDS)
    ids = [*artifacts.read_table(output, artifacts.MANIFEST)["image_id"], *folds["patient_id"]]
    assert len(ids) == 15 + 12
    assert all(ids)
    return [text.encode() for text in ids]


def broken_links(files):
    page = files["report/index.html"].decode("utf-8")
    named = re.findall(r'(?:src|srcset)="((?!data:)[^"]+)"', page)
    assert "figures/roc~dark.svg" in named
    return [name for name in named if f"report/{name}" not in files]


def test_the_zip_file_has_neither_radiographs_nor_private_ids_and_no_broken_link(copied):
    _, output = copied
    files = zipped(output, "--zip")
    tables = {"report/table.csv", "report/per_image.csv", "report/summary.json"}
    tables.add("report/tiny/MODEL_CARD.md")
    assert {"report/index.html", *tables} <= set(files)
    assert not [name for name in files if name.endswith((".png", ".jpg", ".js"))]
    assert not [name for name in files if files[name].startswith((b"\x89PNG", b"\xff\xd8"))]
    for text in private_ids(output):
        assert not [name for name in files if text in files[name] or text in name.encode()]
    assert broken_links(files) == []
    assert b"This copy shows no radiographs" in files["report/index.html"]
    before = (output / artifacts.REPORT_ZIP).read_bytes()
    run_on(output, "05_report.py", "--zip")
    assert (output / artifacts.REPORT_ZIP).read_bytes() == before


def test_with_images_the_zip_file_has_every_radiograph_under_its_public_id(copied):
    _, output = copied
    files = zipped(output, "--zip-images")
    thumbnails = {f"report/gallery/image-{number}.jpg" for number in range(1, 13)}
    assert {name for name in files if name.endswith(".jpg")} == thumbnails
    assert {"report/gallery.js", "report/figures/comparison.png"} <= set(files)
    for text in private_ids(output):
        assert not [name for name in files if text in files[name] or text in name.encode()]
    assert broken_links(files) == []
    first = artifacts.read_table(output, artifacts.MANIFEST).at[0, "image_id"]
    thumbnail = (output / "report" / "gallery" / f"{first}.jpg").read_bytes()
    assert files["report/gallery/image-1.jpg"] == thumbnail


def test_the_report_says_that_the_demo_data_are_phantoms(
    copied, config, tmp_path, without_pictures
):
    made, output = copied
    shutil.copytree(made.folder, tmp_path / "input")
    (tmp_path / "input" / discovery.PHANTOM_NOTE).touch()
    run_all(tmp_path / "input", output, config)
    assert "phantoms" in (output / artifacts.REPORT_PAGE).read_text("utf-8")
    files = zipped(output, "--zip")  # phantoms may be shown to anybody
    ids = artifacts.read_table(output, artifacts.FOLDS)["image_id"]
    assert {f"report/gallery/{image_id}.jpg" for image_id in ids} <= set(files)
    assert files["report/index.html"] == (output / artifacts.REPORT_PAGE).read_bytes()


def test_runs_trained_on_phantoms_are_named_even_if_the_images_no_longer_say_so(
    submitted, config, tmp_path, without_pictures, capsys
):
    source, output = tmp_path / "input", tmp_path / "output"
    note = shutil.copytree(submitted[0].folder, source) / discovery.PHANTOM_NOTE
    note.touch()
    run_all(source, output, config, stages=range(3))
    note.unlink()
    run_all(source, output, config, stages=(0, 1, 3, 4))
    train_from_tiny(output, config)
    run_on(output, "03_predict.py", "--run", "second")
    run_on(output, "04_submit.py", "--run", "second")
    run_on(output, "05_report.py")
    warning = "Trained on phantoms, the built-in demo data: second, tiny;"
    assert warning in capsys.readouterr().out
    page = (output / artifacts.REPORT_PAGE).read_text("utf-8")
    assert warning in page
    assert "The images are phantoms" not in page


def reseal(output, record, inputs, *, more=(), fewer=()):
    """Write a record again with these inputs, and with more or fewer outputs."""
    body = records.read(output, record)
    kept = [path for path in body.pop("outputs") if path not in (*more, *fewer)]
    del body["inputs"], body["made_by"]
    records.write(output, record, **body, inputs=inputs, outputs=[*kept, *more])


def score_test_images(output, test_ids):
    """What stages 00, 01 and 04 write if the first test image is positive and nothing is found."""
    truth = disc(128, 64, 42, 16)
    labels = pd.DataFrame({"image_id": test_ids, "rle": rle.EMPTY})
    labels.loc[0, "rle"] = plain_encode(truth)
    artifacts.write_table(output, artifacts.TEST_LABELS, labels)
    prepared = records.read(output, artifacts.PREPARED)["inputs"]
    reseal(output, artifacts.PREPARED, prepared, more=[artifacts.TEST_LABELS.path])

    patients = pd.DataFrame({"image_id": test_ids, "patient_id": "", "in_training": None})
    artifacts.write_table(output, artifacts.TEST_PATIENTS, patients)
    folded = lineage.fold_inputs(output)
    reseal(output, artifacts.FOLDED, folded, more=[artifacts.TEST_PATIENTS.path])

    submission = artifacts.Submission("tiny")
    images = labels.assign(rle=rle.EMPTY, p_positive=0.1, true_px=0, predicted_px=0, overlap_px=0)
    images = images.assign(dice=[0.0, 1.0, 1.0])
    images.loc[0, "true_px"] = int(truth.sum())
    artifacts.write_table(output, submission.test_images, images)
    groups = (artifacts.TEST_ALL, artifacts.TEST_UNSEEN)
    rows = [*groups, *(f"{artifacts.ALL_EMPTY}, {group}" for group in groups)]
    rows = pd.DataFrame({"row": [*rows, artifacts.TEST_CLAIMED]})
    rows = rows.reindex(columns=artifacts.TEST_SCORE_COLUMNS)
    unseen = rows["row"].str.contains(artifacts.TEST_UNSEEN)  # nobody: no patient is known
    rows["images"], rows["positives"] = (3 * ~unseen).astype(int), (1 * ~unseen).astype(int)
    rows.loc[~unseen, "siim_dice"] = 2 / 3
    artifacts.write_table(output, submission.test_scores, rows)
    made_from = lineage.submit_inputs(output, ["tiny"])
    paths = [submission.test_images.path, submission.test_scores.path]
    reseal(output, submission.record, made_from, more=paths)


def test_labelled_test_images_are_on_the_page_in_tables_of_their_own_and_in_the_gallery(
    copied, without_pictures, capsys
):
    made, output = copied
    score_test_images(output, made.test_ids)
    before = (output / artifacts.PER_IMAGE.path).read_bytes()
    run_on(output, "05_report.py")
    assert "Only 1 of 3 test images are positive" in capsys.readouterr().out
    page = (output / artifacts.REPORT_PAGE).read_text("utf-8")
    assert "3 images, 1 with pneumothorax" in page
    assert "66.67" in page  # 2 of 3 images, in percent
    table = artifacts.read_table(output, artifacts.REPORT_TEST_TABLE)
    assert table["run"].tolist() == ["tiny"] * 5
    images = artifacts.read_table(output, artifacts.TEST_PER_IMAGE)
    assert images["image_id"].tolist() == made.test_ids * 2  # of the baseline and of the run
    assert images["dice"].tolist() == [0, 1, 1] * 2
    assert (output / artifacts.PER_IMAGE.path).read_bytes() == before
    assert (output / "report" / "gallery" / f"{made.test_ids[0]}.jpg").is_file()
    written = records.read(output, artifacts.REPORTED)["outputs"]
    tables = {artifacts.REPORT_TEST_TABLE.path, artifacts.TEST_PER_IMAGE.path}
    assert tables <= set(written)

    # Without the labels, the next report has no trace of them.
    prepared = records.read(output, artifacts.PREPARED)["inputs"]
    reseal(output, artifacts.PREPARED, prepared, fewer=[artifacts.TEST_LABELS.path])
    run_on(output, "05_report.py")
    assert "test images" not in capsys.readouterr().out
    assert not any((output / path).exists() for path in tables)
    assert not (output / "report" / "gallery" / f"{made.test_ids[0]}.jpg").exists()
