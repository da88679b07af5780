"""Stage 04 on two small runs: blends, restored settings, and predictions that it refuses."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from pneumothorax.errors import BadInput
from pneumothorax.masks import predicted, settings
from pneumothorax.masks.settings import Settings
from pneumothorax.pipeline import artifacts, lineage, records
from tests.helpers.stages import run_stage

BLEND = ["--runs", "one=0.4,twin=0.6"]


@pytest.fixture(scope="module")
def two_runs(folded, config, tmp_path_factory):
    """Two runs with the same settings and seed: their probability maps are equal."""
    output = tmp_path_factory.mktemp("blend") / "output"
    shutil.copytree(folded, output)
    for run in ("one", "twin"):
        flags = ("--config", config, "--set", "epochs=1")
        run_stage("02_train.py", *flags, "--run", run, "--output", output, "--workers", 0)
        run_stage("03_predict.py", "--run", run, "--output", output, "--workers", 0)
    return output


@pytest.fixture
def copied(two_runs, tmp_path):
    """A copy of the two runs, to damage."""
    output = tmp_path / "output"
    shutil.copytree(two_runs, output)
    return output


def submit(output, *args):
    run_stage("04_submit.py", *args, "--output", output, "--workers", 0)


def cross_validation(output, name):
    table = artifacts.read_table(output, artifacts.Submission(name).cross_validation)
    return table.set_index("row")


def submission_bytes(output, name):
    return (output / artifacts.Submission(name).csv).read_bytes()


def test_a_blend_of_two_equal_runs_scores_like_one(two_runs, capsys):
    submit(two_runs, "--run", "one")
    submit(two_runs, *BLEND, "--name", "given")
    capsys.readouterr()
    submit(two_runs, "--runs", "one,twin", "--name", "fitted")
    printed = capsys.readouterr().out
    assert "weights: one 0.5, twin 0.5" in printed
    assert "best single run one" in printed
    one = cross_validation(two_runs, "one").to_numpy().ravel().tolist()
    for name in ("given", "fitted"):
        blend = cross_validation(two_runs, name).to_numpy().ravel().tolist()
        assert blend == pytest.approx(one, nan_ok=True)
        assert submission_bytes(two_runs, name) == submission_bytes(two_runs, "one")
        gain = records.read(two_runs, artifacts.Submission(name).record)["gain"]
        assert gain["difference"] == gain["low"] == gain["high"] == 0


def test_the_closing_lines_give_the_numbers_to_check_and_the_next_command(two_runs, capsys):
    submit(two_runs, "--run", "one", "--overwrite")
    printed = capsys.readouterr().out
    scores = cross_validation(two_runs, "one")
    nested, naive = scores.loc["all", ["siim_dice", "naive_siim_dice"]]
    all_empty = scores.at[artifacts.ALL_EMPTY, "siim_dice"]
    path = two_runs / artifacts.Submission("one").csv
    above = records.read(two_runs, artifacts.Submission("one").record)["above_all_empty"]
    assert above["difference"] == pytest.approx(nested - all_empty)
    assert above["low"] <= above["difference"] <= above["high"]
    for line in (
        f"SIIM Dice {nested:.4f} out of fold; all-empty baseline {all_empty:.4f}: "
        f"{nested - all_empty:+.4f} (95 % interval {above['low']:+.4f} to {above['high']:+.4f})",
        f"thresholds fitted on the scored images would claim {naive:.4f} ({naive - nested:+.4f})",
        f"wrote {path.parent}",
        "to submit: kaggle competitions submit -c siim-acr-pneumothorax-segmentation "
        f"-f {path} -m one",
        f"next: python 05_report.py --output {two_runs}",
    ):
        assert line in printed.splitlines()
    assert "step by step: one threshold " in printed


def test_the_report_shows_a_blend_next_to_its_runs(two_runs, without_pictures):
    submit(two_runs, "--run", "one")
    submit(two_runs, *BLEND, "--name", "given")
    submit(two_runs, "--runs", "one=1,twin=0", "--name", "alone")
    run_stage("05_report.py", "--names", "one,given,alone", "--output", two_runs, "--workers", 0)
    summary = json.loads((two_runs / artifacts.REPORT_SUMMARY).read_text("utf-8"))["runs"]
    parameters = summary["one"]["cost"]["parameters"]
    assert summary["given"]["runs"] == ["one", "twin"]
    assert summary["given"]["cost"]["parameters"] == 2 * parameters
    assert summary["alone"]["cost"]["parameters"] == parameters  # a weight of 0 costs nothing
    assert sorted(summary["given"]["weights"]) == ["final thresholds", "fold 0", "fold 1"]
    assert all(own == {"one": 0.4, "twin": 0.6} for own in summary["given"]["weights"].values())
    assert summary["one"]["weights"] == {}
    scored = cross_validation(two_runs, "one").at["all", "siim_dice"]
    assert summary["one"]["steps"][-1]["siim_dice"] == pytest.approx(scored)
    page = (two_runs / artifacts.REPORT_PAGE).read_text("utf-8")
    assert 'aria-label="Weights of given"' in page
    assert 'aria-label="Weights of one"' not in page


def test_the_name_of_a_blend_is_enough_to_make_it_again(two_runs):
    submit(two_runs, *BLEND, "--name", "given")
    path = two_runs / artifacts.Submission("given").csv
    before = path.stat().st_mtime_ns
    submit(two_runs, "--name", "given")
    assert path.stat().st_mtime_ns == before
    assert lineage.runs_of(two_runs, "given") == {"one": 0.4, "twin": 0.6}


def predictions(*p_classification):
    return pd.DataFrame(
        {
            "image_id": ["a", "b"],
            "split": artifacts.OOF,
            "fold": [0, 1],
            "p_max": 0.5,
            "p_classification": p_classification,
            "sha256": "",
        }
    )


def test_the_image_threshold_is_fitted_by_default_if_every_run_has_a_classification_head(tmp_path):
    artifacts.write_table(tmp_path, artifacts.Run("head").predictions, predictions(0.2, 0.4))
    artifacts.write_table(tmp_path, artifacts.Run("none").predictions, predictions(None, None))

    def fits_it(*runs, given=None):
        chosen = Settings(dict.fromkeys(runs), image_threshold=given)
        return len(settings.settled(chosen, tmp_path).grid.min_probabilities) > 1

    assert fits_it("head")
    assert not fits_it("none")
    assert not fits_it("head", "none")
    assert fits_it("none", given=True)
    assert not fits_it("head", given=False)


def test_the_name_of_a_submission_does_not_restore_what_its_runs_decided(two_runs, monkeypatch):
    record = artifacts.Submission("auto").record

    def n_image_thresholds():
        grid = records.read(two_runs, record)["settings"]["grid"]
        return len(grid["min_probabilities"])

    submit(two_runs, *BLEND, "--name", "auto")
    assert n_image_thresholds() == 1
    monkeypatch.setattr(
        settings, "settled", lambda chosen, _: replace(chosen, every_run_has_a_head=True)
    )
    submit(two_runs, "--name", "auto")
    assert n_image_thresholds() > 1
    submit(two_runs, "--name", "auto", "--no-image-threshold")
    assert n_image_thresholds() == 1
    submit(two_runs, "--name", "auto")  # a flag is restored
    assert n_image_thresholds() == 1


def test_the_name_of_a_submission_restores_all_its_flags(two_runs, capsys):
    flags = ["--fill-holes", "--image-threshold", "--min-component", "0,400", "--seed", 3]
    submit(two_runs, *BLEND, "--name", "flags", *flags)
    record = records.read(two_runs, artifacts.Submission("flags").record)
    assert record["settings"]["grid"]["min_components"] == [0, 400]
    assert record["settings"]["grid"]["fill_holes"] == [False, True]
    assert len(record["settings"]["grid"]["min_probabilities"]) > 1
    steps = artifacts.read_table(two_runs, artifacts.Submission("flags").steps)
    assert steps["step"].tolist() == [
        "one threshold",
        "image threshold",
        "small components removed",
        "holes filled",
    ]
    nested = cross_validation(two_runs, "flags").at["all", "siim_dice"]
    assert steps["siim_dice"].iloc[-1] == pytest.approx(nested)
    capsys.readouterr()
    submit(two_runs, "--name", "flags")
    assert "up to date" in capsys.readouterr().out
    assert records.read(two_runs, artifacts.Submission("flags").record) == record
    submit(two_runs, "--name", "flags", "--seed", 4)  # one flag changes, the others stay
    changed = records.read(two_runs, artifacts.Submission("flags").record)["settings"]
    assert changed == {**record["settings"], "seed": 4}


def test_the_order_of_the_runs_changes_nothing(two_runs, capsys):
    submit(two_runs, "--runs", "twin=0.2,one=0.8", "--name", "order")
    record = records.read(two_runs, artifacts.Submission("order").record)
    assert record["settings"]["runs"] == {"one": 0.8, "twin": 0.2}
    assert record["weights"]["final"] == [0.8, 0.2]
    assert "weights: one 0.8, twin 0.2" in capsys.readouterr().out
    submit(two_runs, "--runs", "one=0.8,twin=0.2", "--name", "order")
    assert "up to date" in capsys.readouterr().out


def test_runs_that_predicted_different_images_are_not_blended(copied):
    fold = ["--split", "oof", "--fold", 0]
    run_stage("03_predict.py", "--run", "twin", *fold, "--output", copied, "--workers", 0)
    with pytest.raises(
        BadInput, match=r"cannot be blended: 12 images differ(?s:.)*predicted by one only"
    ):
        submit(copied, "--runs", "one,twin", "--name", "x")


def test_a_single_fold_is_not_scored(copied):
    fold = ["--split", "oof", "--fold", 0]
    run_stage("03_predict.py", "--run", "one", *fold, "--output", copied, "--workers", 0)
    with pytest.raises(
        BadInput, match=r"one: .*fewer than two folds.*python 03_predict\.py --run one"
    ):
        submit(copied, "--run", "one")


def test_runs_on_different_folds_are_not_blended(copied):
    run_stage("01_make_folds.py", "--folds", 2, "--seed", 7, "--overwrite", "--output", copied)
    with pytest.raises(BadInput, match="folds changed since"):
        submit(copied, "--runs", "one,twin", "--name", "x")


@pytest.mark.parametrize(
    "flags",
    [
        ["--runs", "one,twin"],  # a blend needs a name
        ["--runs", "one", "--run", "twin"],
        ["--runs", "one,", "--name", "x"],
        ["--run", ""],
        ["--run", "one", "--min-component", "0,-3"],
        ["--run", "one", "--min-component", "1048577"],  # an image has 1048576 pixels
        ["--run", "one", "--min-component", "some"],
        ["--run", "../one"],
    ],
)
def test_impossible_flags_are_usage_errors(two_runs, flags):
    with pytest.raises(SystemExit) as caught:
        submit(two_runs, *flags)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--name", "../x"], "--name"),
        (["--run", "../x"], "--run"),
        (["--runs", "one,../x", "--name", "x"], "--runs"),
    ],
)
def test_the_message_about_an_illegal_name_gives_its_flag(two_runs, capsys, flags, named):
    with pytest.raises(SystemExit):
        submit(two_runs, *flags)
    assert f"error: {named} must be" in capsys.readouterr().err


def test_a_submission_that_fails_leaves_the_earlier_one(copied, tmp_path):
    submit(copied, "--run", "one")
    before = submission_bytes(copied, "one")
    other = tmp_path / "other.csv"
    other.write_text("ImageId,EncodedPixels\nunheard-of,-1\n")
    with pytest.raises(BadInput, match="unheard-of: no prediction"):
        submit(copied, "--run", "one", "--sample-submission", other)
    assert submission_bytes(copied, "one") == before
    next((copied / artifacts.Run("one").folder / artifacts.OOF).iterdir()).unlink()
    with pytest.raises(BadInput, match="is not the map"):
        submit(copied, "--run", "one", "--overwrite")
    assert submission_bytes(copied, "one") == before


def test_a_damaged_record_of_a_blend_does_not_turn_its_name_into_a_run(copied):
    submit(copied, *BLEND, "--name", "torn")
    path = copied / artifacts.Submission("torn").record.path
    before = path.read_bytes()
    path.write_bytes(before[:500])
    with pytest.raises(BadInput, match=r"postprocess\.json is damaged(?s:.)*--runs"):
        submit(copied, "--name", "torn")
    submit(copied, *BLEND, "--name", "torn")
    assert path.read_bytes() == before


def test_an_edited_record_is_noticed(copied):
    submit(copied, "--run", "one")
    path = copied / artifacts.Submission("one").record.path
    before = path.read_bytes()
    path.write_bytes(before.replace(b'"nested_siim_dice": 0.', b'"nested_siim_dice": 1.'))
    with pytest.raises(
        BadInput, match=r"postprocess\.json is damaged: run 04_submit\.py --name one again"
    ):
        run_stage("05_report.py", "--names", "one", "--output", copied, "--workers", 0)
    submit(copied, "--run", "one")
    assert path.read_bytes() == before


def edit_predictions(output, run, **columns):
    frame = artifacts.read_table(output, artifacts.Run(run).predictions)
    artifacts.write_table(output, artifacts.Run(run).predictions, frame.assign(**columns))


def test_an_images_score_joins_the_maps_highest_with_the_classification_heads(copied):
    edit_predictions(copied, "twin", p_max=0.5, p_classification=0.1)
    found = predicted.read(copied, ["one", "twin"], artifacts.OOF)
    frame = artifacts.read_table(copied, artifacts.Run("one").predictions)
    np.testing.assert_array_equal(found.scores[:, 0], frame.loc[frame["split"] == "oof", "p_max"])
    # Odds of 1 and of 1 / 9: their geometric mean is 1 / 3.
    assert found.scores[:, 1] == pytest.approx(0.25)


def test_probability_maps_are_matched_by_image_and_must_have_the_same_folds_and_images(copied):
    twin = artifacts.Run("twin").predictions
    frame = artifacts.read_table(copied, twin)
    artifacts.write_table(copied, twin, frame.iloc[::-1])
    found = predicted.read(copied, ["one", "twin"], artifacts.OOF)
    digests = frame.set_index("image_id")["sha256"]
    assert all(image.stored[1].sha256 == digests[image.image_id] for image in found.images)
    artifacts.write_table(copied, twin, frame.assign(fold=(frame["fold"] + 1) % 3))
    with pytest.raises(BadInput, match="predicted in other folds"):
        predicted.read(copied, ["one", "twin"], artifacts.OOF)
    artifacts.write_table(copied, twin, frame)
    artifacts.write_table(copied, artifacts.Run("one").predictions, frame.iloc[1:])
    with pytest.raises(BadInput, match="predicted by twin only"):
        predicted.read(copied, ["one", "twin"], artifacts.OOF)


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"p_max": "", "p_classification": ""}, "has no probability from 0 to 1"),
        ({"p_max": "1.5"}, "has no probability from 0 to 1"),
        ({"p_classification": "-0.1"}, "has no probability from 0 to 1"),
        ({"p_classification": "inf"}, "has no probability from 0 to 1"),
        ({"image_id": "other"}, "other is not in the manifest"),
        ({"fold": ""}, "has no fold"),
        ({"fold": "0.5"}, "has no fold"),
        ({}, "is listed twice"),
    ],
)
def test_unusable_predictions_are_listed(copied, change, problem):
    path = copied / artifacts.Run("one").predictions.path
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    row = frame[frame["split"] == "oof"].iloc[:1].assign(**change)
    (frame.iloc[1:] if change else frame).to_csv(path, index=False)
    row.to_csv(path, index=False, header=False, mode="a")
    with pytest.raises(BadInput, match=rf"03_predict\.py --run one --overwrite\n  .*{problem}$"):
        predicted.read(copied, ["one"], artifacts.OOF)
