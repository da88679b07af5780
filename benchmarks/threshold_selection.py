"""How to choose thresholds: rules compared on the out-of-fold maps of a finished output.

It prints the highest mean Dice of the positive images, with a mask for every image. For each
rule it prints the nested SIIM Dice, the naive one (all images, thresholds fitted on them) and
their difference, the optimism; the mean Dice of the positive images; and the share of fits in
which every image stays empty. First with the folds of training, then as mean and standard
deviation over regroupings: patients are dealt to as many new groups, and thresholds are
nested in those. The rules are the highest score, and the middle of the good ones in parts
of the grid. Where the networks have a classification head, all of this with three scores of
the image: head, map, and both, which is in use.

    python -m benchmarks.threshold_selection --run ica_resunet
    python -m benchmarks.threshold_selection --run ica_resunet --output output --groupings 100
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks import timing
from pneumothorax.masks import calibration, evaluation, predicted, thresholds
from pneumothorax.masks.nested import Basis
from pneumothorax.masks.postprocess import Triplet
from pneumothorax.masks.predicted import Predicted
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
    grid = Grid(
        min_components=thresholds.MIN_COMPONENTS, min_probabilities=thresholds.MIN_PROBABILITIES
    )
    search = evaluation.search(oof.images, [(1.0,)], grid, Engine(args.workers))[(1.0,)]
    empty = 1 - oof.positive.mean()
    print(f"{len(oof.images)} images, {oof.positive.sum()} positive; all-empty {empty:.4f}")
    reachable = search.dice[oof.positive == 1].mean(axis=0).max()
    print(f"positives' Dice, if every image had a mask: {reachable:.4f}")
    patients = artifacts.training_rows(args.output).set_index("image_id")["patient_id"]
    of_image = patients.loc[[image.image_id for image in oof.images]].to_numpy()
    groupings = [
        regrouped(of_image, len(set(oof.fold.tolist())), seed) for seed in range(args.groupings)
    ]
    for name, score in image_scores(args.output, args.run, oof).items():
        of_folds = [auc(score, oof.positive, oof.fold == fold) for fold in set(oof.fold.tolist())]
        everyone = auc(score, oof.positive, np.ones(len(score), dtype=bool))
        print(f"\nscore of the image: {name}")
        print(f"AUC {np.mean(of_folds):.4f} (mean of the folds), {everyone:.4f} (all images)")
        print_rules(search, score, oof.positive, "the folds of training", [oof.fold])
        print_rules(search, score, oof.positive, f"{args.groupings} regroupings", groupings)


def image_scores(output: Path, run: str, oof: Predicted) -> dict[str, np.ndarray]:
    """(N,) by name: the score in use first; where there is a head, also its parts alone."""
    table = artifacts.read_table(output, artifacts.Run(run).predictions)
    table = table[table["split"] == artifacts.OOF].set_index("image_id")
    table = table.loc[[image.image_id for image in oof.images]]
    found = {"in use": oof.scores[:, 0]}
    if table["p_classification"].notna().all():
        found["classification head"] = table["p_classification"].to_numpy(dtype=float)
        found["highest of the map"] = table["p_max"].to_numpy(dtype=float)
    return found


def auc(score: np.ndarray, positive: np.ndarray, images: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(positive[images], score[images]))


def rules(grid: Grid) -> dict[str, Rule]:
    """By name: the thresholds of the highest score, then the middle of parts of the grid."""
    triplet = Grid(grid.tops, grid.min_areas, grid.bottoms, grid.min_components)
    parts = {
        "one threshold": replace(triplet, tops=grid.tops[-1:], min_areas=grid.min_areas[:1]),
        "image threshold": thresholds.by_probability(triplet),
        "triplet": triplet,
        "triplet and image threshold": grid,
    }
    return {"highest score": lambda scores: scores.best().triplet} | {
        name: partial(chosen, part=part) for name, part in parts.items()
    }


def chosen(scores: GridScores, part: Grid) -> Triplet:
    return scores.choose(part).triplet


def regrouped(patients: np.ndarray, groups: int, seed: int) -> np.ndarray:
    """(N,) patients -> (N,) groups of about equally many patients; an unknown one is alone."""
    alone = [f"image {number}" for number in range(len(patients))]
    known, place = np.unique(np.where(patients == "", alone, patients), return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(known))
    return (order % groups)[place]


def print_rules(
    search: Search, score: np.ndarray, positive: np.ndarray, title: str, groupings: list[np.ndarray]
) -> None:
    """A line per rule."""
    rows = []
    for groups in groupings:
        held_out = [None, *set(groups.tolist())]
        bases = {group: basis(search, score, positive, groups != group) for group in held_out}
        scores = {group: one.scores(groups != group) for group, one in bases.items()}
        for name, rule in rules(search.grid).items():
            triplets = {group: rule(of_group) for group, of_group in scores.items()}
            dice = np.zeros(len(groups))
            for group, one in bases.items():
                scored = groups == group
                dice[scored] = one.image_dice(triplets[group])[scored]
            naive = bases[None].image_dice(triplets[None]).mean()
            empty = np.mean([one.is_all_empty for one in triplets.values()])
            of_positives = dice[positive].mean()
            rows.append((name, dice.mean(), naive, naive - dice.mean(), of_positives, empty))
    table = pd.DataFrame(
        rows, columns=["rule", "nested", "naive", "optimism", "positives", "all empty"]
    )
    by_rule = table.groupby("rule", sort=False)
    print(f"\n{title}\n| rule | nested | worst | naive | optimism | positives | all empty |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, rows_of_rule in by_rule:
        mean = rows_of_rule.mean(numeric_only=True)
        several = len(rows_of_rule) > 1
        spread = f" ± {rows_of_rule['nested'].std():.4f}" if several else ""
        print(
            f"| {name} | {mean['nested']:.4f}{spread} | {rows_of_rule['nested'].min():.4f} "
            f"| {mean['naive']:.4f} | {mean['optimism']:+.4f} | {mean['positives']:.4f} "
            f"| {mean['all empty']:.0%} |"
        )


def basis(search: Search, score: np.ndarray, positive: np.ndarray, seen: np.ndarray) -> Basis:
    """The search with image-level probabilities that are calibrated on the (N,) images seen."""
    return Basis(search, calibration.fit(score[seen], positive[seen])(score))


if __name__ == "__main__":
    main()
