"""Stage 05: one or more runs compared: tables with intervals, curves, figures, and every image to look at.

Reads   output/submissions/<name>/ (stage 04), output/runs/<run>/ (02), the manifest, labels, folds and cache
Writes  output/report/index.html      the page; opens from the folder, needs no network
        output/report/table.csv       every score per run and fold, beside the all-empty baseline
        output/report/per_image.csv   one row per image and run with every per-image score
        output/report/summary.json    every number of the page
        output/report/figures/        the page's figures
        output/report/gallery/, gallery.js    thumbnails, scores and outlines of every image

Runs are compared on the same folds, images and labels only; others are refused.

    python 05_report.py
    python 05_report.py --names ica_resunet,unet
"""

import pandas as pd

from pneumothorax.data import cache
from pneumothorax.errors import BadInput
from pneumothorax.pipeline import artifacts, atomic, lineage, locks, records, stage
from pneumothorax.report import contents, gallery, illustrations, page

DEFAULT_SEED = 42


def parse_args(argv=None):
    parser = stage.parser(__doc__)
    parser.add_argument(
        "--names", help="submissions to compare, with commas between (default: all there are)"
    )
    args = parser.parse_args(argv)
    for name in args.names.split(",") if args.names else ():
        stage.check_name(parser, "--names", name)
    args.seed = DEFAULT_SEED if args.seed is None else args.seed
    return args


def main(argv=None):
    args = parse_args(argv)
    with locks.lock(args.output, "05_report"):
        names = list(dict.fromkeys(args.names.split(","))) if args.names else found_names(args)
        for name in names:
            lineage.submitted(
                args.output, name
            )  # made on today's folds, images and labels: comparable
        manifest = artifacts.read_table(args.output, artifacts.MANIFEST)
        folds = artifacts.read_table(args.output, artifacts.FOLDS)
        runs = [contents.load(args.output, name, manifest, folds) for name in names]
        settings = {"names": names, "seed": args.seed}
        inputs = records.hashes(args.output, contents.sources(runs))
        current = not args.overwrite and records.is_current(
            args.output, artifacts.REPORTED, settings=settings, inputs=inputs
        )
        if not current:
            outputs = write(args, runs, manifest)
            records.write(
                args.output, artifacts.REPORTED, settings=settings, inputs=inputs, outputs=outputs
            )

    print(contents.terminal_table(runs))
    for caution in dict.fromkeys(contents.caution(run) for run in runs):
        if caution:
            print(caution)
    print(f"{'up to date: ' if current else 'wrote '}{args.output / artifacts.REPORT_TABLE.path}")
    for name in names:
        path = args.output / artifacts.Submission(name).csv
        if path.exists():
            print(f"submission: {path}")
    print(f"report: {args.output / artifacts.REPORT_PAGE}")


def found_names(args) -> list[str]:
    names = artifacts.submission_names(args.output)
    if not names:
        raise BadInput(f"{args.output / 'submissions'} holds nothing: run 04_submit.py first")
    return names


def write(args, runs: list[contents.Run], manifest: pd.DataFrame) -> list[str]:
    """Everything below report/; returns the files' paths below the output folder."""
    statistics = contents.statistics(runs, seed=args.seed)
    evaluated = contents.evaluated(runs, lineage.prepared(args.output), lineage.folded(args.output))
    cache_size = cache.size(args.output, 32)
    cache.verify(
        args.output,
        cache_size,
        manifest[manifest["split"] == artifacts.TRAIN],
        workers=args.workers,
    )

    tables = {
        artifacts.REPORT_TABLE: contents.combined_table(runs),
        artifacts.PER_IMAGE: contents.per_image_table(runs),
    }
    for table, frame in tables.items():
        artifacts.write_table(args.output, table, frame)
    summary = contents.summary(runs, statistics, evaluated, seed=args.seed)
    atomic.write_json(args.output / artifacts.REPORT_SUMMARY, summary)

    folder = (args.output / artifacts.REPORT_PAGE).parent
    figures = illustrations.draw(args.output, runs, statistics, manifest, cache_size=cache_size)
    images = {run.name: run.images for run in runs}
    shown = gallery.write(
        args.output, folder, images, manifest, cache_size=cache_size, workers=args.workers
    )
    content = contents.content(runs, statistics, evaluated, figures)
    atomic.write_text(args.output / artifacts.REPORT_PAGE, page.render(content))

    pictures = [
        path
        for group in figures.values()
        for figure in group
        for path in (figure.light, figure.dark)
        if path
    ]
    written = [f"{folder.name}/{path}" for path in (*pictures, *shown)]
    return [
        *(table.path for table in tables),
        artifacts.REPORT_SUMMARY,
        artifacts.REPORT_PAGE,
        *written,
    ]


if __name__ == "__main__":
    stage.run(main)
