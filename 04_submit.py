"""Stage 04: fit the post-processing out of fold, score it honestly, and write the submission.

Reads   output/runs/<run>/predictions.csv and maps (stage 03), labels.csv, the folds, the sample submission
Writes  output/submissions/<name>/postprocess.json   what was fitted, and how it scores
        output/submissions/<name>/cv.csv             every score per fold and overall, beside the all-empty baseline
        output/submissions/<name>/steps.csv          what each part of the post-processing adds
        output/submissions/<name>/oof.csv            each training image's out-of-fold mask, Dice and probability
        output/submissions/<name>/surface.csv        SIIM Dice of every triplet of thresholds tried
        output/submissions/<name>/submission.csv     the sample's ids in its order (only where there are test images)

Several runs are blended with given weights, or with weights fitted on their out-of-fold maps. Weights, thresholds and
the calibration of an image's probability that score fold k are fitted on the other folds; those for the test images on
all of them. Every submission row is decoded again and compared with its mask. Nothing is uploaded. With --scheduler the
work on the images is done by a Dask cluster whose workers see the same output folder (README, "A cluster ...").

    python 04_submit.py --run ica_resunet
    python 04_submit.py --runs ica_resunet=0.6,albunet=0.4 --name blend
    python 04_submit.py --runs ica_resunet,albunet --name blend --fill-holes --image-threshold

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
from contextlib import ExitStack
from pathlib import Path

from pneumothorax.data import labels
from pneumothorax.errors import BadInput
from pneumothorax.masks import blending, evaluation, predicted, thresholds
from pneumothorax.masks.evaluation import Evaluation
from pneumothorax.masks.postprocess import Triplet
from pneumothorax.masks.predicted import Predicted
from pneumothorax.masks.thresholds import Grid
from pneumothorax.pipeline import artifacts, lineage, locks, records, stage
from pneumothorax.pipeline.engine import Engine, in_order
from pneumothorax.scores import gain
from pneumothorax.submission import checking, comparing, writing

DEFAULT_SEED = 42


def parse_args(argv=None):
    parser = stage.parser(__doc__)
    flag = parser.add_argument
    flag("--run", help="name of the run (default: the submission's, else ica_resunet)")
    flag("--runs", type=blending.parse, metavar="A=W,B=W",
         help="blend runs with weights that sum to 1; A,B without weights: fitted out of fold")  # fmt: skip
    flag("--name", help="name of the submission (default: the run's; a blend needs one)")
    flag(
        "--sample-submission",
        type=Path,
        metavar="CSV",
        help="another id order than the one stage 00 found",
    )
    flag("--min-component", type=stage.areas, metavar="PX,PX",
         help="sizes to try below which parts of a mask are dropped, in pixels of 1024 x 1024 (default: "
              f"{','.join(map(str, thresholds.MIN_COMPONENTS))}; 0 drops none)")  # fmt: skip
    flag(
        "--fill-holes",
        action="store_true",
        default=None,
        help="try masks with their holes filled, too",
    )
    flag("--image-threshold", action="store_true", default=None,
         help="fit a fourth threshold: images of a lower probability, calibrated, are empty")  # fmt: skip
    reading = parser.add_mutually_exclusive_group()
    reading.add_argument(
        "--check", type=Path, metavar="CSV", help="only check a submission that anybody made"
    )
    reading.add_argument(
        "--diff", type=Path, nargs=2, metavar="CSV", help="only compare two submissions"
    )
    stage.add_scheduler_flag(parser)
    args = stage.parse(parser, argv)
    if args.run is not None and args.runs:
        parser.error("give --run or --runs")
    if args.runs and len(args.runs) > 1 and not args.name:
        parser.error("a blend needs a --name")
    if args.name is not None:
        stage.check_name(parser, "--name", args.name)
    flag_of_run = "--runs" if args.runs else "--run"
    settle(args)
    for run in args.runs:
        stage.check_name(parser, flag_of_run, run)
    return args


def settle(args: argparse.Namespace) -> None:
    """What is not given is as in an earlier submission of this name, where no run is given, or else the default."""
    earlier = (
        {}
        if args.run is not None or args.runs or not args.name
        else lineage.settings_of(args.output, args.name)
    )
    if not args.runs:
        args.runs = earlier.get("runs") or {
            args.run if args.run is not None else args.name or "ica_resunet": None
        }
    args.name = args.name if args.name is not None else next(iter(args.runs))
    defaults = {
        "seed": DEFAULT_SEED,
        "min_component": list(thresholds.MIN_COMPONENTS),
        "fill_holes": False,
    }
    defaults |= {"image_threshold": False, "sample_submission": None}
    for name, default in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, earlier.get(name, default))
    args.min_component = tuple(args.min_component)
    args.sample_submission = Path(args.sample_submission) if args.sample_submission else None


def main(argv=None):
    args = parse_args(argv)
    if args.check:
        return checking.run(args.output, args.check, args.sample_submission)
    if args.diff:
        return comparing.run(args.output, *args.diff)
    record = artifacts.Submission(args.name).record
    with ExitStack() as held:
        holder = held.enter_context(locks.lock(args.output, f"04_submit-{args.name}"))
        for run in args.runs:
            held.enter_context(locks.lock(args.output, f"03_predict-{run}"))
        grid = Grid(
            min_components=args.min_component,
            fill_holes=(False, True) if args.fill_holes else (False,),
            min_probabilities=thresholds.MIN_PROBABILITIES if args.image_threshold else (0.0,),
        )
        settings = {
            "runs": args.runs,
            "seed": args.seed,
            "min_component": list(args.min_component),
            "fill_holes": args.fill_holes,
            "image_threshold": args.image_threshold,
            "sample_submission": str(args.sample_submission) if args.sample_submission else None,
            "grid": {name: list(values) for name, values in vars(grid).items()},
        }
        inputs = lineage.submit_inputs(args.output, args.runs)
        if args.sample_submission:
            labels.read_sample(args.sample_submission)
            inputs["given sample submission"] = records.sha256(args.sample_submission)
        if not args.overwrite and records.is_current(
            args.output, record, settings=settings, inputs=inputs
        ):
            print(f"{args.output / record.path} is up to date")
        else:
            workers = Engine(args.workers, args.scheduler, shared=holder)
            make(args, grid, settings=settings, inputs=inputs, engine=workers)
    report(args, grid)


def make(
    args: argparse.Namespace, grid: Grid, *, settings: dict, inputs: dict[str, str], engine: Engine
) -> None:
    """Fit, score, write the tables and the submission, and seal them."""
    runs = list(args.runs)
    oof = predicted.read(args.output, runs, artifacts.OOF)
    if len(set(oof.fold.tolist())) < 2:
        again = " and ".join(f"python 03_predict.py --run {run}" for run in runs)
        raise BadInput(
            f"{' and '.join(runs)}: out-of-fold maps of fewer than two folds, nothing can be nested: {again}"
        )
    tested = predicted.read(args.output, runs, artifacts.TEST)
    if tested.images:
        writing.check_ids(read_sample(args), [image.image_id for image in tested.images])
    given = None if None in args.runs.values() else tuple(args.runs.values())
    if len(runs) == 1:
        given = blending.alone(0, 1)
    blend, singles = evaluation.evaluate(oof, grid, engine=engine, given=given)

    tables = {
        artifacts.Submission(args.name).out_of_fold: blend.images,
        artifacts.Submission(args.name).cross_validation: evaluation.cross_validation(
            blend.images, blend.fitted
        ),
        artifacts.Submission(args.name).threshold_surface: evaluation.threshold_surface(
            blend.fitted, grid
        ),
        artifacts.Submission(args.name).steps: evaluation.postprocessing_steps(blend.fitted),
    }
    (args.output / artifacts.Submission(args.name).csv).unlink(
        missing_ok=True
    )  # an earlier one is out of date
    for table, frame in tables.items():
        artifacts.write_table(args.output, table, frame)
    outputs = [table.path for table in tables]
    if tested.images:
        outputs.append(write_submission(args, tested, blend, engine=engine))
    facts = evaluation.facts(blend)
    if singles:
        manifest, folds = (
            artifacts.read_table(args.output, each)
            for each in (artifacts.MANIFEST, artifacts.FOLDS)
        )
        alone = {run: single.images for run, single in zip(runs, singles, strict=True)}
        facts["gain"] = gain.over_best_single(blend.images, alone, manifest, folds, seed=args.seed)
    records.write(
        args.output,
        artifacts.Submission(args.name).record,
        settings=settings,
        inputs=inputs,
        outputs=outputs,
        **facts,
    )


def read_sample(args: argparse.Namespace) -> labels.Sample:
    return labels.read_sample(args.sample_submission or args.output / artifacts.SAMPLE_SUBMISSION)


def write_submission(
    args: argparse.Namespace, tested: Predicted, blend: Evaluation, *, engine: Engine
) -> str:
    """submission.csv; returns its path below the output folder."""
    calls = list(zip(tested.images, blend.rules(tested.scores), strict=True))
    texts = in_order(
        evaluation.mask_row, calls, engine, per_task=evaluation.IMAGES_PER_TASK, title="submission"
    )
    rows = {image.image_id: text for image, text in zip(tested.images, texts, strict=True)}
    path = args.output / artifacts.Submission(args.name).csv
    writing.write(path, read_sample(args), rows)
    for warning in writing.warnings(rows, float((blend.images["true_px"] > 0).mean())):
        print(warning)
    return path.relative_to(args.output).as_posix()


def report(args: argparse.Namespace, grid: Grid) -> None:
    """The numbers to check and what to do next."""
    by_row = artifacts.read_table(
        args.output, artifacts.Submission(args.name).cross_validation
    ).set_index("row")
    record = records.read(args.output, artifacts.Submission(args.name).record)
    both, nothing = by_row.loc["all"], by_row.loc[artifacts.ALL_EMPTY]
    if len(args.runs) > 1:
        print(*blending.told(list(args.runs), record["weights"]), sep="\n")
    print(
        f"SIIM Dice {both['siim_dice']:.4f} out of fold; the all-empty baseline scores {nothing['siim_dice']:.4f}"
    )
    if "gain" in record:
        print(gain.sentence(record["gain"]))
    print(
        f"positives-only Dice {both['positive_dice']:.4f} on {both['positives']:.0f} of {both['images']:.0f} images"
    )
    optimism = both["naive_siim_dice"] - both["siim_dice"]
    print(
        f"thresholds fitted on the scored images would claim {both['naive_siim_dice']:.4f} ({optimism:+.4f})"
    )
    steps = artifacts.read_table(args.output, artifacts.Submission(args.name).steps)
    print(
        "step by step: "
        + ", ".join(f"{row.step} {row.siim_dice:.4f}" for row in steps.itertuples())
    )
    error = record["expected_calibration_error"]
    print(f"image level: AUC {both['auc']:.4f}, expected calibration error {error['calibrated']:.4f} "
          f"({error['uncalibrated']:.4f} before calibration)")  # fmt: skip
    final = Triplet(**record["final"])
    print(f"final thresholds: {final.described()}")
    for edge in thresholds.on_the_edge(final, grid):
        print(f"note: the best {edge} is the last one tried")
    path = args.output / artifacts.Submission(args.name).csv
    print(f"wrote {path.parent}")
    if path.exists():
        competition = "siim-acr-pneumothorax-segmentation"
        print(f"to hand in: kaggle competitions submit -c {competition} -f {path} -m {args.name}")
    print(f"next: python 05_report.py --output {args.output}")


if __name__ == "__main__":
    stage.run(main)
