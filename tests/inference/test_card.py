"""The model card: true to the records, without an id, and readable for every kind of model."""

import copy
import json
import math
import re
import shutil
import subprocess

import pytest

from pneumothorax.data import discovery
from pneumothorax.errors import BadInput
from pneumothorax.inference import card
from pneumothorax.pipeline import artifacts, records
from tests.helpers.images import disc, plain_encode
from tests.helpers.labelling import label_test_images
from tests.helpers.stages import ROOT, run_all, run_on, settings, write_lines

TABLES = {  # heading: the first cells of its tables
    "What was it trained and tested on?": ["images"],
    "How good is it on new images?": ["score"],
    "Where is it weak?": ["images"],
    "What is its probability worth?": ["probability"],
    "How was it trained?": ["run"],
}
NO_DEVICE = "Research software, not a medical device: nothing it says is a diagnosis."
ALL_EMPTY = {"top": 0.0, "min_area": 1048577.0, "bottom": 0.0}


@pytest.fixture(scope="module")
def output(submitted, config, tmp_path_factory):
    """The output of the run "tiny" with labelled test images, and of the blend "both".

    The first test image shows a training patient, the other two show one new person.
    """
    made, finished = submitted
    folder = tmp_path_factory.mktemp("card")
    output = shutil.copytree(finished, folder / "output")
    first, *others = made.test_ids
    people = {**made.patients, first: "patient-3"} | dict.fromkeys(others, "somebody")
    patients = folder / "patients.csv"
    write_lines(patients, ["ImageId,PatientId", *(f"{i},{who}" for i, who in people.items())])
    run_on(output, "01_make_folds.py", "--folds", 2, "--patients", patients)
    run_all(made.folder, output, config, stages=(2, 3))
    rows = (plain_encode(disc(128, 64, 42, 16)),)
    label_test_images(output, {first: rows, others[0]: (), others[1]: rows})
    run_on(output, "04_submit.py", "--run", "tiny")
    flags = ("--config", config, *settings("epochs=1"))
    run_on(output, "02_train.py", "--run", "twin", *flags)
    run_on(output, "03_predict.py", "--run", "twin")
    run_on(output, "04_submit.py", "--runs", "tiny=0.4,twin=0.6", "--name", "both")
    return output


@pytest.fixture(scope="module")
def facts(output):
    return card.facts(output, "tiny")


@pytest.fixture(scope="module")
def untested(submitted):
    """Facts of the run without labelled test images."""
    return card.facts(submitted[1], "tiny")


@pytest.fixture
def copied(submitted, tmp_path):
    """(input, output) to change."""
    made, output = submitted
    folders = tmp_path / "input", tmp_path / "output"
    return shutil.copytree(made.folder, folders[0]), shutil.copytree(output, folders[1])


def tables_of(text):
    """{heading: its tables}, a table being a list of rows of cells without the line of dashes."""
    found = {}
    for section in text.split("\n## ")[1:]:
        heading, _, body = section.partition("\n")
        blocks = [block.splitlines() for block in re.split(r"\n(?!\|)", body) if "| --- " in block]
        rows = [[line for line in block if line.startswith("|")] for block in blocks]
        found[heading] = [[line.strip("| ").split(" | ") for line in table] for table in rows]
        assert all("---" in line for table in rows for line in table[1:2])
        for table in found[heading]:
            del table[1]
    return {heading: tables for heading, tables in found.items() if tables}


def changed(facts, **values):
    return copy.deepcopy(facts) | values


def ids_in(output):
    """Every id of an image or a patient that the tables know, and the names of their files."""
    manifest = artifacts.read_table(output, artifacts.MANIFEST)
    people = [
        artifacts.read_table(output, table)["patient_id"]
        for table in (artifacts.FOLDS, artifacts.TEST_PATIENTS)
    ]
    columns = (manifest["image_id"], manifest["patient_id"], manifest["sha256"], *people)
    return {value for column in columns for value in column} - {""}


