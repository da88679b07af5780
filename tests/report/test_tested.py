"""Labelled test images in the report's numbers: counts, differences, tables, and refusals."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from pneumothorax.errors import BadInput
from pneumothorax.pipeline import artifacts
from pneumothorax.report import runs, statistics, summary
from pneumothorax.scores import per_image
from tests.helpers import report_samples

IMAGES = 60
PATIENTS = IMAGES // 2
IDS = [f"t{number:02d}" for number in range(IMAGES)]
# Per image: true, predicted by `good` and by `poor`, and their overlaps
TRUE = np.array([100, 100, 0, 0, 0, 0] * 10)
GOOD, GOOD_OVERLAP = np.array([100, 100, 0, 0, 0, 0] * 10), np.array([80, 50, 0, 0, 0, 0] * 10)
POOR, POOR_OVERLAP = np.array([100, 0, 10, 0, 0, 0] * 10), np.array([40, 0, 0, 0, 0, 0] * 10)
GOOD_DICE = [0.8, 0.5, 1, 1, 1, 1]  # of every six images
POOR_DICE = [0.4, 0, 0, 1, 1, 1]


def frame_of(run, predicted, overlap):
    """per_image.test_table of two images per patient; a third each is seen, unseen, unknown."""
    images = pd.DataFrame(
        {
            "image_id": IDS,
            "p_positive": np.linspace(0, 1, IMAGES),
            "true_px": TRUE,
            "predicted_px": predicted,
            "overlap_px": overlap,
        }
    )
    facts = {"view": "PA", "sex": "F", "height": 64, "width": 64, "positive": 0}
    manifest = pd.DataFrame({"image_id": IDS, **facts})
    patients = [number // 2 for number in range(IMAGES)]
    seen = [(1, 0, np.nan)[patient % 3] for patient in patients]
    patients = {"patient_id": [f"p{each}" for each in patients], "in_training": seen}
    table = pd.DataFrame({"image_id": IDS, **patients})
    return per_image.test_table(images, manifest, table, run)


def run_of(name, predicted, overlap):
    frame = frame_of(name, predicted, overlap)
    results = replace(report_samples.test_results(0.8), per_image=frame)
    run = report_samples.run(name, 0.8, test=results)
    return replace(run, per_image=frame.assign(fold=[n % 2 for n in range(IMAGES)]))


@pytest.fixture(scope="module")
def compared():
    return [
        run_of("good", GOOD, GOOD_OVERLAP),
        run_of("poor", POOR, POOR_OVERLAP),
    ]


@pytest.fixture(scope="module")
def found(compared):
    return statistics.compute(compared, seed=3)


def test_counts_are_of_the_test_images_alone(found):
    counts = {name: value for name, value in vars(found.test).items() if name != "differences"}
    assert counts == {
        "images": 60,
        "positives": 20,
        "patients": 30,
        "in_training": 20,
        "unseen": 20,
        "unknown": 20,
        "caution": "Only 20 of 60 test images are positive: these scores say that the pipeline "
        "runs, not how good it is.",
    }


def test_differences_on_test_images_are_those_of_an_independent_bootstrap(found):
    rows = found.test.differences.set_index(["first", "second", "score"])
    row = rows.loc[("good", "poor", "siim_dice")]
    assert row["difference"] == pytest.approx(np.mean(GOOD_DICE) - np.mean(POOR_DICE))
    gains = np.tile(np.subtract(GOOD_DICE, POOR_DICE), 10).reshape(PATIENTS, 2)  # two per patient
    drawn = np.random.default_rng(0).integers(PATIENTS, size=(20_000, PATIENTS))
    low, high = np.quantile(gains[drawn].mean(axis=(1, 2)), [0.025, 0.975])
    assert (row["low"], row["high"]) == pytest.approx((low, high), abs=0.02)
    # Every second image is negative by truth and empty in both: the baseline has 4 of 6 images.
    against = rows.loc[("poor", "all-empty baseline", "siim_dice")]
    assert against["difference"] == pytest.approx(np.mean(POOR_DICE) - 4 / 6)
    assert ("good", "all-empty baseline", "pooled_dice") not in rows.index


def test_runs_of_other_test_images_are_not_compared(compared):
    good, poor = compared
    fewer = replace(poor.test, per_image=poor.test.per_image.iloc[1:])
    with pytest.raises(BadInput, match="1 image is in only one of them: t00"):
        statistics.compute([good, replace(poor, test=fewer)], seed=3)


def test_few_patients_are_a_caution_of_their_own(compared):
    frame = compared[0].test.per_image
    many = pd.concat([frame.assign(image_id=frame["image_id"] + str(n)) for n in range(3)])
    assert statistics.caution(many, "test images") == (
        "Only 30 patients of test images: intervals are too narrow."
    )  # 3 x 20 = 60 positives are enough
    assert statistics.caution(many) == "Only 30 patients: intervals are too narrow."


def test_tables_of_test_images_are_apart_from_those_of_cross_validation(compared):
    tables = summary.tables(compared)
    scores = tables[artifacts.REPORT_TEST_TABLE]
    assert scores["run"].tolist() == ["good"] * 5 + ["poor"] * 5
    assert set(scores.columns) == set(artifacts.REPORT_TEST_TABLE.columns)
    images = tables[artifacts.TEST_PER_IMAGE]
    assert images.groupby("run", sort=False)["dice"].mean().to_dict() == pytest.approx(
        {"all-empty baseline": 4 / 6, "good": np.mean(GOOD_DICE), "poor": np.mean(POOR_DICE)}
    )
    assert len(tables[artifacts.PER_IMAGE]) == 3 * IMAGES
    untested = [replace(run, test=None) for run in compared]
    assert set(summary.tables(untested)) == {artifacts.REPORT_TABLE, artifacts.PER_IMAGE}


def test_the_terminal_table_ends_with_the_test_score_and_its_interval(compared):
    header, baseline, good, _ = summary.terminal_table(compared).splitlines()
    assert header.endswith("  test siim_dice")
    assert baseline.endswith("  0.5020 (0.4520 to 0.5520)")
    assert good.endswith("  0.8000 (0.7500 to 0.8500)")
    untested = summary.terminal_table([replace(run, test=None) for run in compared])
    assert "test" not in untested


def test_the_summary_has_test_scores_only_if_there_are_any(compared, found):
    evaluated = report_samples.EVALUATED
    text = summary.summary(compared, found, evaluated, seed=3)
    assert text["test"]["unseen"] == 20
    assert text["test"]["runs"]["poor"][0]["siim_dice_high"] == pytest.approx(0.85)
    assert len(text["test"]["differences"]) == 4 + 2  # 4 scores of the pair, 1 against the baseline
    untested = [replace(run, test=None) for run in compared]
    without = summary.summary(untested, replace(found, test=None), evaluated, seed=3)
    assert "test" not in without


def test_a_run_without_test_scores_is_refused_beside_one_with(compared):
    good, poor = compared
    blend = replace(poor, test=None, members=("one", "two"))
    message = (
        r"poor: run 03_predict.py --run one and 03_predict.py --run two, "
        r"then 04_submit.py --name poor"
    )
    with pytest.raises(BadInput, match=message):
        runs.check_tested([good, blend])
    runs.check_tested([good, poor])
    runs.check_tested([blend])


def test_all_images_are_the_out_of_fold_ones_and_then_the_test_images(compared):
    run = compared[0]
    oof = pd.DataFrame({"image_id": ["a"], "fold": [1]})
    test = replace(run.test, images=pd.DataFrame({"image_id": ["b"]}))
    both = replace(run, images=oof, test=test).all_images()
    assert both.to_dict("list") == {"image_id": ["a", "b"], "fold": [1, -1]}
    assert replace(run, images=oof, test=None).all_images() is oof
