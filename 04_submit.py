"""Stage 04: fit the post-processing out of fold, score it honestly, and write the submission.

Reads   output/runs/<run>/predictions.csv and maps (stage 03), labels.csv, the folds, the sample submission
Writes  output/submissions/<name>/postprocess.json   the thresholds and how they were found
        output/submissions/<name>/cv.csv             every score per fold and overall, beside predicting nothing
        output/submissions/<name>/oof.csv            each training image's out-of-fold mask and Dice
        output/submissions/<name>/surface.csv        SIIM Dice of every triplet of thresholds tried
        output/submissions/<name>/submission.csv     the sample's ids in its order (only where there are test images)

Thresholds that score fold k are fitted on the other folds; those for the test images on all of them. Every
submission row is decoded again and compared with its mask. Nothing is uploaded. With --scheduler the work on
the images is done by a Dask cluster whose workers see the same output folder (README, "A cluster with shared storage").

    python 04_submit.py --run ica_resunet

Two flags only read, and say what they found on the terminal; no run is needed, nothing is locked or written.

    python 04_submit.py --check submission.csv          # anybody's, against the sample, the images and the labels
    python 04_submit.py --diff old.csv new.csv          # what changed between two: images, Dice, area

--check ends with exit code 3 and every line that is wrong: ids, header, run lengths that are not legal, absolute or
1-based starts, masks of another image size, masks transposed (row-major text) or upside down. What is legal and odd
(no mask at all, another share of positives) is a warning. Transposition is judged on 20 masks or more, size on each
mask of 8 runs or more. What cannot be known: a mask of one run may have an absolute start; starts that are one too
large show only in masks that touch the lower edge; left and right look alike.
"""

import argparse
from pathlib import Path

import pandas as pd

from pneumothorax import (
    artifacts,
    evaluation,
    labels,
    lineage,
    records,
    stage,
    submission,
    submission_check,
    submission_diff,
    thresholds,
)
from pneumothorax.engine import Engine, in_order
from pneumothorax.errors import BadInput
from pneumothorax.thresholds import Fitted, Grid


def parse_args(argv=None):
    parser = stage.parser(__doc__)
    flag = parser.add_argument
    flag("--run", help="name of the run (default: the submission's, else ica_resunet)")
    flag("--name", help="name of the submission (default: the run's)")
    flag("--sample-submission", type=Path, metavar="CSV", help="another id order than the one stage 00 found")
    flag("--min-component", type=stage.count, default=100, metavar="PX",
         help="drop parts of a mask below this, in pixels of 1024 x 1024 (default: %(default)s)")  # fmt: skip
    reading = parser.add_mutually_exclusive_group()
    reading.add_argument("--check", type=Path, metavar="CSV", help="only check a submission that anybody made")
    reading.add_argument("--diff", type=Path, nargs=2, metavar="CSV", help="only compare two submissions")
    stage.add_scheduler_flag(parser)
    args = stage.parse(parser, argv)
    args.run = args.run or args.name or "ica_resunet"
    args.name = args.name or args.run
    stage.check_name(parser, "--run", args.run)
    stage.check_name(parser, "--name", args.name)
    return args


def main(argv=None):
    args = parse_args(argv)
    if args.check:
        return submission_check.run(args.output, args.check, args.sample_submission)
    if args.diff:
        return submission_diff.run(args.output, *args.diff)
    record = artifacts.submitted(args.name)
    with (
        stage.lock(args.output, f"04_submit-{args.name}") as holder,
        stage.lock(args.output, f"03_predict-{args.run}"),
    ):
        grid = Grid(min_component=args.min_component)
        settings = {"run": args.run, "grid": {name: jsonable(values) for name, values in vars(grid).items()}}
        inputs = lineage.submit_inputs(args.output, args.run)
        if args.sample_submission:
            labels.read_sample(args.sample_submission)
            inputs["given sample submission"] = records.sha256(args.sample_submission)
        if not args.overwrite and records.is_current(args.output, record, settings=settings, inputs=inputs):
            print(f"{args.output / record.path} is up to date")
        else:
            workers = Engine(args.workers, args.scheduler, shared=holder)
            make(args, grid, settings=settings, inputs=inputs, engine=workers)
    report(args, artifacts.read_table(args.output, artifacts.cross_validation(args.name)))