def test_the_facts_are_json_without_any_id(submitted, output):
    made, _ = submitted
    ids = ids_in(output) | set(made.masks) | set(made.patients.values()) | set(made.test_ids)
    assert len(ids) > 30
    for name in ("tiny", "both"):
        facts = card.facts(output, name)
        text = json.dumps(facts, allow_nan=False)
        assert json.loads(text) == facts
        for written in (text, card.as_markdown(facts)):
            assert [one for one in ids if one in written] == []


def scores_of(row):
    """{score: value} of a row of scores, None for NaN, as JSON has it."""
    return {
        score: None if math.isnan(row[score]) else row[score] for score in artifacts.SCORE_COLUMNS
    }


def values_of(group):
    return {score: found["value"] for score, found in group["scores"].items()}


def test_the_scores_are_those_of_the_tables_to_the_last_digit(output, facts):
    submission = artifacts.Submission("tiny")
    rows = artifacts.read_table(output, submission.cross_validation).set_index("row")
    validated = facts["scores"]["out of fold"]
    assert values_of(validated) == scores_of(rows.loc["all"])
    assert validated["all_empty"] == scores_of(rows.loc["all-empty baseline"])
    assert validated["naive_siim_dice"] == rows.at["all", "naive_siim_dice"]
    record = records.read(output, submission.record)
    assert validated["above_all_empty"] == record["above_all_empty"]

    rows = artifacts.read_table(output, submission.test_scores).set_index("row")
    for name in ("test images", "unseen patients"):
        group = facts["scores"][name]
        assert values_of(group) == scores_of(rows.loc[name])
        assert group["all_empty"] == scores_of(rows.loc[f"all-empty baseline, {name}"])
    ends = facts["scores"]["test images"]["scores"]["siim_dice"]
    low, high = rows.loc["test images", ["siim_dice_low", "siim_dice_high"]]
    assert (ends["low"], ends["high"]) == (low, high)


def test_the_intervals_and_strata_are_those_of_the_report(copied, untested, without_pictures):
    _, output = copied
    run_on(output, "05_report.py")
    report = json.loads((output / artifacts.REPORT_SUMMARY).read_text("utf-8"))["runs"]["tiny"]
    found = untested["scores"]["out of fold"]["scores"]
    assert {row["score"]: (row["low"], row["high"]) for row in report["intervals"]} == {
        score: (ends["low"], ends["high"]) for score, ends in found.items()
    }
    assert untested["strata"] == report["strata"]
    assert untested["calibration"]["curve"] == report["calibration"]


def test_the_images_are_counted(facts):
    """12 training images of 6 patients, every third AP; the numbers are those of `tiny_input`."""
    data = facts["data"]
    assert data["training"] == {
        "images": 12,
        "positives": 6,
        "patients": 6,
        "view": {"PA": 8, "AP": 4},
        "sex": {"F": 6, "M": 6},
    }
    tested = {"images": 3, "positives": 2, "patients": 2}
    seen = {"in_training": 1, "unseen": 2, "unknown": 0}
    values = {"view": {"PA": 3}, "sex": {"F": 3}}
    assert data["test"] == {**tested, **seen, **values}
    assert (data["folds"], set(data["leaks"].values())) == (2, {0})


