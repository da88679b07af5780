"""The threshold search is exact, and no image is scored with thresholds it helped to choose."""

import itertools

import cv2
import numpy as np
import pytest

from pneumothorax import metrics
from pneumothorax.masks import nested, postprocess, results, thresholds
from pneumothorax.masks.postprocess import ALL_EMPTY, Triplet
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
    """SIIM Dice of the masks, each made and compared pixel by pixel."""
    p = np.ones(len(maps)) if p is None else p
    masks = [
        postprocess.mask(stored, triplet, (SIZE, SIZE), p_of_image)
        for stored, p_of_image in zip(maps, p, strict=True)
    ]
    return metrics.siim_dice(truths, masks)


def profiles_of(maps, truths, grid=GRID):
    return [thresholds.profile(*pair, grid) for pair in zip(maps, truths, strict=True)]


def search_of(maps, truths, grid=GRID):
    return thresholds.Search(profiles_of(maps, truths, grid), grid)


@pytest.fixture(scope="module")
def experiments():
    """(50 searches over 40 images each, one over 2,000 others that stand for the truth)."""
    grid = thresholds.Grid()
    profiles = profiles_of(*simulated(2000, seed=101), grid)
    small = [thresholds.Search(profiles[start : start + 40], grid) for start in range(0, 2000, 40)]
    return small, search_of(*simulated(2000, seed=100), grid)


def fitted(search, folds, p=None):
    """Nested thresholds where all fits share one blend and one calibration."""
    p = np.ones(len(folds)) if p is None else p
    held_out = [None, *sorted(set(folds.tolist()))]
    return nested.fit(dict.fromkeys(held_out, nested.Basis(search, p)), folds)


def test_the_search_scores_every_triplet_as_applying_it_does():
    maps, truths = simulated(24, seed=1)
    p = np.random.default_rng(0).random(24)
    search, everyone = search_of(maps, truths), np.ones(24, dtype=bool)
    scores = search.scores(everyone, p).values
    best = -1.0
    for values in itertools.product(*GRID.axes):
        at = tuple(tried.index(value) for tried, value in zip(GRID.axes, values, strict=True))
        top, _, bottom, *_ = values
        if bottom > top:
            assert scores[at] == -np.inf
            continue
        assert GRID.position(Triplet(*values)) == at
        assert GRID.triplet(GRID.position(Triplet(*values))) == Triplet(*values)
        expected = brute_force(maps, truths, Triplet(*values), p)
        assert scores[at] == pytest.approx(expected)
        best = max(best, expected)
    triplet, score = search.best(everyone, p)
    assert score == pytest.approx(best)
    assert brute_force(maps, truths, triplet, p) == pytest.approx(best)
    for axis in range(6):  # every value matters on these images
        assert np.ma.masked_invalid(scores).ptp(axis).max() > 0


def test_of_equally_good_triplets_the_first_in_the_grid_wins():
    """Search and brute force add in different orders: rounding must not decide."""
    maps, truths = simulated(30, seed=5)
    best, first = -1.0, None
    for values in itertools.product(*GRID.axes):
        top, _, bottom, *_ = values
        if bottom <= top:
            score = brute_force(maps, truths, Triplet(*values))
            if score > best + 1e-9:
                best, first = score, Triplet(*values)
    assert search_of(maps, truths).best(np.ones(30, dtype=bool)).triplet == first


def test_scores_that_differ_only_by_rounding_are_equal():
    grid = thresholds.Grid(tops=(0.5,), min_areas=(0,), bottoms=(0.2, 0.3))
    for gained, bottom in ((1e-14, 0.2), (1e-6, 0.3)):
        values = np.array([0.5, 0.5 + gained]).reshape(1, 1, 2, 1, 1, 1)
        scores = thresholds.GridScores(search_of(*simulated(2, seed=0), grid), None, None, values)
        assert scores.best().triplet.bottom == bottom


def test_a_folds_thresholds_do_not_depend_on_its_images():
    maps, truths = simulated(30, seed=2)
    folds = np.arange(30) % 3
    before = fitted(search_of(maps, truths), folds)
    spoiled = [np.zeros_like(one) if folds[i] == 1 else one for i, one in enumerate(maps)]
    after = fitted(search_of(spoiled, truths), folds)
    assert after.by_fold[1] == before.by_fold[1]
    assert after.naive != before.naive


