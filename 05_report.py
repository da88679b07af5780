"""Stage 05: compare submissions in a report: tables, curves, figures, a gallery of all images.

Reads   output/submissions/<name>/ (stage 04), output/runs/<run>/ (stage 02), and the manifest,
        labels, folds and cache
Writes  output/report/index.html      the page; opens straight from the folder, works offline
        output/report/table.csv       every score per run and fold, and the all-empty baseline
        output/report/per_image.csv   every per-image score, one row per image and run
        output/report/test_table.csv, test_per_image.csv    the same of labelled test images
        output/report/summary.json    every number of the page
        output/report/figures/        the page's figures
        output/report/gallery/, gallery.js    thumbnails, scores and outlines of every image

Only submissions with the same folds, images and labels are compared; others are refused.

    python 05_report.py
    python 05_report.py --names ica_resunet,unet
"""

import argparse
from pathlib import Path

import pandas as pd

from pneumothorax.data import cache
from pneumothorax.errors import BadInput
from pneumothorax.pipeline import artifacts, atomic, lineage, locks, records, stage
from pneumothorax.report import gallery, illustrations, page, runs, statistics, summary

DEFAULT_SEED = 42


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = stage.parser(__doc__)
    parser.add_argument(
        "--names",
        metavar="NAME,...",
        help="submissions to compare, separated by commas (default: all)",
    )
    args = parser.parse_args(argv)
    args.names = list(dict.fromkeys(args.names.split(","))) if args.names else []
    for name in args.names:
        stage.check_name(parser, "--names", name)
    args.seed = DEFAULT_SEED if args.seed is None else args.seed
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with locks.lock(args.output, "05_report", alone=args.no_lock):
        names = args.names or found_names(args)
        manifest, compared = read(args, names)
        settings = {"names": names, "seed": args.seed}
        inputs = records.hashes(args.output, runs.sources(compared))
        up_to_date = not args.overwrite and records.is_current(
            args.output, artifacts.REPORTED, settings=settings, inputs=inputs
        )
        if not up_to_date:
            outputs = write(args, compared, manifest)
            records.write(
                args.output, artifacts.REPORTED, settings=settings, inputs=inputs, outputs=outputs
            )
    print_results(args, compared, up_to_date=up_to_date)


def found_names(args: argparse.Namespace) -> list[str]:
    names = artifacts.submission_names(args.output)
    if not names:
        raise BadInput(f"{args.output / 'submissions'} is empty: run 04_submit.py first")
    return names


def read(args: argparse.Namespace, names: list[str]) -> tuple[pd.DataFrame, list[runs.Run]]:
    """The manifest and the submissions; each must be of the current folds, images and labels."""
    for name in names:
        lineage.submitted(args.output, name)
    manifest = artifacts.read_table(args.output, artifacts.MANIFEST)
    folds = artifacts.read_table(args.output, artifacts.FOLDS)
    compared = [runs.load(args.output, name, manifest, folds) for name in names]
    runs.check_tested(compared)
    return manifest, compared


def write(args: argparse.Namespace, compared: list[runs.Run], manifest: pd.DataFrame) -> list[str]:
    """Everything below report/; returns the files' paths below the output folder."""
    output = args.output
    found = statistics.compute(compared, seed=args.seed)
    about = statistics.evaluated(compared, lineage.prepared(output), lineage.folded(output))
    cache_size = cache.size(output)
    images = {run.name: run.all_images() for run in compared}
    scored = pd.concat(images.values())["image_id"]
    used = manifest[(manifest["split"] == artifacts.TRAIN) | manifest["image_id"].isin(scored)]
    cache.verify(output, cache_size, used, workers=args.workers)

    tables = write_tables(output, compared)
    numbers = summary.summary(compared, found, about, seed=args.seed)
    atomic.write_json(output / artifacts.REPORT_SUMMARY, numbers)

    folder = (output / artifacts.REPORT_PAGE).parent
    figures = illustrations.draw(output, compared, found, manifest, cache_size=cache_size)
    shown = gallery.write(
        output, folder, images, manifest, cache_size=cache_size, workers=args.workers
    )
    html = page.render(about, compared, found, figures)
    atomic.write_text(output / artifacts.REPORT_PAGE, html)

    drawn = [
        path
        for group in figures.values()
        for figure in group
        for path in (figure.light, figure.dark)
        if path
    ]
    pictures = [f"{folder.name}/{path}" for path in (*drawn, *shown)]
    return [*tables, artifacts.REPORT_SUMMARY, artifacts.REPORT_PAGE, *pictures]


def write_tables(output: Path, compared: list[runs.Run]) -> list[str]:
    """Returns the tables' paths; those of an earlier report's test images are removed."""
    tables = summary.tables(compared)
    for table in (artifacts.REPORT_TEST_TABLE, artifacts.TEST_PER_IMAGE):
        if table not in tables:
            (output / table.path).unlink(missing_ok=True)
    for table, frame in tables.items():
        artifacts.write_table(output, table, frame)
    return [table.path for table in tables]


def print_results(args: argparse.Namespace, compared: list[runs.Run], *, up_to_date: bool) -> None:
    print(summary.terminal_table(compared))
    for caution in statistics.cautions(compared):
        print(caution)
    written = args.output / artifacts.REPORT_TABLE.path
    print(f"up to date: {written}" if up_to_date else f"wrote {written}")
    for run in compared:
        path = args.output / artifacts.Submission(run.name).csv
        if path.exists():
            print(f"submission: {path}")
    print(f"report: {args.output / artifacts.REPORT_PAGE}")


if __name__ == "__main__":
    stage.run(main)
