"""Stage 05: the cross-validation table of one or more runs, and a page with overlays.

Reads   output/submissions/<name>/{cv.csv,oof.csv,postprocess.json} (stage 04), the manifest, labels and cache
Writes  output/report/table.csv    every score per run and fold, beside predicting nothing
        output/report/index.html   the table, and truth and prediction drawn over the images
        output/report/figures/     the overlays

Runs are compared on the same folds, images and labels only; others are refused.

    python 05_report.py
    python 05_report.py --names ica_resunet,unet
"""

import shutil

from pneumothorax import artifacts, atomic, cache, lineage, records, report, stage
from pneumothorax.errors import BadInput


def parse_args(argv=None):
    parser = stage.parser(__doc__)
    parser.add_argument("--names", help="submissions to compare, with commas between (default: all there are)")
    parser.add_argument(
        "--overlays", type=stage.count, default=24, help="images to draw per run (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    for name in args.names.split(",") if args.names else ():
        stage.check_name(parser, "--names", name)
    return args


def main(argv=None):
    args = parse_args(argv)
    with stage.lock(args.output, "05_report"):
        names = list(dict.fromkeys(args.names.split(","))) if args.names else found_names(args)
        for name in names:
            lineage.submitted(args.output, name)  # made on today's folds, images and labels: comparable
        settings = {"names": names, "overlays": args.overlays}
        inputs = records.hashes(args.output, [artifacts.submitted(name).path for name in names])
        runs = [report.Run(name, *tables(args, name)) for name in names]
        current = not args.overwrite and records.is_current(
            args.output, artifacts.REPORTED, settings=settings, inputs=inputs
        )
        if not current:
            write(args, runs, settings, inputs)

    print(report.terminal_table(runs))
    for caution in dict.fromkeys(report.caution(run) for run in runs):
        if caution:
            print(caution)
    print(f"{'up to date: ' if current else 'wrote '}{args.output / artifacts.REPORT_TABLE.path}")
    for name in names:
        path = artifacts.submission(args.output, name)
        if path.exists():
            print(f"submission: {path}")
    print(f"report: {args.output / artifacts.REPORT_PAGE}")


def found_names(args) -> list[str]:
    names = artifacts.submission_names(args.output)
    if not names:
        raise BadInput(f"{args.output / 'submissions'} holds nothing: run 04_submit.py first")
    return names


def tables(args, name: str):
    return (
        artifacts.read_table(args.output, artifacts.cross_validation(name)),
        artifacts.read_table(args.output, artifacts.out_of_fold(name)),
    )


def write(args, runs: list[report.Run], settings: dict, inputs: dict) -> None:
    manifest = artifacts.read_table(args.output, artifacts.MANIFEST)
    patients = lineage.folded(args.output)["settings"]["patients"]
    cache_size = cache.size(args.output, 32)
    shutil.rmtree(args.output / artifacts.REPORT_FIGURES, ignore_errors=True)  # pictures of earlier reports
    overlays = {run.name: report.draw_overlays(args.output, run, manifest, cache_size, args.overlays) for run in runs}
    artifacts.write_table(args.output, artifacts.REPORT_TABLE, report.combined_table(runs))
    atomic.write_text(args.output / artifacts.REPORT_PAGE, report.page(runs, overlays, patients=patients))
    figures = [f"report/{shown['file']}" for run in runs for shown in overlays[run.name]]
    outputs = [artifacts.REPORT_TABLE.path, artifacts.REPORT_PAGE, *figures]
    records.write(args.output, artifacts.REPORTED, settings=settings, inputs=inputs, outputs=outputs)


if __name__ == "__main__":
    stage.run(main)
