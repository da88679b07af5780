"""Triplet search: exact, and nested so that no image is scored with thresholds it helped to choose."""

import itertools

import cv2
import numpy as np
import pytest

from pneumothorax import metrics
from pneumothorax.masks import evaluation, postprocess, thresholds
from pneumothorax.masks.postprocess import Triplet
from tests.helpers.images import disc

GRID = thresholds.Grid(
    tops=(0.5, 0.8),
    min_areas=(0, 3000, 40000),
    bottoms=(0.3, 0.5, 0.6),
    min_components=(0, 5000),
    fill_holes=(False, True),
    min_probabilities=(0.0, 0.4, 0.7),
)
SIZE = 64


def simulated(n, seed):
    """(maps (32, 32) uint8, truths (64, 64)): blurred discs with noise, misses and false alarms."""
    rng = np.random.default_rng(seed)
    maps, truths = [], []
    for number in range(n):
        row, column, radius = *rng.integers(16, 48, 2), int(rng.integers(4, 12))
        truth = disc(SIZE, row, column, radius) if number % 2 else np.zeros((SIZE, SIZE), np.uint8)
        seen = truth if rng.random() < 0.8 else np.zeros_like(truth)
        if rng.random() < 0.4:
            seen = seen | disc(SIZE, *rng.integers(8, 56, 2), int(rng.integers(2, 8)))
        if rng.random() < 0.3:
            seen = seen & ~disc(SIZE, row, column, radius // 2)  # a hole
        blurred = cv2.GaussianBlur(
            cv2.resize(seen * 255, (32, 32), interpolation=cv2.INTER_AREA), (0, 0), 1.0
        )
        maps.append((blurred * rng.uniform(0.5, 1.0)).astype(np.uint8))
        truths.append(truth)
    return maps, truths


def brute_force(maps, truths, triplet, p=None):
    p = np.ones(len(maps)) if p is None else p
    masks = [
        postprocess.mask(one, triplet, (SIZE, SIZE), own) for one, own in zip(maps, p, strict=True)
    ]
    return metrics.siim_dice(truths, masks)


def profiles_of(maps, truths, grid=GRID):
    return [thresholds.profile(*pair, grid) for pair in zip(maps, truths, strict=True)]


def search_of(maps, truths, grid=GRID):
    return thresholds.Search(profiles_of(maps, truths, grid), grid)


def fitted(search, folds, p=None, grid=GRID):
    everyone = [None, *sorted(set(folds.tolist()))]
    p = np.ones(len(folds)) if p is None else p
    return thresholds.fit(dict.fromkeys(everyone, search), folds, dict.fromkeys(everyone, p), grid)


def test_the_search_scores_every_triplet_as_applying_it_does():
    maps, truths = simulated(24, seed=1)
    p = np.random.default_rng(0).random(24)
    search = search_of(maps, truths)
    scores = search.scores(np.ones(24, dtype=bool), p)
    best = -1.0
    for values in itertools.product(*GRID.axes):
        at = tuple(tried.index(value) for tried, value in zip(GRID.axes, values, strict=True))
        if values[2] > values[0]:
            assert scores[at] == -np.inf
            continue
        expected = brute_force(maps, truths, Triplet(*values), p)
        assert scores[at] == pytest.approx(expected)
        best = max(best, expected)
    triplet, score = search.best(np.ones(24, dtype=bool), p)
    assert score == pytest.approx(best)
    assert brute_force(maps, truths, triplet, p) == pytest.approx(best)
    for axis in range(6):  # every part of the post-processing makes a difference on these images
        assert np.ma.masked_invalid(scores).ptp(axis).max() > 0


def test_the_best_triplet_is_the_first_in_the_grids_order_among_those_that_applying_them_finds_best():
    """The sums of the search are in another order than those of the brute force: rounding must not decide."""
    maps, truths = simulated(30, seed=5)
    best, first = -1.0, None
    for values in itertools.product(*GRID.axes):
        if values[2] <= values[0]:
            score = brute_force(maps, truths, Triplet(*values))
            if score > best + 1e-9:
                best, first = score, Triplet(*values)
    assert search_of(maps, truths).best(np.ones(30, dtype=bool))[0] == first


def test_the_thresholds_of_a_fold_do_not_depend_on_its_own_images():
    maps, truths = simulated(30, seed=2)
    folds = np.arange(30) % 3
    before = fitted(search_of(maps, truths), folds)
    spoiled = [np.zeros_like(one) if folds[i] == 1 else one for i, one in enumerate(maps)]
    after = fitted(search_of(spoiled, truths), folds)
    assert after.by_fold[1] == before.by_fold[1]
    assert after.naive != before.naive


def test_the_naive_score_is_the_best_on_all_images_and_never_below_the_nested_one():
    maps, truths = simulated(40, seed=3)
    folds, p = np.arange(40) % 4, np.random.default_rng(1).random(40)
    found = fitted(search_of(maps, truths), folds, p)
    nested = [
        brute_force([maps[i]], [truths[i]], found.by_fold[int(folds[i])], p[i : i + 1])
        for i in range(40)
    ]
    assert found.naive == pytest.approx(brute_force(maps, truths, found.final, p))
    assert found.naive >= np.mean(nested) - 1e-12
    assert found.steps["image threshold"] == pytest.approx((np.mean(nested), found.naive))
    own = folds == 2
    by_hand = brute_force(
        [maps[i] for i in range(40) if own[i]],
        [truths[i] for i in range(40) if own[i]],
        found.final,
        p[own],
    )
    assert found.naive_by_fold[2] == pytest.approx(by_hand)


def test_the_steps_lead_from_one_threshold_to_the_whole_grid():
    maps, truths = simulated(40, seed=3)
    found = fitted(search_of(maps, truths), np.arange(40) % 4)
    assert list(found.steps) == [
        "one threshold",
        "triplet",
        "small parts dropped",
        "holes filled",
        "image threshold",
    ]
    alone = max(brute_force(maps, truths, Triplet(0.8, 0, bottom)) for bottom in GRID.bottoms)
    assert found.steps["one threshold"][1] == pytest.approx(alone)
    naive = [score for _, score in found.steps.values()]
    assert naive == sorted(naive)  # each grid holds the one before
    plain = thresholds.Grid(GRID.tops, GRID.min_areas, GRID.bottoms)
    assert list(thresholds.smaller_grids(plain)) == ["one threshold", "triplet"]


def test_a_fold_is_scored_with_maps_that_were_blended_without_it():
    """Each exclusion has maps of its own: the steps and thresholds of a fold come from its own exclusion's."""
    folds, everyone = np.arange(24) % 2, np.ones(24, dtype=bool)
    truths = simulated(24, seed=7)[1]
    searches = {
        left_out: search_of(simulated(24, seed=7 + n)[0], truths)
        for n, left_out in enumerate((None, 0, 1))
    }
    found = thresholds.fit(searches, folds, dict.fromkeys(searches, np.ones(24)), GRID)
    dice = np.zeros(24)
    for fold in (0, 1):
        triplet, _ = searches[fold].best(folds != fold)
        assert found.by_fold[fold] == triplet
        dice[folds == fold] = searches[fold].image_dice(triplet, np.ones(24))[folds == fold]
    assert found.steps["image threshold"][0] == pytest.approx(dice.mean())
    assert (found.final, found.naive) == searches[None].best(everyone)


def test_nested_scores_are_unbiased_and_naive_ones_optimistic():
    """50 small experiments of 40 images; the truth is each fold's thresholds on 4,000 images never seen."""
    grid = thresholds.Grid()
    unseen, everyone = search_of(*simulated(4000, seed=100), grid), np.ones(4000)
    profiles = profiles_of(*simulated(2000, seed=101), grid)
    errors, optimism = [], []
    for start in range(0, 2000, 40):
        search = thresholds.Search(profiles[start : start + 40], grid)
        found = fitted(search, np.arange(40) % 5, grid=grid)
        nested, naive = found.steps["triplet"]
        truth = np.mean(
            [unseen.image_dice(triplet, everyone).mean() for triplet in found.by_fold.values()]
        )
        errors.append(nested - truth)
        optimism.append(naive - unseen.image_dice(found.final, everyone).mean())

    def in_standard_errors(values):
        return np.mean(values) / (np.std(values, ddof=1) / np.sqrt(len(values)))

    assert abs(in_standard_errors(errors)) <= 2
    assert in_standard_errors(optimism) > 2


def test_one_fold_alone_cannot_be_nested():
    maps, truths = simulated(4, seed=4)
    with pytest.raises(ValueError, match="two folds"):
        fitted(search_of(maps, truths), np.zeros(4, dtype=int))


def test_the_surface_holds_every_triplets_score_on_all_images():
    maps, truths = simulated(40, seed=3)
    found = fitted(search_of(maps, truths), np.arange(40) % 2)
    table = evaluation.threshold_surface(found, GRID)
    # 2 tops x 3 areas x 3 bottoms, less top 0.5 under bottom 0.6 with each area.
    assert len(table) == 15
    final = found.final
    for row in table.to_dict("records"):
        triplet = Triplet(
            row["top"], row["min_area"], row["bottom"], final.min_component, final.fill_holes
        )
        assert row["siim_dice"] == pytest.approx(brute_force(maps, truths, triplet))


def test_the_last_value_of_a_grid_is_named():
    assert thresholds.on_the_edge(Triplet(0.8, 3000, 0.6), GRID) == [
        "top threshold",
        "bottom threshold",
    ]


def test_scores_that_differ_by_rounding_alone_are_equal_and_the_earlier_thresholds_win():
    grid = thresholds.Grid(tops=(0.5,), min_areas=(0,), bottoms=(0.2, 0.3))
    search = thresholds.Search([thresholds.Profile(np.zeros(1), np.zeros((2, 1, 1)), 0.0)], grid)
    for gained, bottom in ((1e-14, 0.2), (1e-6, 0.3)):
        scores = np.array([0.5, 0.5 + gained]).reshape(1, 1, 2, 1, 1, 1)
        assert search.choose(scores, grid)[0].bottom == bottom