def test_every_table_is_on_the_card(facts):
    text = card.as_markdown(facts)
    found = tables_of(text)
    assert {heading: [table[0][0] for table in tables] for heading, tables in found.items()} == {
        **TABLES,
        "How good is it on new images?": ["score"] * 3,
    }
    for table in (table for tables in found.values() for table in tables):
        assert {len(row) for row in table} == {len(table[0])}
        assert len(table) > 1
    images = found["What was it trained and tested on?"][0]
    assert images[1] == ["training", "12", "6 (50.0 %)", "6", "8 PA, 4 AP", "6 F, 6 M"]
    assert images[2] == ["labelled test", "3", "2 (66.7 %)", "2", "3 PA", "3 F"]
    validated, tested, unseen = found["How good is it on new images?"]
    for table, name in ((validated, "out of fold"), (tested, "test images")):
        score = facts["scores"][name]["scores"]["siim_dice"]["value"]
        assert table[1][:2] == ["SIIM Dice", f"{score:.4f}"]
    assert unseen[1][3] == "0.5000"  # one of the new person's two images is negative
    assert "2 of them are of unseen patients" in text
    assert len(text.splitlines()) <= 150


def test_a_card_says_what_it_is_not_before_anything_else(untested):
    first = card.as_markdown(untested).split("## In short")[0]
    assert NO_DEVICE in first
    assert "Only 6 of 12 images are positive" in first
    assert "phantoms" not in card.as_markdown(untested)


def test_without_labelled_test_images_the_card_says_so_and_shows_none(untested):
    text = card.as_markdown(untested)
    assert untested["data"]["test"] is None
    assert set(untested["scores"]) == {"out of fold"}
    assert "There are no labelled test images: every score is from cross-validation." in text
    found = tables_of(text)
    assert {
        heading: [table[0][0] for table in tables] for heading, tables in found.items()
    } == TABLES


def test_a_run_without_a_classification_head_says_that_pixels_decide(untested):
    """The thresholds are those of the first case in docs/masks.md, rounded."""
    triplet = {"top": 0.75, "min_area": 1500.0, "bottom": 0.3, "min_component": 250.0}
    text = card.as_markdown(changed(untested, thresholds=triplet))
    assert untested["networks"]["tiny"]["classification_head"] is False
    assert tables_of(text)["How was it trained?"][0][1][-1] == "map"
    condition = "at least 1,500 pixels have a probability above 0.75"
    assert f"{condition}, and at least 250 connected pixels have a probability above 0.3." in text
    assert text.count("No image-level probability decides") == 2


def test_an_image_threshold_is_the_probability_from_which_an_image_is_positive(untested):
    triplet = {"top": 0.99, "min_area": 0.0, "bottom": 0.35, "min_probability": 0.6}
    with_head = copy.deepcopy(untested["networks"])
    with_head["tiny"]["classification_head"] = True
    text = card.as_markdown(changed(untested, thresholds=triplet, networks=with_head))
    condition = "its image-level probability is at least 0.6"
    assert f"{condition}, and at least one pixel has a probability above 0.35." in text
    assert "No image-level probability decides" not in text
    assert tables_of(text)["How was it trained?"][0][1][-1] == "map and classification head"


def test_a_model_that_leaves_every_mask_empty_says_so(untested):
    text = card.as_markdown(changed(untested, thresholds=ALL_EMPTY))
    assert "It calls no image positive" in text
    assert "1,048,577" not in text


def test_a_gain_whose_interval_includes_0_is_not_called_one(untested):
    for low, said in ((0.001, 0), (-0.001, 1)):
        scores = copy.deepcopy(untested["scores"])
        scores["out of fold"]["above_all_empty"] = {"difference": 0.02, "low": low, "high": 0.05}
        text = card.as_markdown(changed(untested, scores=scores))
        assert text.count("It is not shown to be better than that") == said


def test_mistakes_are_counted_in_images(untested):
    scores = copy.deepcopy(untested["scores"])
    found = scores["out of fold"]  # 12 images, 6 of them positive
    found["scores"]["sensitivity"]["value"] = 4 / 6
    found["scores"]["specificity"]["value"] = 5 / 6
    text = card.as_markdown(changed(untested, scores=scores))
    calls = "and marks something in 1 of the 6 without (cross-validation)."
    assert f"- **It misses** 2 of the 6 images with a pneumothorax, {calls}" in text
    found["scores"]["specificity"]["value"] = None
    text = card.as_markdown(changed(untested, scores=scores))
    assert "- **It misses** 2 of the 6 images with a pneumothorax (cross-validation)." in text


