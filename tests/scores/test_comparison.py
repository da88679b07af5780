"""Differences between runs: on the same images and resamples, with p-values that are right."""

import numpy as np
import pandas as pd
import pytest

from pneumothorax import metrics
from pneumothorax.errors import BadInput
from pneumothorax.pipeline import artifacts
from pneumothorax.scores import bootstrap, comparison, per_image
from tests.helpers.frames import frame, random_frame


def run(patients=60, seed=0):
    return random_frame(np.random.default_rng(seed), patients=patients)


def scored(table, **columns):
    table = table.assign(**columns)
    known = table[list(artifacts.PER_IMAGE.columns[:10])]
    return frame(*(table[name] for name in ("true_px", "predicted_px", "overlap_px")), **known)


def better(table):
    """The same run with half of the missed pixels found and without false alarms."""
    overlap = (table["overlap_px"] + table["true_px"]) // 2
    return scored(
        table, overlap_px=overlap, predicted_px=table["predicted_px"].where(table["true_px"] > 0, 0)
    )


def test_a_run_and_its_copy_differ_by_0_with_p_1():
    table = run()
    found = comparison.paired(table, table.sample(frac=1, random_state=0), repeats=500)
    assert found["score"].tolist() == list(metrics.DEFINITIONS)
    assert (found["difference"] == 0).all()
    assert (found["low"] == 0).all()
    assert (found["high"] == 0).all()
    assert (found["p"] == 1).all()


def test_a_clear_improvement_has_a_small_p_and_an_interval_above_0():
    table = run()
    found = comparison.paired(better(table), table, ["siim_dice", "positive_dice"], repeats=999)
    assert (found["low"] > 0).all()
    # None of 999 resamples reverses the sign: 2 * (0 + 1) / (999 + 1).
    assert found["p"].tolist() == [2 / 1000] * 2


def test_the_difference_is_first_minus_second():
    table = run()
    one = comparison.paired(better(table), table, repeats=200).set_index("score")
    other = comparison.paired(table, better(table), repeats=200).set_index("score")
    expected = (
        bootstrap.measured(better(table))["siim_dice"] - bootstrap.measured(table)["siim_dice"]
    )
    assert one.loc["siim_dice", "difference"] == pytest.approx(expected)
    np.testing.assert_allclose(one["difference"], -other["difference"])
    np.testing.assert_allclose(one["low"], -other["high"], atol=1e-9)
    np.testing.assert_array_equal(one["p"], other["p"])


def test_both_runs_are_scored_on_the_same_resamples():
    # The second run scores 0.1 less on every image, and so on every resample, although images
    # range from 0.1 to 1: the interval of the difference has no width.
    rng = np.random.default_rng(0)
    overlap = rng.integers(10, 101, size=80)
    first, second = (frame([100] * 80, [100] * 80, found) for found in (overlap, overlap - 10))
    found = comparison.paired(first, second, ["siim_dice"], repeats=200).iloc[0]
    assert (found["low"], found["high"]) == pytest.approx((0.1, 0.1))
    assert bootstrap.intervals(first, ["siim_dice"], repeats=200).eval("high - low").item() > 0.05


def test_p_value_by_hand():
    assert comparison.p_value(np.array([-1.0, 1, 1, 1, 1, 1, 1, 1, 1])) == pytest.approx(
        2 * (1 + 1) / (9 + 1)
    )
    assert comparison.p_value(np.array([-1.0, -1, -1, -1])) == pytest.approx(2 * (0 + 1) / (4 + 1))
    assert comparison.p_value(np.array([0.0, 1, 1, np.nan])) == 1  # 2 * (1 + 1) / (3 + 1)
    assert comparison.p_value(np.array([-1.0, 1])) == 1  # 2 * (1 + 1) / (2 + 1) is more than 1
    assert np.isnan(comparison.p_value(np.array([np.nan])))


def test_equally_good_runs_have_p_below_5_percent_about_5_percent_of_the_time():
    rng = np.random.default_rng(7)
    patient = np.arange(200) // 2  # two images each, on which a run is equally good
    ids = [f"patient{number}" for number in patient]
    small = 0
    for number in range(200):
        first, second = (
            frame([100] * 200, [100] * 200, rng.integers(20, 81, size=100)[patient], patient_id=ids)
            for _ in range(2)
        )
        small += (
            comparison.paired(first, second, ["siim_dice"], repeats=500, seed=number)["p"].item()
            < 0.05
        )
    assert 0.02 <= small / 200 <= 0.09


