"""The settings of a submission: from flags, from an earlier submission, or by default."""

import argparse
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from pneumothorax.masks import blending, thresholds
from pneumothorax.masks.blending import Weights
from pneumothorax.masks.thresholds import Grid
from pneumothorax.pipeline import artifacts, lineage, stage

DEFAULT_RUN = "ica_resunet"
VERSION = 2  # of what the same settings lead to; raise it, and finished submissions are made again


@dataclass(frozen=True)
class Settings:
    """What a submission is made with.

    Args:
        runs: {run: weight}; all weights are None if they are to be fitted.
        min_component: sizes to try, in pixels of 1024 x 1024.
        fill_holes: also try filling holes.
        image_threshold: the image-level probability decides which images are empty, not an
            area; None: if every run has a classification head.
        sample_submission: None for the one that stage 00 found.
        every_run_has_a_head: a classification head, as the runs' predictions say (see
            `settled`).
    """

    runs: dict[str, float | None]
    seed: int = 42
    min_component: tuple[int, ...] = thresholds.MIN_COMPONENTS
    fill_holes: bool = False
    image_threshold: bool | None = None
    sample_submission: str | None = None
    every_run_has_a_head: bool = False

    @property
    def weights(self) -> Weights | None:
        """Of the runs, in their order; None to fit them."""
        if len(self.runs) == 1:
            return blending.alone(0, 1)
        given = tuple(weight for weight in self.runs.values() if weight is not None)
        return given or None

    @property
    def grid(self) -> Grid:
        """The thresholds and the cleaning to try."""
        cleaning = Grid(
            min_components=self.min_component,
            fill_holes=(False, True) if self.fill_holes else (False,),
        )
        asked = self.image_threshold
        by_probability = self.every_run_has_a_head if asked is None else asked
        return thresholds.by_probability(cleaning) if by_probability else cleaning

    def recorded(self) -> dict[str, Any]:
        """For the submission's record: values that JSON keeps unchanged."""
        grid = {name: list(values) for name, values in vars(self.grid).items()}
        plain = {"version": VERSION, "min_component": list(self.min_component), "grid": grid}
        return vars(self) | plain


def settled(chosen: Settings, output: Path) -> Settings:
    """The settings with what the runs' predictions say."""
    tables = (artifacts.read_table(output, artifacts.Run(run).predictions) for run in chosen.runs)
    every_run_has_a_head = all(table["p_classification"].notna().all() for table in tables)
    return replace(chosen, every_run_has_a_head=every_run_has_a_head)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of stage 04, without those that every stage has."""
    default_sizes = ",".join(map(str, thresholds.MIN_COMPONENTS))
    flag = parser.add_argument
    flag("--run", help=f"the run (default: the submission's name, else {DEFAULT_RUN})")
    flag(
        "--runs",
        type=blending.parse,
        metavar="A=W,B=W",
        help="runs to blend, with weights that sum to 1; A,B: weights are fitted out of fold",
    )
    flag("--name", help="the submission's name (default: the run's; required for a blend)")
    flag(
        "--sample-submission",
        type=Path,
        metavar="CSV",
        help="take the header, the ids and their order from this file (default: the sample "
        "submission that stage 00 found)",
    )
    flag(
        "--min-component",
        type=stage.areas,
        metavar="PX,PX",
        help="minimum sizes of connected components to try, in pixels of 1024 x 1024: smaller ones "
        f"are removed, 0 removes none (default: {default_sizes})",
    )
    flag(
        "--fill-holes",
        action="store_true",
        default=None,
        help="also try to fill the holes of masks",
    )
    flag(
        "--image-threshold",
        action=argparse.BooleanOptionalAction,
        help="images below a fitted probability are empty, instead of those with a small area "
        "above a top threshold (default: if every run has a classification head)",
    )


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Usage errors for flags that contradict each other, and for names that are not legal."""
    if args.run is not None and args.runs:
        parser.error("give --run or --runs, not both")
    if args.runs and len(args.runs) > 1 and not args.name:
        parser.error("a blend needs a --name")
    if args.name is not None:
        stage.check_name(parser, "--name", args.name)
    if args.run is not None:
        stage.check_name(parser, "--run", args.run)
    for run in args.runs or ():
        stage.check_name(parser, "--runs", run)


def from_flags(args: argparse.Namespace) -> Settings:
    """The settings that the flags ask for.

    If no run is given, flags that are not given are taken from the earlier submission
    `args.name`, if there is one. Raises BadInput if its record is damaged.
    """
    runs = args.runs if args.run is None else {args.run: None}
    earlier = lineage.settings_of(args.output, args.name) if args.name and not runs else {}
    values = {
        field.name: earlier[field.name]
        for field in fields(Settings)
        if earlier.get(field.name) is not None
    }
    for name in ("seed", "min_component", "fill_holes", "image_threshold"):
        if getattr(args, name) is not None:
            values[name] = getattr(args, name)
    if args.sample_submission is not None:
        values["sample_submission"] = str(args.sample_submission)
    if "min_component" in values:
        values["min_component"] = tuple(values["min_component"])
    values["runs"] = runs or values.get("runs") or {args.name or DEFAULT_RUN: None}
    return Settings(**values)
