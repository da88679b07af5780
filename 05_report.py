"""Stage 05: compare submissions in a report: tables, curves, figures, a gallery of all images.

Reads   output/submissions/<name>/ (stage 04), output/runs/<run>/ (stage 02), and the manifest,
        labels, folds and cache
Writes  output/report/index.html      the page; opens straight from the folder, works offline
        output/report/without_images.html    the page without radiographs
        output/report/table.csv       every score per run and fold, and the all-empty baseline
        output/report/per_image.csv   every per-image score, one row per image and run
        output/report/test_table.csv, test_per_image.csv    the same of labelled test images
        output/report/summary.json    every number of the page; report.json: hashes
        output/report/figures/        the page's figures
        output/report/gallery/, gallery.js    thumbnails, scores and outlines of every image
        output/report.zip             with --zip: the report for somebody else

Only submissions with the same folds, images and labels are compared; others are refused.

    python 05_report.py
    python 05_report.py --names ica_resunet,unet
    python 05_report.py --zip
"""

import argparse

import pandas as pd

from pneumothorax.data import cache
from pneumothorax.pipeline import artifacts, atomic, lineage, locks, records, sharing, stage
from pneumothorax.report import gallery, illustrations, page, runs, statistics, summary

DEFAULT_SEED = 42
PAGES = {artifacts.REPORT_PAGE: True, artifacts.REPORT_PAGE_WITHOUT_IMAGES: False}  # with images?


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = stage.parser(__doc__)
    flag = parser.add_argument
    names_help = "submissions to compare, separated by commas (default: all)"
    flag("--names", metavar="NAME,...", help=names_help)
    zip_help = "also pack the report for somebody else, without radiographs of patients"
    flag("--zip", action="store_true", help=zip_help)
    images_help = "like --zip, with the radiographs: only if the licence of the data allows it"
    flag("--zip-images", action="store_true", help=images_help)
    args = parser.parse_args(argv)
    args.zip = args.zip or args.zip_images
    args.names = list(dict.fromkeys(args.names.split(","))) if args.names else []
    for name in args.names:
        stage.check_name(parser, "--names", name)
    args.seed = DEFAULT_SEED if args.seed is None else args.seed
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with locks.lock(args.output, "05_report", alone=args.no_lock):
        names = args.names or artifacts.submission_names(args.output)
        manifest, compared = read(args, names)
        settings = {"names": names, "seed": args.seed, "version": [page.VERSION, *PAGES]}
        inputs = records.hashes(args.output, runs.sources(compared))
        up_to_date = not args.overwrite and records.is_current(
            args.output, artifacts.REPORTED, settings=settings, inputs=inputs
        )
        if not up_to_date:
            outputs = write(args, compared, manifest)
            records.write(
                args.output, artifacts.REPORTED, settings=settings, inputs=inputs, outputs=outputs
            )
        if args.zip:
            pack(args, manifest, names)
    print_results(args, compared, up_to_date=up_to_date)


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

    tables = summary.write_tables(output, compared)
    numbers = summary.summary(compared, found, about, seed=args.seed)
    atomic.write_json(output / artifacts.REPORT_SUMMARY, numbers)

    folder = (output / artifacts.REPORT_PAGE).parent
    figures = illustrations.draw(output, compared, found, manifest, cache_size=cache_size)
    shown = gallery.write(
        output, folder, images, manifest, cache_size=cache_size, workers=args.workers
    )
    for path, with_images in PAGES.items():
        html = page.render(about, compared, found, figures, with_images=with_images)
        atomic.write_text(output / path, html)
    pictures = [f"{folder.name}/{path}" for path in (*page.files(figures), *shown)]
    return [*tables, artifacts.REPORT_SUMMARY, *PAGES, *pictures]


def pack(args: argparse.Namespace, manifest: pd.DataFrame, names: list[str]) -> None:
    """Write report.zip. Phantoms are nobody's radiographs: they are always in it."""
    from pneumothorax.inference import card

    output, folder = args.output, (args.output / artifacts.REPORT_PAGE).parent
    ids, phantoms = manifest["image_id"].tolist(), lineage.prepared(output)["phantoms"]
    public = dict(zip(ids, ids, strict=True)) if phantoms else sharing.public_ids(ids)
    with_images = args.zip_images or phantoms
    shown = gallery.shared(folder, public) if with_images else {}
    its_page = artifacts.REPORT_PAGE if with_images else artifacts.REPORT_PAGE_WITHOUT_IMAGES

    kinds = (".csv", ".json", ".svg", ".png") if with_images else (".csv", ".json", ".svg")
    written = records.read(output, artifacts.REPORTED)["outputs"]
    files = sharing.public_files(output, [p for p in written if p.endswith(kinds)], public)
    files |= {**shown, artifacts.REPORT_PAGE: output / its_page}
    for name in names:
        if not card.describes(output, name):
            print(f"no model card for {name}, which other software trained")
            continue
        text = card.as_markdown(card.facts(output, name))
        files[f"{folder.name}/{name}/MODEL_CARD.md"] = text.encode("utf-8")
    sharing.write_zip(output / artifacts.REPORT_ZIP, files)


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
    if args.zip:
        print(f"to share: {args.output / artifacts.REPORT_ZIP}")
    print(f"report: {args.output / artifacts.REPORT_PAGE}")


if __name__ == "__main__":
    stage.run(main)
