"""Stage 04: fit the post-processing out of fold, score it honestly, and write the submission.

Reads   output/runs/<run>/predictions.csv and maps (stage 03), labels.csv, the folds, the sample submission
Writes  output/submissions/<name>/postprocess.json   the thresholds and how they were found
        output/submissions/<name>/cv.csv             every score per fold and overall, beside predicting nothing
        output/submissions/<name>/oof.csv            each training image's out-of-fold mask and Dice
        output/submissions/<name>/submission.csv     the sample's ids in its order (only where there are test images)

Thresholds that score fold k are fitted on the other folds; those for the test images on all of them. Every
submission row is decoded again and compared with its mask. Nothing is uploaded.

    python 04_submit.py --run ica_resunet
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from pneumothorax import artifacts, evaluation, labels, png, postprocess, records, stage, submission, thresholds
from pneumothorax.errors import BadInput
from pneumothorax.evaluation import Item


def parse_args(argv=None):
    parser = stage.parser(__doc__)
    flag = parser.add_argument
    flag("--run", default="ica_resunet", help="name of the run (default: %(default)s)")
    flag("--name", help="name of the submission (default: the run's)")
    flag("--sample-submission", type=Path, metavar="CSV", help="another id order than the one stage 00 found")
    flag("--min-component", type=float, default=100, metavar="PX",
         help="drop parts of a mask below this, in pixels of 1024 x 1024 (default: %(default)s)")  # fmt: skip
    args = parser.parse_args(argv)
    args.name = args.name or args.run
    stage.check_name(parser, "--run", args.run)
    stage.check_name(parser, "--name", args.name)
    if args.min_component < 0:
        parser.error("--min-component must be 0 or more")
    return args


def main(argv=None):
    args = parse_args(argv)
    grid = thresholds.Grid(min_component=args.min_component)
    with stage.lock(args.output, f"04_submit-{args.name}"):
        folded = records.require(args.output, artifacts.FOLDED)
        records.require(args.output, artifacts.predicted(args.run))
        settings = {"run": args.run, "min_component": args.min_component}
        inputs = records.hashes(args.output, [artifacts.predictions(args.run).path, artifacts.FOLDS.path])
        sample_path = args.sample_submission or args.output / artifacts.SAMPLE_SUBMISSION.path
        if args.sample_submission:
            inputs["sample submission"] = records.sha256(sample_path)
        record = artifacts.submitted(args.name)
        if not args.overwrite and records.is_current(args.output, record, settings=settings, inputs=inputs):
            print(f"{args.output / record.path} is up to date")
            report(args, artifacts.read_table(args.output, artifacts.cross_validation(args.name)))
            return

        manifest = artifacts.read_table(args.output, artifacts.MANIFEST)
        predictions = artifacts.read_table(args.output, artifacts.predictions(args.run))
        items = {split: build_items(args, manifest, predictions, split) for split in (artifacts.OOF, artifacts.TEST)}
        fold = predictions.loc[predictions["split"] == artifacts.OOF, "fold"].to_numpy().astype(int)
        if len(set(fold)) < 2:
            raise BadInput(
                f"run {args.run} has out-of-fold maps of fewer than two folds: python 03_predict.py --run {args.run}"
            )

        oof = items[artifacts.OOF]
        profiles = evaluation.in_workers(
            evaluation.profile, ((item, grid) for item in oof), len(oof), workers=args.workers, title="thresholds"
        )
        fitted = thresholds.fit(profiles, fold, grid)
        calls = ((item, fitted.by_fold[number]) for item, number in zip(oof, fold, strict=True))
        images = pd.DataFrame(
            evaluation.in_workers(evaluation.compare, calls, len(oof), workers=args.workers, title="scores")
        )
        images["fold"] = fold
        images["p_positive"] = predictions.loc[predictions["split"] == artifacts.OOF, "p_max"].to_numpy()
        table = evaluation.cross_validation(images, fitted)

        outputs = [artifacts.out_of_fold(args.name), artifacts.cross_validation(args.name)]
        artifacts.write_table(args.output, outputs[0], images)
        artifacts.write_table(args.output, outputs[1], table)
        paths = [output.path for output in outputs]
        if items[artifacts.TEST]:
            paths.append(
                write_submission(args, sample_path, items[artifacts.TEST], fitted, (images["true_px"] > 0).mean())
            )
        facts = {
            "final": vars(fitted.final),
            "by_fold": {str(number): vars(triplet) for number, triplet in fitted.by_fold.items()},
            "nested_siim_dice": float(images["dice"].mean()),
            "naive_siim_dice": fitted.naive,
            "grid": {name: list(values) for name, values in vars(grid).items() if name != "min_component"},
            "folds_hash": folded["outputs"][artifacts.FOLDS.path],
        }
        records.write(args.output, record, settings=settings, inputs=inputs, outputs=paths, **facts)
    report(args, table)


def build_items(args: argparse.Namespace, manifest: pd.DataFrame, predictions: pd.DataFrame, split: str) -> list[Item]:
    """One item per map of the split, in the table's order; label rows for training images only."""
    shape_of = {row.image_id: (row.height, row.width) for row in manifest.itertuples()}
    rows_of = artifacts.read_table(args.output, artifacts.LABELS).groupby("image_id")["rle"].agg(tuple).to_dict()
    chosen = predictions[predictions["split"] == split]
    if split == artifacts.TEST:
        rows_of = {}
    return [
        Item(
            row.image_id,
            artifacts.probability_map(args.output, args.run, split, row.image_id),
            shape_of[row.image_id],
            rows_of.get(row.image_id, ()),
        )
        for row in chosen.itertuples()
    ]


