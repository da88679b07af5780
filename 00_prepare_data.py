"""Stage 00: turn radiographs and their labels into small PNGs and a manifest.

Reads   DICOM, PNG and JPEG files below --input, with run-length or mask-image labels, in one of
        the layouts siim-dicom, siim-png, images-rle, images-masks, nnunet (docs/your-data.md)
Writes  output/manifest.csv             one row per usable image
        output/rejected.csv             one row per unusable file, with a code and the reason
        output/cache/<size>/images/     8-bit grey PNGs, white = dense
        output/cache/<size>/masks/      1-bit PNGs of the positives: the union of their labels
        output/labels.csv               run lengths of the positives
        output/test_labels.csv          those of labelled test images, which are only scored
        output/sample_submission.csv    the ids of the submission

The layout is found by looking; --layout overrules it. Bad files do not stop the good ones:
all are listed at the end, and the exit code is 3 unless --max-bad accepts them. With
--scheduler, a Dask cluster whose workers see the same folders gives the same result.
Safe to interrupt: run the same command again to resume.

    python 00_prepare_data.py --input input --output output
    python 00_prepare_data.py --input input --verify        check everything, write nothing
"""

import argparse
import re
from pathlib import Path

from pneumothorax import rle
from pneumothorax.data import discovery, doctor, jobs, outcome, prepare
from pneumothorax.data.labels import SUBMISSION_COLUMNS, SampleSubmission
from pneumothorax.data.layouts import choose
from pneumothorax.pipeline import artifacts, locks, records, stage
from pneumothorax.pipeline.engine import Engine
from pneumothorax.submission import writing


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = stage.parser(__doc__)
    flag = parser.add_argument
    choose.add_flags(parser)
    size = "height and width of the cached images in pixels (default: %(default)s)"
    flag("--size", type=int, default=512, help=size)
    bad = "how many rejected files to accept (default: %(default)s)"
    flag("--max-bad", default="0", metavar="N|N%", help=bad)
    flag("--allow-missing", action="store_true", help="accept labels and test ids without an image")
    salt = "salt of the patient hashes: choose your own if patient ids can be guessed"
    flag("--salt", default="pneumothorax", help=salt)
    flag("--verify", action="store_true", help="check everything, list everything, write nothing")
    stage.add_scheduler_flag(parser)
    args = stage.parse(parser, argv)
    if args.size < 32 or args.size % 32:
        parser.error(f"--size must be a multiple of 32, got {args.size}")
    if not re.fullmatch(r"\d+|\d+(\.\d+)?%", args.max_bad, re.ASCII):
        parser.error(f"--max-bad must be a number or a percentage, got {args.max_bad!r}")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    found = discovery.search(args.input, follow_symlinks=args.follow_symlinks, skip=args.output)
    print("".join(f"{note}\n" for note in found.notes()), end="")
    job = plan(args, found)
    print(*choose.described(job.layout, found), sep="\n")
    if args.verify:
        verify(args, found, job)
        return
    with locks.lock(args.output, "00_prepare_data", alone=args.no_lock) as holder:
        locks.check_room(args.output, prepare.bytes_needed(found, job, args.output))
        # Until this run succeeds, no later stage may use the output of an earlier one.
        (args.output / artifacts.PREPARED.path).unlink(missing_ok=True)
        engine = Engine(args.workers, args.scheduler, shared=holder)
        result = prepare.prepare_all(
            found, args.input, job, engine=engine, overwrite=args.overwrite
        )
        tables = write_tables(args.output, result, job)
        judge(args, result, prepare.n_sources(found, job.layout))
        write_record(args, result, job, tables)
    print(f"wrote {args.output / artifacts.MANIFEST.path} and {args.output}/cache/{args.size}")
    print(stage.next_step(args.output, "01_make_folds.py"))


def plan(args: argparse.Namespace, found: discovery.Found) -> jobs.Job:
    """Choose the layout and read its tables."""
    return jobs.plan(
        choose.choose(found, choose.from_flags(args)),
        size=args.size,
        salt=args.salt,
        output=None if args.verify else args.output,
        follow_symlinks=args.follow_symlinks,
        mask_threshold=args.mask_threshold,
        test=args.test,
        holdout=args.holdout,
    )


def verify(args: argparse.Namespace, found: discovery.Found, job: jobs.Job) -> None:
    """Do all the work and print every finding, but write nothing."""
    engine = Engine(args.workers, args.scheduler)
    result = prepare.prepare_all(found, args.input, job, engine=engine)
    print(*doctor.report(result), sep="\n")
    n_sources = prepare.n_sources(found, job.layout)
    judge(args, result, n_sources)
    print(f"{n_sources} files checked, nothing written")


def write_tables(output: Path, result: outcome.Outcome, job: jobs.Job) -> list[str]:
    """Write all tables, only rejected.csv when labels do not fit; returns their paths."""
    tables = outcome.write_tables(output, result)
    usable = {row["image_id"] for row in result.test}
    ids = tuple(image_id for image_id in job.listed.test_ids if image_id in usable)
    sample = job.listed.sample or SampleSubmission(SUBMISSION_COLUMNS, ids)
    if not sample.image_ids:
        (output / artifacts.SAMPLE_SUBMISSION).unlink(missing_ok=True)
    elif tables:
        rows = dict.fromkeys(sample.image_ids, rle.EMPTY)
        writing.write(output / artifacts.SAMPLE_SUBMISSION, sample, rows)
        tables.append(artifacts.SAMPLE_SUBMISSION)
    return tables


def judge(args: argparse.Namespace, result: outcome.Outcome, n_sources: int) -> None:
    """Print the numbers to check.

    Raises BadInput when training on these images would be wrong.
    """
    print(*doctor.summary(result), sep="\n")
    doctor.require_usable(
        result,
        n_sources,
        max_bad=args.max_bad,
        allow_missing=args.allow_missing,
        need_positives=args.verify,
    )


def write_record(
    args: argparse.Namespace, result: outcome.Outcome, job: jobs.Job, tables: list[str]
) -> None:
    """Seal the tables: from now on, later stages accept them."""
    records.write(
        args.output,
        artifacts.PREPARED,
        settings={"size": args.size, "layout": job.layout.name},
        inputs={name: records.sha256(path) for name, path in job.tables.items()},
        outputs=tables,
        phantoms=discovery.holds_phantoms(args.input),
        **outcome.fingerprints(result, size=args.size),
    )


if __name__ == "__main__":
    stage.run(main)
