"""Triplet search: exact, and nested so that no image is scored with thresholds it helped to choose."""

import itertools

import cv2
import numpy as np
import pytest
from conftest import disc

from pneumothorax import evaluation, metrics, postprocess, thresholds
from pneumothorax.postprocess import Triplet

GRID = thresholds.Grid(tops=(0.5, 0.8), min_areas=(0, 3000, 40000), bottoms=(0.3, 0.5, 0.6), min_component=1000)
SIZE = 64


def simulated(n, seed):
    """(maps (32, 32) uint8, truths (64, 64)): blurred discs with noise, misses and false alarms."""
    rng = np.random.default_rng(seed)
    maps, truths = [], []
    for number in range(n):
        truth = (
            disc(SIZE, *rng.integers(16, 48, 2), int(rng.integers(4, 12)))
            if number % 2
            else np.zeros((SIZE, SIZE), np.uint8)
        )
        seen = truth if rng.random() < 0.8 else np.zeros_like(truth)
        if rng.random() < 0.4:
            seen = seen | disc(SIZE, *rng.integers(8, 56, 2), int(rng.integers(2, 8)))
        blurred = cv2.GaussianBlur(cv2.resize(seen * 255, (32, 32), interpolation=cv2.INTER_AREA), (0, 0), 1.0)
        maps.append((blurred * rng.uniform(0.5, 1.0)).astype(np.uint8))
        truths.append(truth)
    return maps, truths


def brute_force(maps, truths, triplet):
    return metrics.siim_dice(truths, [postprocess.mask(one, triplet, (SIZE, SIZE)) for one in maps])


def test_the_search_scores_every_triplet_as_applying_it_does():
    maps, truths = simulated(24, seed=1)
    profiles = [thresholds.profile(one, truth, GRID) for one, truth in zip(maps, truths, strict=True)]
    search = thresholds.Search(profiles, GRID)
    scores = search.scores(np.ones(24, dtype=bool))
    best = -1.0
    for (t, top), (a, area), (b, bottom) in itertools.product(
        *map(enumerate, (GRID.tops, GRID.min_areas, GRID.bottoms))
    ):
        if bottom > top:
            assert scores[t, a, b] == -np.inf
            continue
        expected = brute_force(maps, truths, Triplet(top, area, bottom, GRID.min_component))
        assert scores[t, a, b] == pytest.approx(expected)
        best = max(best, expected)
    triplet, score = search.best(np.ones(24, dtype=bool))
    assert score == pytest.approx(best)
    assert brute_force(maps, truths, triplet) == pytest.approx(best)
    assert len(set(scores[np.isfinite(scores)].round(6))) > 4  # the triplets do differ on these images


def test_the_thresholds_of_a_fold_do_not_depend_on_its_own_images():
    maps, truths = simulated(30, seed=2)
    folds = np.arange(30) % 3
    profiles = [thresholds.profile(one, truth, GRID) for one, truth in zip(maps, truths, strict=True)]
    before = thresholds.fit(profiles, folds, GRID)
    empty = np.zeros((32, 32), np.uint8)
    spoiled = [thresholds.profile(empty, truths[i], GRID) if folds[i] == 1 else profiles[i] for i in range(30)]
    after = thresholds.fit(spoiled, folds, GRID)
    assert after.by_fold[1] == before.by_fold[1]
    assert after.naive != before.naive


def test_the_naive_score_is_the_best_on_all_images_and_never_below_the_nested_one():
    maps, truths = simulated(40, seed=3)
    folds = np.arange(40) % 4
    profiles = [thresholds.profile(one, truth, GRID) for one, truth in zip(maps, truths, strict=True)]
    fitted = thresholds.fit(profiles, folds, GRID)
    nested = [brute_force([maps[i]], [truths[i]], fitted.by_fold[int(folds[i])]) for i in range(40)]
    assert fitted.naive == pytest.approx(brute_force(maps, truths, fitted.final))
    assert fitted.naive >= np.mean(nested) - 1e-12
    by_hand = brute_force(
        [maps[i] for i in range(40) if folds[i] == 2], [truths[i] for i in range(40) if folds[i] == 2], fitted.final
    )
    assert fitted.naive_by_fold[2] == pytest.approx(by_hand)


def test_one_fold_alone_cannot_be_nested():
    maps, truths = simulated(4, seed=4)
    profiles = [thresholds.profile(one, truth, GRID) for one, truth in zip(maps, truths, strict=True)]
    with pytest.raises(ValueError, match="two folds"):
        thresholds.fit(profiles, np.zeros(4, dtype=int), GRID)


def test_the_surface_holds_every_triplets_score_on_all_images():
    maps, truths = simulated(40, seed=3)
    profiles = [thresholds.profile(one, truth, GRID) for one, truth in zip(maps, truths, strict=True)]
    fitted = thresholds.fit(profiles, np.arange(40) % 2, GRID)
    table = evaluation.threshold_surface(fitted, GRID)
    # 2 tops x 3 areas x 3 bottoms, less top 0.5 under bottom 0.6 with each area.
    assert len(table) == 15
    for row in table.to_dict("records"):
        triplet = Triplet(row["top"], row["min_area"], row["bottom"], GRID.min_component)
        assert row["siim_dice"] == pytest.approx(brute_force(maps, truths, triplet))
