"""How to choose thresholds: rules compared on the out-of-fold maps of a finished output.

For each rule it prints the nested SIIM Dice, the naive one (all images, thresholds fitted on
them) and their difference, the optimism; and the share of regroupings in which every image
ends up empty. First with the folds of training, then as mean and standard deviation over
regroupings: patients are dealt to as many new groups, and thresholds are nested in those.
The rule in use is `choose`.

    python -m benchmarks.threshold_selection --run ica_resunet
    python -m benchmarks.threshold_selection --run ica_resunet --output output --groupings 100
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks import timing
from pneumothorax.masks import evaluation, nested, predicted, thresholds
from pneumothorax.masks.postprocess import Triplet
from pneumothorax.masks.thresholds import Grid, GridScores, Search
from pneumothorax.pipeline import artifacts
from pneumothorax.pipeline.engine import Engine

Rule = Callable[[GridScores], Triplet]


def main() -> None:
    parser = timing.bare_parser(__doc__)
    flag = parser.add_argument
    flag("--output", type=Path, default=Path("output"), help="finished by stage 03")
    flag("--run", default="ica_resunet", help="(default: %(default)s)")
    flag("--groupings", type=int, default=30, help="of the patients (default: %(default)s)")
    flag("--workers", type=int, default=2, help="processes (default: %(default)s)")
    args = parser.parse_args()
    timing.machine("numpy", "opencv-python-headless")
    oof = predicted.read(args.output, [args.run], artifacts.OOF)
    grid = Grid(min_components=thresholds.MIN_COMPONENTS)
    search = evaluation.search(oof.images, [(1.0,)], grid, Engine(args.workers))[(1.0,)]
    empty = 1 - oof.positive.mean()
    print(f"{len(oof.images)} images, {oof.positive.sum()} positive; all-empty {empty:.4f}")
    patients = artifacts.training_rows(args.output).set_index("image_id")["patient_id"]
    of_image = patients.loc[[image.image_id for image in oof.images]].to_numpy()
    print_rules(search, "the folds of training", [oof.fold])
    groupings = [
        regrouped(of_image, len(set(oof.fold.tolist())), seed) for seed in range(args.groupings)
    ]
    print_rules(search, f"{args.groupings} regroupings", groupings)


def rules(grid: Grid) -> dict[str, Rule]:
    """By name; each gives the triplet to use."""
    steps = nested.grids_of_steps(grid)
    return {
        "best": lambda scores: scores.best().triplet,
        "choose": lambda scores: scores.choose().triplet,
        "choose, one threshold": lambda scores: scores.choose(steps["one threshold"]).triplet,
        "choose, triplet": lambda scores: scores.choose(steps["triplet"]).triplet,
    }


def regrouped(patients: np.ndarray, groups: int, seed: int) -> np.ndarray:
    """(N,) patients -> (N,) groups of about equally many patients; an unknown one is alone."""
    alone = [f"image {number}" for number in range(len(patients))]
    known, place = np.unique(np.where(patients == "", alone, patients), return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(known))
    return (order % groups)[place]


def print_rules(search: Search, title: str, groupings: list[np.ndarray]) -> None:
    """A line per rule."""
    everyone = np.ones(len(groupings[0]), dtype=bool)
    rows = []
    for groups in groupings:
        scores = {None: search.scores(everyone)}
        scores |= {group: search.scores(groups != group) for group in set(groups.tolist())}
        for name, rule in rules(search.grid).items():
            triplets = {group: rule(of_group) for group, of_group in scores.items()}
            dice = np.zeros(len(groups))
            for group in set(groups.tolist()):
                own = groups == group
                dice[own] = search.image_dice(triplets[group])[own]
            naive = search.image_dice(triplets[None]).mean()
            empty = np.mean([one.is_all_empty for one in triplets.values()])
            rows.append((name, dice.mean(), naive, naive - dice.mean(), empty))
    table = pd.DataFrame(rows, columns=["rule", "nested", "naive", "optimism", "all empty"])
    by_rule = table.groupby("rule", sort=False)
    print(f"\n{title}\n| rule | nested | worst | naive | optimism | all empty |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, rows_of_rule in by_rule:
        mean = rows_of_rule.mean(numeric_only=True)
        several = len(rows_of_rule) > 1
        spread = f" ± {rows_of_rule['nested'].std():.4f}" if several else ""
        print(
            f"| {name} | {mean['nested']:.4f}{spread} | {rows_of_rule['nested'].min():.4f} "
            f"| {mean['naive']:.4f} | {mean['optimism']:+.4f} | {mean['all empty']:.0%} |"
        )


if __name__ == "__main__":
    main()