def test_the_interval_of_a_difference_covers_the_truth_in_95_percent_of_studies():
    rng = np.random.default_rng(8)
    patient = np.arange(400) // 2
    ids = [f"patient{number}" for number in patient]
    held = 0
    for number in range(200):
        second = rng.integers(20, 71, size=200)
        # Better by 5 of 100 pixels on average: Dice is higher by 0.05.
        first = second + rng.integers(-10, 21, size=200)
        tables = (
            frame([100] * 400, [100] * 400, found[patient], patient_id=ids)
            for found in (first, second)
        )
        row = comparison.paired(*tables, ["siim_dice"], repeats=1000, seed=number).iloc[0]
        held += row["low"] <= 0.05 <= row["high"]
    assert 0.93 <= held / 200 <= 0.97


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.iloc[1:], "1 image is in only one of them: image00000"),
        (lambda table: table.assign(image_id=table["image_id"] + "x"), "in only one of them"),
        (
            lambda table: table.assign(fold=(table["fold"] + 1) % 5),
            "different folds .*image00000, .*, \\.\\.\\.",
        ),
        (lambda table: table.assign(patient_id="one"), "different patients"),
        (
            lambda table: table.assign(true_px=table["true_px"].where(table.index > 0, 7)),
            "1 image has different truths",
        ),
    ],
)
def test_runs_on_different_images_patients_folds_or_truths_are_refused(change, message):
    table = run()
    with pytest.raises(BadInput, match=f"first and second cannot be compared: .*{message}"):
        comparison.paired(table, change(table))
    with pytest.raises(BadInput, match="a and c cannot be compared"):
        comparison.all_pairs({"a": table, "b": table, "c": change(table)})


def test_an_image_that_is_listed_twice_is_refused():
    table = run()
    with pytest.raises(BadInput, match="second lists images twice: image00003"):
        comparison.paired(
            table, table.assign(image_id=table["image_id"].replace("image00004", "image00003"))
        )


def test_all_pairs_lists_every_two_runs_once_and_accepts_the_all_empty_baseline():
    table = run()
    frames = {"new": better(table), "old": table, artifacts.ALL_EMPTY: per_image.all_empty(table)}
    found = comparison.all_pairs(frames, ["siim_dice", "ppv"], repeats=200)
    columns = "first second score difference low high p p_holm".split()
    assert list(found.columns) == columns
    pairs = [("new", "old"), ("new", artifacts.ALL_EMPTY), ("old", artifacts.ALL_EMPTY)]
    assert list(zip(found["first"], found["second"], strict=True)) == [
        pair for pair in pairs for _ in range(2)
    ]
    for first, second in pairs:
        rows = found[(found["first"] == first) & (found["second"] == second)]
        alone = comparison.paired(frames[first], frames[second], ["siim_dice", "ppv"], repeats=200)
        np.testing.assert_array_equal(
            rows[["difference", "low", "high", "p"]], alone[["difference", "low", "high", "p"]]
        )
    undefined = found[(found["score"] == "ppv") & (found["second"] == artifacts.ALL_EMPTY)]
    assert undefined[["difference", "low", "high", "p", "p_holm"]].isna().all(axis=None)
    # The only pair with a PPV: no correction.
    one = found[(found["score"] == "ppv") & (found["second"] == "old")]
    assert one["p_holm"].item() == one["p"].item()


def test_a_single_run_has_no_pairs():
    assert comparison.all_pairs({"only": run()}, repeats=10).empty


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.5; times 4, 3, 2, 1 = 0.04, 0.06, 0.06, 0.5; never falling.
    assert comparison.holm(np.array([0.5, 0.01, 0.03, 0.02])) == pytest.approx(
        [0.5, 0.04, 0.06, 0.06]
    )
    assert comparison.holm(np.array([0.03, 0.02])) == pytest.approx([0.04, 0.04])
    assert comparison.holm(np.array([0.6, 0.9])) == pytest.approx([1, 1])
    assert comparison.holm(np.array([np.nan, 0.02, 0.01])) == pytest.approx(
        [np.nan, 0.02, 0.02], nan_ok=True
    )


def test_the_gain_is_the_blends_score_minus_that_of_its_best_single_run():
    ids = [f"i{number}" for number in range(40)]
    manifest = pd.DataFrame(
        {"image_id": ids, "view": "", "sex": "", "height": 64, "width": 64, "positive": 1}
    )
    folds = pd.DataFrame(
        {"image_id": ids, "patient_id": [f"p{n // 2}" for n in range(40)], "fold": 0}
    )

    def predicted_as(overlaps):
        return pd.DataFrame(
            {
                "image_id": ids,
                "fold": 0,
                "p_positive": 0.5,
                "true_px": 10,
                "predicted_px": 10,
                "overlap_px": overlaps,
                "dice": np.array(overlaps) / 10,
            }
        )

    worse, better = predicted_as([4] * 40), predicted_as([5, 7] * 20)
    blend = predicted_as([9 - number % 5 for number in range(40)])  # 7 of 10 on average
    found = comparison.gain_over_best_run(blend, {"a": worse, "b": better}, manifest, folds, seed=1)
    assert found["run"] == "b"
    assert found["siim_dice"] == pytest.approx(0.6)
    assert found["difference"] == pytest.approx(0.1)
    assert 0 < found["low"] < 0.1 < found["high"]
    other = comparison.gain_over_best_run(blend, {"a": worse, "b": better}, manifest, folds, seed=2)
    assert (other["low"], other["high"]) != (found["low"], found["high"])
    assert "best single run b 0.6000: the blend gains +0.1000" in comparison.gain_in_words(found)