def flat_and_steep(gains):
    """GridScores over five top thresholds with these gains over empty masks.

    Half of 100 images are negative. Masks of as many positive ones as needed have a Dice of 1.
    """
    grid = thresholds.Grid(tops=(0.3, 0.4, 0.5, 0.6, 0.7), min_areas=(1,), bottoms=(0.3,))
    profiles = []
    for number in range(100):
        areas = [float(number % 2 and number // 2 < 100 * gain) for gain in gains]
        dice, empty = np.full((1, 1, 1), float(number % 2)), float(number % 2 == 0)
        profiles.append(thresholds.Profile(np.array(areas), dice, empty))
    return thresholds.Search(profiles, grid).scores(np.ones(100, dtype=bool))


def test_the_chosen_thresholds_are_in_the_middle_of_the_good_ones():
    scores = flat_and_steep([0.01, 0.2, 0.2, 0.2, 0.01])
    assert (scores.best().triplet.top, scores.choose().triplet.top) == (0.4, 0.5)
    assert scores.choose().siim_dice == pytest.approx(0.7)
    # Of 50 positive images 20 gain 1: the standard error is sqrt(0.5 x 0.4 x 0.6 / 100) = 0.035,
    # a quarter of that is 0.0087, so 0.01 below the best counts exp(-1.15) = 0.32 as much.
    # (0.32 x (0 + 1 + 3) + 1 x 2) / (3 x 0.32 + 1) = 1.7, rounded 2.
    assert flat_and_steep([0.19, 0.19, 0.2, 0.19, 0.0]).choose().triplet.top == 0.5
    # (0.32 x (0 + 1 + 2) + 1 x 3) / (3 x 0.32 + 1) = 2.0
    assert flat_and_steep([0.19, 0.19, 0.19, 0.2, 0.0]).choose().triplet.top == 0.5
    assert flat_and_steep([0.0, 0.0, 0.0, 0.0, 0.2]).choose().triplet.top == 0.7


def test_the_chosen_bottom_threshold_is_never_above_the_top_one():
    for seed in range(20):
        search = search_of(*simulated(12, seed=seed), thresholds.Grid())
        found = search.scores(np.ones(12, dtype=bool)).choose()
        assert found.triplet.bottom <= found.triplet.top
        assert search.image_dice(found.triplet).mean() == pytest.approx(found.siim_dice)


def test_every_image_stays_empty_where_masks_gain_nothing():
    """Masks of shuffled maps fit no lesion: three false alarms cost more than two hits bring."""
    maps, truths = simulated(40, seed=8)
    search = search_of([maps[number - 1] for number in range(40)], truths, thresholds.Grid())
    everyone = np.ones(40, dtype=bool)
    chosen = search.scores(everyone).choose()
    assert chosen == (ALL_EMPTY, 0.5)
    assert search.image_dice(ALL_EMPTY).tolist() == [1.0, 0.0] * 20
    assert "every image is empty" in ALL_EMPTY.described()
    assert not postprocess.mask(np.full((8, 8), 255, np.uint8), ALL_EMPTY, (8, 8)).any()
    found = fitted(search, np.arange(40) % 4)
    assert found.final == ALL_EMPTY
    assert found.naive == found.steps["triplet"].naive == 0.5
    assert np.isfinite(found.surface).any()


def test_chosen_thresholds_promise_less_than_the_best_and_keep_most_of_it(experiments):
    """These maps suit the lowest thresholds of the grid, the worst case for a middle."""
    searches, unseen = experiments
    found = []
    for search in searches:
        scores = search.scores(np.ones(40, dtype=bool))
        for each in (scores.best(), scores.choose()):
            found.append((each.siim_dice, unseen.image_dice(each.triplet).mean()))
    (best, of_best), (chosen, of_chosen) = np.array(found).reshape(50, 2, 2).mean(axis=0)
    assert chosen - of_chosen < 0.7 * (best - of_best)
    assert of_chosen > of_best - 0.02
    assert of_chosen > 0.65  # all-empty: 0.5


def test_the_naive_score_is_that_of_the_final_thresholds_on_all_images():
    maps, truths = simulated(40, seed=3)
    folds, p = np.arange(40) % 4, np.random.default_rng(1).random(40)
    found = fitted(search_of(maps, truths), folds, p)
    dice = [
        brute_force([maps[i]], [truths[i]], found.by_fold[int(folds[i])], p[i : i + 1])
        for i in range(40)
    ]
    assert found.naive == pytest.approx(brute_force(maps, truths, found.final, p))
    assert found.steps["holes filled"] == pytest.approx((np.mean(dice), found.naive))
    of_fold = np.flatnonzero(folds == 2)
    by_hand = brute_force(
        [maps[i] for i in of_fold], [truths[i] for i in of_fold], found.final, p[of_fold]
    )
    assert found.naive_by_fold[2] == pytest.approx(by_hand)


def test_the_steps_lead_from_one_threshold_to_the_whole_grid():
    maps, truths = simulated(40, seed=3)
    search = search_of(maps, truths)
    found = fitted(search, np.arange(40) % 4)
    assert list(found.steps) == [
        "one threshold",
        "image threshold",
        "triplet",
        "small components removed",
        "holes filled",
    ]
    scores = search.scores(np.ones(40, dtype=bool), np.ones(40))
    for name, within in nested.grids_of_steps(GRID).items():
        chosen = scores.choose(within)
        values = vars(chosen.triplet).values()
        assert all(value in axis for value, axis in zip(values, within.axes, strict=True))
        assert found.steps[name].naive == pytest.approx(brute_force(maps, truths, chosen.triplet))
    assert (scores.choose(within)) == (found.final, found.naive)
    triplets_only = thresholds.Grid(GRID.tops, GRID.min_areas, GRID.bottoms)
    assert list(nested.grids_of_steps(triplets_only)) == ["one threshold", "triplet"]


def test_a_fold_is_scored_with_maps_that_were_blended_without_it():
    """Each fit has its own maps: steps and thresholds of a fold come from the fit without it."""
    folds, everyone = np.arange(24) % 2, np.ones(24, dtype=bool)
    truths = simulated(24, seed=7)[1]
    p = np.where([truth.any() for truth in truths], 0.9, 0.3)
    searches = {
        held_out: search_of(simulated(24, seed=7 + n)[0], truths)
        for n, held_out in enumerate((None, 0, 1))
    }
    bases = {held_out: nested.Basis(search, p) for held_out, search in searches.items()}
    found = nested.fit(bases, folds)
    dice = np.zeros(24)
    for fold in (0, 1):
        triplet = searches[fold].scores(folds != fold, p).choose().triplet
        assert found.by_fold[fold] == triplet
        dice[folds == fold] = searches[fold].image_dice(triplet, p)[folds == fold]
    assert found.steps["holes filled"].nested == pytest.approx(dice.mean())
    assert (found.final, found.naive) == searches[None].scores(everyone, p).choose()


def test_nested_scores_are_unbiased_and_naive_scores_are_optimistic(experiments):
    searches, unseen = experiments
    errors, optimism = [], []
    for search in searches:
        found = fitted(search, np.arange(40) % 5)
        truth = np.mean([unseen.image_dice(triplet).mean() for triplet in found.by_fold.values()])
        errors.append(found.steps["triplet"].nested - truth)
        optimism.append(found.naive - unseen.image_dice(found.final).mean())

    def in_standard_errors(values):
        return np.mean(values) / (np.std(values, ddof=1) / np.sqrt(len(values)))

    assert abs(in_standard_errors(errors)) <= 2
    assert in_standard_errors(optimism) > 2


def test_a_single_fold_cannot_be_nested():
    maps, truths = simulated(4, seed=4)
    with pytest.raises(ValueError, match="two folds"):
        fitted(search_of(maps, truths), np.zeros(4, dtype=int))


def test_the_surface_holds_the_score_of_all_thresholds_on_all_images():
    maps, truths = simulated(40, seed=3)
    p = np.random.default_rng(1).random(40)
    found = fitted(search_of(maps, truths), np.arange(40) % 2, p)
    table = results.threshold_surface(found, GRID)
    # 2 tops x 3 areas x 3 bottoms x 3 probabilities, without top 0.5 and bottom 0.6.
    assert len(table) == 45
    final = found.final
    for row in table.to_dict("records"):
        triplet = Triplet(
            row["top"],
            row["min_area"],
            row["bottom"],
            final.min_component,
            final.fill_holes,
            row["min_probability"],
        )
        assert row["siim_dice"] == pytest.approx(brute_force(maps, truths, triplet, p))


def test_thresholds_at_the_end_of_the_grid_are_named():
    assert GRID.last_values(Triplet(0.8, 3000, 0.6)) == ["top threshold", "bottom threshold"]
    assert GRID.last_values(Triplet(0.5, 3000, 0.3, min_probability=0.7)) == []  # computed


def test_a_threshold_that_was_not_searched_is_not_named_as_the_last_one():
    by_probability = thresholds.by_probability(GRID)
    assert by_probability.last_values(Triplet(0.8, 0, 0.5, min_probability=0.4)) == []


def test_by_probability_no_image_is_emptied_for_its_area():
    """One pixel of 0.3 is enough for an image that passes its probability, and none without."""
    grid = thresholds.by_probability(thresholds.Grid(bottoms=(0.2, 0.5)))
    assert grid.tops == (max(thresholds.TOPS),)
    maps = [np.zeros((SIZE, SIZE), np.uint8) for _ in range(2)]
    for stored in maps:
        stored[8, 8] = 77
    truths = [(stored > 0).astype(np.uint8) for stored in maps]
    search = search_of(maps, truths, grid)
    triplet = Triplet(grid.tops[0], 0.0, 0.2, min_probability=0.5)
    assert search.image_dice(triplet, np.array([0.6, 0.4])).tolist() == [1.0, 0.0]