def jsonable(values: float | tuple[float, ...]) -> float | list[float]:
    """As it is read back from a record."""
    return list(values) if isinstance(values, tuple) else values


def make(args: argparse.Namespace, grid: Grid, *, settings: dict, inputs: dict[str, str], engine: Engine) -> None:
    """Fit, score, write the tables and the submission, and seal them."""
    artifacts.submission(args.output, args.name).unlink(missing_ok=True)  # an earlier one is out of date
    predictions = artifacts.read_table(args.output, artifacts.predictions(args.run))
    predictions = predictions[predictions["split"] == artifacts.OOF]
    if predictions["fold"].nunique() < 2:
        again = f"python 03_predict.py --run {args.run}"
        raise BadInput(f"run {args.run} has out-of-fold maps of fewer than two folds: nothing can be nested: {again}")
    tested = evaluation.items(args.output, args.run, artifacts.TEST)
    if tested:
        submission.check_ids(read_sample(args), [item.image_id for item in tested])
    oof = evaluation.items(args.output, args.run, artifacts.OOF)
    fitted, images = evaluation.evaluate(oof, predictions, grid, engine=engine)

    tables = {
        artifacts.out_of_fold(args.name): images,
        artifacts.cross_validation(args.name): evaluation.cross_validation(images, fitted),
        artifacts.threshold_surface(args.name): evaluation.threshold_surface(fitted, grid),
    }
    for table, frame in tables.items():
        artifacts.write_table(args.output, table, frame)
    outputs = [table.path for table in tables]
    if tested:
        share = float((images["true_px"] > 0).mean())
        outputs.append(write_submission(args, tested, fitted, engine=engine, share=share))
    facts = {
        "final": vars(fitted.final),
        "by_fold": {str(number): vars(triplet) for number, triplet in fitted.by_fold.items()},
        "nested_siim_dice": float(images["dice"].mean()),
        "naive_siim_dice": fitted.naive,
    }
    records.write(
        args.output, artifacts.submitted(args.name), settings=settings, inputs=inputs, outputs=outputs, **facts
    )


def read_sample(args: argparse.Namespace) -> labels.Sample:
    return labels.read_sample(args.sample_submission or args.output / artifacts.SAMPLE_SUBMISSION)


def write_submission(
    args: argparse.Namespace, items: list[evaluation.Item], fitted: Fitted, *, engine: Engine, share: float
) -> str:
    """submission.csv; returns its path below the output folder."""
    calls = [(item, fitted.final) for item in items]
    results = in_order(evaluation.compare, calls, engine, per_task=evaluation.IMAGES_PER_TASK, title="submission")
    rows = {result["image_id"]: result["rle"] for result in results}
    path = artifacts.submission(args.output, args.name)
    submission.write(path, read_sample(args), rows)
    for warning in submission.warnings(rows, share):
        print(warning)
    return path.relative_to(args.output).as_posix()


def report(args: argparse.Namespace, table: pd.DataFrame) -> None:
    """The numbers to check and what to do next."""
    by_row = table.set_index("row")
    both, nothing = by_row.loc["all"], by_row.loc["nothing predicted"]
    print(f"SIIM Dice {both['siim_dice']:.4f} out of fold; predicting nothing scores {nothing['siim_dice']:.4f}")
    print(f"positives-only Dice {both['positive_dice']:.4f} on {both['positives']:.0f} of {both['images']:.0f} images")
    optimism = both["naive_siim_dice"] - both["siim_dice"]
    print(f"thresholds fitted on the scored images would claim {both['naive_siim_dice']:.4f} ({optimism:+.4f})")
    final = by_row.loc["final thresholds"]
    print(f"final thresholds: top {final['top']:g}, minimum area {final['min_area']:g}, bottom {final['bottom']:g}")
    for edge in thresholds.on_the_edge(final["top"], final["min_area"], final["bottom"], Grid()):
        print(f"note: the best {edge} is the last one tried")
    path = artifacts.submission(args.output, args.name)
    print(f"wrote {path.parent}")
    if path.exists():
        competition = "siim-acr-pneumothorax-segmentation"
        print(f"to hand in: kaggle competitions submit -c {competition} -f {path} -m {args.name}")
    print(f"next: python 05_report.py --output {args.output}")


if __name__ == "__main__":
    stage.run(main)
