"""Bootstrap intervals: resamples of patients, scored exactly, that cover the truth as promised."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from pneumothorax import metrics
from pneumothorax.scores import bootstrap
from tests.helpers.frames import frame, random_frame

TRUE_SIIM_DICE = 0.71  # of random_frame; see its docstring


def naive_replicates(table, *, repeats, seed):
    """Writes out the rows of every drawn patient, one resample at a time: {score: (repeats,)}."""
    ids = np.unique(table["patient_id"])
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(repeats):
        drawn = ids[generator.integers(len(ids), size=len(ids))]
        resample = pd.concat([table[table["patient_id"] == patient] for patient in drawn])
        rows.append(bootstrap.measured(resample))
    return pd.DataFrame(rows)


def coverage(*, simulations, patients, seed, by_image=False):
    """Share of simulated studies whose 95 % interval of SIIM Dice contains the true value."""
    rng = np.random.default_rng(seed)
    hits = 0
    for number in range(simulations):
        table = random_frame(rng, patients=patients)
        if by_image:
            table = table.assign(patient_id=table["image_id"])
        found = bootstrap.intervals(table, ["siim_dice"], repeats=1000, seed=number).iloc[0]
        hits += found["low"] <= TRUE_SIIM_DICE <= found["high"]
    return hits / simulations


def test_replicates_equal_the_scores_of_the_drawn_patients_rows():
    table = random_frame(np.random.default_rng(1), patients=12)
    found = bootstrap.replicates(table, repeats=130, seed=3)  # more than one chunk
    expected = naive_replicates(table, repeats=130, seed=3)
    assert tuple(found) == tuple(metrics.DEFINITIONS)
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name], atol=1e-12, err_msg=name)


def test_a_resample_without_positives_is_undefined_only_for_scores_that_need_them():
    # One of three patients is positive and often not drawn: (2/3)^3 = 0.30.
    table = frame([9, 0, 0], [9, 0, 0], [9, 0, 0])
    found = bootstrap.replicates(table, repeats=200, seed=0)
    without = np.isnan(found["sensitivity"])
    assert 0.15 < without.mean() < 0.45
    for name in ("positive_dice", "pooled_dice", "pooled_recall", "ppv"):
        np.testing.assert_array_equal(np.isnan(found[name]), without, err_msg=name)
    assert (np.isnan(found["auc"]) >= without).all()
    assert not np.isnan(found["siim_dice"]).any()
    row = bootstrap.intervals(table, ["sensitivity"]).iloc[0]
    assert (row["value"], row["low"], row["high"]) == (1, 1, 1)


def test_scores_that_are_never_defined_have_no_interval_and_cause_no_warning(recwarn):
    table = bootstrap.intervals(frame([0, 0], [0, 0], [0, 0])).set_index("score")
    assert table.loc[["positive_dice", "auc", "ppv"]].isna().all(axis=None)
    assert table.loc["siim_dice"].tolist() == [1, 1, 1]
    assert not recwarn.list


def test_the_interval_is_the_percentiles_by_hand():
    # 0, 0.01, ..., 1: the 5th and 95th percentiles are 0.05 and 0.95.
    replicate = np.r_[np.arange(101), np.nan] / 100
    assert bootstrap.interval(replicate, 0.9) == pytest.approx({"low": 0.05, "high": 0.95})
    assert bootstrap.interval(replicate) == pytest.approx({"low": 0.025, "high": 0.975})


def test_a_single_patient_has_scores_but_no_interval():
    table = bootstrap.intervals(frame([4, 4], [4, 4], [4, 2], patient_id="one"), ["siim_dice"])
    assert table["value"].tolist() == [0.75]
    assert table[["low", "high"]].isna().all(axis=None)


def test_the_values_next_to_the_intervals_are_those_of_the_table():
    table = random_frame(np.random.default_rng(2), patients=40)
    found = bootstrap.intervals(table, repeats=50).set_index("score")
    assert found["value"].to_dict() == pytest.approx(bootstrap.measured(table))
    assert ((found["low"] <= found["value"]) & (found["value"] <= found["high"])).all()


def test_the_same_seed_and_patients_give_the_same_resamples_whatever_the_order_of_rows():
    table = random_frame(np.random.default_rng(3), patients=30)
    first = bootstrap.replicates(table, repeats=50, seed=1)
    shuffled = bootstrap.replicates(table.sample(frac=1, random_state=0), repeats=50, seed=1)
    other = bootstrap.replicates(table, repeats=50, seed=2)
    for name in metrics.DEFINITIONS:
        np.testing.assert_allclose(shuffled[name], first[name], atol=1e-12)
    assert (other["siim_dice"] != first["siim_dice"]).any()


def test_images_of_a_patient_are_drawn_together():
    # One patient has 3 images, all right, the other 1, wrong: resamples score 1, 0 or 3/4.
    table = frame([5] * 4, [5] * 4, [5, 5, 5, 0], patient_id=["a", "a", "a", "b"])
    assert set(bootstrap.replicates(table, ["siim_dice"], repeats=200)["siim_dice"]) == {0, 0.75, 1}


def test_an_image_without_a_patient_id_is_its_own_patient():
    table = frame([5] * 4, [5] * 4, [5, 5, 5, 0], patient_id=["a", "", "", "a"])
    number, count = bootstrap.patients(table)
    assert count == 3
    assert number[0] == number[3]
    assert len(set(number.tolist())) == 3


def test_the_auc_with_integer_weights_is_that_of_repeated_rows():
    rng = np.random.default_rng(4)
    positive, p = rng.random(200) < 0.3, np.round(rng.random(200), 1)  # many ties
    patient = rng.integers(50, size=200)
    weights = rng.integers(0, 4, size=(5, 50))
    found = bootstrap.WeightedAuc(patient, positive, p)(weights)
    for value, weight in zip(found, weights, strict=True):
        repeats = weight[patient]
        assert value == pytest.approx(
            roc_auc_score(np.repeat(positive, repeats), np.repeat(p, repeats))
        )
        assert value == pytest.approx(roc_auc_score(positive, p, sample_weight=repeats))


def test_an_unknown_score_and_an_empty_table_are_refused():
    with pytest.raises(ValueError, match=r"dice_siim.*siim_dice"):
        bootstrap.replicates(frame([1], [1], [1]), ["dice_siim"])
    with pytest.raises(ValueError, match="no images"):
        bootstrap.replicates(frame([], [], []))


@pytest.mark.slow
def test_intervals_over_patients_cover_the_truth_in_95_percent_of_studies_others_do_not():
    assert 0.93 <= coverage(simulations=200, patients=200, seed=0) <= 0.97
    assert coverage(simulations=200, patients=200, seed=0, by_image=True) < 0.93


def test_memory_stays_bounded_for_as_many_patients_as_in_the_competition():
    table = random_frame(np.random.default_rng(5), patients=6000, images=(2,))
    table["p_positive"] = np.random.default_rng(6).random(len(table))  # no ties: most ranks
    tracemalloc.start()
    bootstrap.replicates(table, repeats=200)  # two chunks; more chunks need no more memory
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6