def write_submission(args, sample_path: Path, items: list[Item], fitted: thresholds.Fitted, share: float) -> str:
    """submission.csv, checked; returns its path below the output folder."""
    sample = labels.read_sample(sample_path)
    calls = ((item, fitted.final) for item in items)
    results = evaluation.in_workers(evaluation.compare, calls, len(items), workers=args.workers, title="submission")
    rows = {result["image_id"]: result["rle"] for result in results}
    path = artifacts.submission(args.output, args.name)
    submission.write(path, sample, rows)
    item_of = {item.image_id: item for item in items}

    def mask_of(image_id: str) -> np.ndarray:
        item = item_of[image_id]
        return postprocess.mask(png.read(item.map_path), fitted.final, item.shape)

    submission.check(path, sample, {item.image_id: item.shape for item in items}, mask_of)
    print(*submission.warnings(rows, share), sep="\n", end="")
    return path.relative_to(args.output).as_posix()


def report(args: argparse.Namespace, table: pd.DataFrame) -> None:
    """The numbers to check and what to do next."""
    by_row = table.set_index("row")
    both, nothing = by_row.loc["all"], by_row.loc["nothing predicted"]
    print(f"SIIM Dice {both['siim_dice']:.4f} out of fold; predicting nothing scores {nothing['siim_dice']:.4f}")
    print(f"positives-only Dice {both['positive_dice']:.4f} on {both['positives']:.0f} of {both['images']:.0f} images")
    optimism = both["naive_siim_dice"] - both["siim_dice"]
    print(
        f"thresholds fitted on the scored images themselves would claim {both['naive_siim_dice']:.4f} ({optimism:+.4f})"
    )
    print(f"final thresholds: top {both['top']:g}, minimum area {both['min_area']:g}, bottom {both['bottom']:g}")
    folder = artifacts.submission(args.output, args.name).parent
    print(f"wrote {folder}")
    path = artifacts.submission(args.output, args.name)
    if path.exists():
        competition = "siim-acr-pneumothorax-segmentation"
        print(f"to hand in: kaggle competitions submit -c {competition} -f {path} -m {args.name}")
    print(f"next: python 05_report.py --output {args.output}")


if __name__ == "__main__":
    stage.run(main)
