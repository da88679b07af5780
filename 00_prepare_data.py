"""Stage 00: turn DICOM files and run-length labels into small PNGs and a manifest.

Reads   *.dcm below --input, at any depth, a label CSV and, if there is one, a sample submission
Writes  output/manifest.csv             one row per usable image
        output/rejected.csv             one row per unusable file, with a code and the reason
        output/cache/<size>/images/     8-bit grey PNGs, white = dense
        output/cache/<size>/masks/      1-bit PNGs of the positives: the union of their label rows
        output/labels.csv, output/sample_submission.csv    what later stages need of the two tables

Images with a label are for training, images in the sample submission for testing; an
image in neither is listed and not used. Bad files do not stop the good ones: all are
listed at the end, and the exit code is 3 unless --max-bad accepts them. With --scheduler,
a Dask cluster whose workers see the same folders does the work, with the same result.
Safe to interrupt: run the same command again to resume.

    python 00_prepare_data.py --input input --output output
    python 00_prepare_data.py --input input --verify        check everything, write nothing
"""

import argparse
import re
from pathlib import Path

from pneumothorax import rle
from pneumothorax.data import discovery, doctor, jobs, labels, outcome, prepare
from pneumothorax.pipeline import artifacts, locks, records, stage
from pneumothorax.pipeline.engine import Engine
from pneumothorax.submission import writing


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = stage.parser(__doc__)
    flag = parser.add_argument
    found = "(default: found by name below --input)"
    flag("--labels", type=Path, metavar="CSV", help=f"label file {found}")
    flag("--sample-submission", type=Path, metavar="CSV", help=f"sample submission {found}")
    size = "height and width of the cached images in pixels (default: %(default)s)"
    flag("--size", type=int, default=512, help=size)
    bad = "how many rejected files to accept (default: %(default)s)"
    flag("--max-bad", default="0", metavar="N|N%", help=bad)
    missing = "accept labels and test ids without an image"
    flag("--allow-missing", action="store_true", help=missing)
    flag("--follow-symlinks", action="store_true", help="also read links and linked folders")
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
    job = jobs.plan(
        discovery.label_file(found, args.labels),
        discovery.sample_file(found, args.sample_submission),
        size=args.size,
        salt=args.salt,
        output=None if args.verify else args.output,
    )
    if args.verify:
        verify(args, found, job)
        return
    with locks.lock(args.output, "00_prepare_data") as holder:
        locks.check_room(args.output, prepare.bytes_needed(found, job, args.output))
        withdraw_record(args.output)
        engine = Engine(args.workers, args.scheduler, shared=holder)
        result = prepare.prepare_all(
            found, args.input, job, engine=engine, overwrite=args.overwrite
        )
        write_tables(args.output, result, job)
        judge(args, found, result)
        write_record(args, result, job)
    manifest, cache = args.output / artifacts.MANIFEST.path, args.output / "cache" / str(args.size)
    print(f"wrote {manifest} and {cache}")
    print(f"next: python 01_make_folds.py --output {args.output}")


def verify(args: argparse.Namespace, found: discovery.Found, job: jobs.Job) -> None:
    """Do all the work and print every finding, but write nothing."""
    engine = Engine(args.workers, args.scheduler)
    result = prepare.prepare_all(found, args.input, job, engine=engine)
    print(*doctor.report(result), sep="\n")
    judge(args, found, result)
    print(f"{found.n_sources} files checked, nothing written")


def withdraw_record(output: Path) -> None:
    """Until this run succeeds, no later stage may use the output of an earlier one."""
    (output / artifacts.PREPARED.path).unlink(missing_ok=True)


def write_tables(output: Path, result: outcome.Outcome, job: jobs.Job) -> None:
    """Write all tables; only rejected.csv when labels do not fit their images."""
    outcome.write_tables(output, result, job)
    sample_copy = output / artifacts.SAMPLE_SUBMISSION
    if job.sample is None:
        sample_copy.unlink(missing_ok=True)
    elif not result.label_errors:
        sample = labels.read_sample(job.sample)
        writing.write(sample_copy, sample, dict.fromkeys(sample.image_ids, rle.EMPTY))


def judge(args: argparse.Namespace, found: discovery.Found, result: outcome.Outcome) -> None:
    """Print the numbers to check.

    Raises BadInput when training on these images would be wrong.
    """
    print(*doctor.summary(result), sep="\n")
    doctor.require_usable(
        result,
        found.n_sources,
        max_bad=args.max_bad,
        allow_missing=args.allow_missing,
        need_positives=args.verify,
    )


def write_record(args: argparse.Namespace, result: outcome.Outcome, job: jobs.Job) -> None:
    """Seal the tables: from now on, later stages accept them."""
    inputs = {"label file": records.sha256(job.labels)}
    outputs = [artifacts.MANIFEST.path, artifacts.LABELS.path]
    if job.sample:
        inputs["sample submission"] = records.sha256(job.sample)
        outputs.append(artifacts.SAMPLE_SUBMISSION)
    records.write(
        args.output,
        artifacts.PREPARED,
        settings={"size": args.size},
        inputs=inputs,
        outputs=outputs,
        phantoms=discovery.holds_phantoms(args.input),
        **outcome.fingerprints(result, job),
    )


if __name__ == "__main__":
    stage.run(main)
