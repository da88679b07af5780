import numpy as np
import pytest

from pneumothorax.masks import calibration, postprocess, thresholds
from pneumothorax.masks.thresholds import Grid, Profile, Search

PROBABILITIES = np.array(thresholds.MIN_PROBABILITIES)


def lowest_worthwhile(p_positive, dice):
    worth = thresholds.is_worthwhile(PROBABILITIES, np.array(p_positive), np.array(dice))
    return PROBABILITIES[worth].min() if worth.any() else None


def test_a_mask_is_worth_more_than_none_from_one_in_one_plus_its_dice():
    """Dice 0.5: 2 of 3 images must be positive. Dice 1: one of two. Dice 0: no chance is enough."""
    assert lowest_worthwhile([0.2, 0.9], [0.5, 0.5]) == 0.68
    assert lowest_worthwhile([0.2, 0.9], [1.0, 1.0]) == 0.52
    assert lowest_worthwhile([0.2, 0.9], [0.0, 0.0]) is None
    assert lowest_worthwhile([0.7], [0.5]) == 0.68  # a single positive image has no slope
    assert lowest_worthwhile([0.7] * 3, [0.5] * 3) == 0.68  # nor have images of one probability
    assert lowest_worthwhile([], []) is None


def test_the_expected_dice_rises_with_the_probability_and_stays_a_dice():
    p_positive, dice = np.array([0.2, 0.4, 0.6, 0.8]), np.array([0.1, 0.3, 0.5, 0.7])
    p = np.array([0.0, 0.5, 1.0])
    expected = thresholds.expected_dice(p, p_positive, dice)
    assert expected == pytest.approx([0.0, 0.4, 0.9])  # dice = p - 0.1
    assert thresholds.expected_dice(np.array([2.0]), p_positive, dice) == [1.0]
    # A line that would fall is flat: the threshold has one place, whatever noise says.
    falling = thresholds.expected_dice(p, p_positive, dice[::-1])
    assert falling == pytest.approx([0.4, 0.4, 0.4])


def test_each_column_of_dice_has_a_line_alone():
    rng = np.random.default_rng(0)
    p_positive, dice = rng.random(20), rng.random((20, 3, 2))
    together = thresholds.is_worthwhile(PROBABILITIES, p_positive, dice)
    assert together.shape == (50, 3, 2)
    for row in range(3):
        for column in range(2):
            alone = thresholds.is_worthwhile(PROBABILITIES, p_positive, dice[:, row, column])
            assert (together[:, row, column] == alone).all()


def simulated(n, seed):
    """A search over n images, 30 % positive, of Dice 0.2 to 0.7; their scores and truths."""
    rng = np.random.default_rng(seed)
    positive = rng.random(n) < 0.3
    score = 1 / (1 + np.exp(-(2 * positive - 1 + rng.normal(size=n))))
    dice = np.where(positive, rng.uniform(0.2, 0.7, n), 0.0)
    profiles = [
        Profile(np.array([1e6]), np.full((1, 1, 1), one), float(not is_positive))
        for one, is_positive in zip(dice, positive, strict=True)
    ]
    return Search(profiles, thresholds.by_probability(Grid(bottoms=(0.5,)))), score, positive


def test_the_computed_threshold_loses_less_on_other_images_than_searched_ones(monkeypatch):
    unseen, unseen_score, _ = simulated(20_000, seed=999)
    found = []
    for seed in range(60):
        search, score, positive = simulated(330, seed)
        calibrated = calibration.fit(score, positive)
        scores = search.scores(np.ones(330, dtype=bool), calibrated(score))
        triplets = [scores.best().triplet, scores.choose().triplet]
        with monkeypatch.context() as patched:
            patched.setattr(thresholds.GridScores, "_is_lowest_worthwhile", lambda *_: True)
            triplets.append(scores.choose().triplet)
        for triplet in triplets:
            found.append(unseen.image_dice(triplet, calibrated(unseen_score)).mean())
    reachable = unseen.best(np.ones(20_000, dtype=bool), unseen_score).siim_dice
    lost_by_best, lost, lost_by_middle = reachable - np.reshape(found, (60, 3)).mean(axis=0)
    assert lost < 0.75 * lost_by_best
    assert lost < 0.85 * lost_by_middle


def test_a_network_without_worthwhile_masks_leaves_every_image_empty():
    profiles = [Profile(np.array([1e6]), np.zeros((1, 1, 1)), float(n % 2)) for n in range(10)]
    search = Search(profiles, thresholds.by_probability(Grid(bottoms=(0.5,))))
    chosen = search.scores(np.ones(10, dtype=bool), np.linspace(0, 0.99, 10)).choose()
    assert chosen == (postprocess.ALL_EMPTY, 0.5)