@pytest.mark.parametrize(("validate_every", "said"), [(1, 1), (2, 0)])
def test_a_choice_among_validated_epochs_is_told_where_there_was_one(
    untested, validate_every, said
):
    network = untested["networks"]["tiny"]
    trained = {**network["settings"], "epochs": 2, "validate_every": validate_every}
    networks = {"tiny": {**network, "settings": trained}}
    text = card.as_markdown(changed(untested, networks=networks))
    assert text.count("which makes the scores too high") == said


def test_a_blend_lists_its_runs_with_their_weights(output):
    facts = card.facts(output, "both")
    rows = tables_of(card.as_markdown(facts))["How was it trained?"][0]
    assert [row[:2] for row in rows[1:]] == [["tiny", "0.4"], ["twin", "0.6"]]
    assert [row[6] for row in rows[1:]] == ["2", "1"]  # epochs
    alone = [
        records.read(output, artifacts.Run(run).fold(fold).trained)["seconds"]
        for run in ("tiny", "twin")
        for fold in (0, 1)
    ]
    assert facts["cost"]["seconds"] == pytest.approx(sum(alone))
    assert "\n4 networks, " in card.as_markdown(facts)


def test_a_run_without_weight_is_not_on_the_card_of_a_blend(output):
    run_on(output, "04_submit.py", "--runs", "tiny=1,twin=0", "--name", "alone")
    assert list(card.facts(output, "alone")["networks"]) == ["tiny"]


def amend(output, record, **facts):
    body = records.read(output, record) | facts
    body = {**body, "seal": records.seal(body)}
    (output / record.path).write_text(json.dumps(body), "utf-8")


def test_a_run_on_phantoms_says_so_first(copied, config):
    folder, output = copied
    (folder / discovery.PHANTOM_NOTE).touch()
    run_all(folder, output, config, stages=(0, 1))
    facts = card.facts(output, "tiny")
    text = card.as_markdown(facts)
    assert facts["phantoms"] is True
    assert text.splitlines()[2].startswith(
        "**Trained on phantoms, the built-in demo data: synthetic"
    )
    assert "- **Trained on** 12 phantoms of 6 patients" in text


def test_networks_that_saw_phantoms_say_so_even_if_the_images_do_not(copied):
    _, output = copied
    amend(output, artifacts.Run("tiny").fold(1).trained, phantoms=True)
    text = card.as_markdown(card.facts(output, "tiny"))
    assert text.splitlines()[2].startswith("**Trained on phantoms, the built-in demo data, or from")
    assert "radiographs of 6 patients" not in text


def test_a_file_with_initial_weights_is_named_without_its_folder(copied):
    _, output = copied
    record = artifacts.Run("tiny").fold(0).trained
    trained = records.read(output, record)["settings"]
    path = "/home/somebody/weights/resnet18.pth"
    amend(output, record, settings={**trained, "model_settings": {"encoder_weights": path}})
    facts = card.facts(output, "tiny")
    assert "somebody" not in json.dumps(facts)
    assert "| resnet18.pth |" in card.as_markdown(facts)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_in_a_git_checkout_the_card_names_the_commit(untested):
    head = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True).strip()
    assert untested["software"]["commit"].removesuffix("-dirty") == head


def test_in_an_unpacked_archive_the_commit_is_unknown(untested, monkeypatch, tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    monkeypatch.setattr(card, "ROOT", tmp_path)
    software = card._software()
    assert software["commit"] is None
    assert ", commit unknown, " in card.as_markdown(changed(untested, software=software))


def test_a_submission_that_does_not_exist_names_the_command(submitted):
    with pytest.raises(BadInput, match=r"run 04_submit.py --name nobody first"):
        card.facts(submitted[1], "nobody")
