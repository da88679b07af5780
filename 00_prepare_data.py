"""Stage 00: turn DICOM files and run-length labels into small PNGs and a manifest.

Reads   *.dcm below --input, at any depth, with a label CSV and, if there is one, a sample submission
Writes  output/manifest.csv             one row per image that can be used
        output/rejected.csv             one row per file that cannot, with a code and the reason
        output/cache/<size>/images/     8-bit grey PNGs, white = dense
        output/cache/<size>/masks/      1-bit PNGs, positives only: the union of an image's label rows
        output/labels.csv, output/sample_submission.csv    what the later stages need of the two tables

Images with a label are for training, images named in the sample submission are for testing; an image in neither is
listed and used by nobody. Bad files never stop the good ones: all are listed, then the exit code is 3 unless
--max-bad allows for them. Killed and started again it goes on where it stopped. With --scheduler the work is done by a
Dask cluster whose workers see the same folders (README, "A cluster with shared storage"), with the same result.

    python 00_prepare_data.py --input input --output output
    python 00_prepare_data.py --input input --verify        check everything, write nothing
"""

import argparse
import re
from pathlib import Path
from typing import Any

from pneumothorax import rle
from pneumothorax.data import discovery, doctor, labels, prepare
from pneumothorax.errors import BadInput, bad_list
from pneumothorax.pipeline import artifacts, locks, records, stage
from pneumothorax.pipeline.engine import Engine
from pneumothorax.submission import writing


def parse_args(argv=None):
    parser = stage.parser(__doc__)
    flag = parser.add_argument
    flag(
        "--labels",
        type=Path,
        metavar="CSV",
        help="label file (default: found by name below --input)",
    )
    flag(
        "--sample-submission",
        type=Path,
        metavar="CSV",
        help="sample submission (default: found by name below --input)",
    )
    flag(
        "--size",
        type=int,
        default=512,
        help="height and width of the cached images (default: %(default)s)",
    )
    flag(
        "--max-bad",
        default="0",
        metavar="N|N%",
        help="rejected files to accept (default: %(default)s)",
    )
    flag(
        "--allow-missing",
        action="store_true",
        help="accept labels and sample ids that have no image",
    )
    flag("--follow-symlinks", action="store_true", help="also read links and what lies behind them")
    flag(
        "--salt",
        default="pneumothorax",
        help="salt of the patient hashes: set it where patient ids can be guessed",
    )
    flag("--verify", action="store_true", help="check everything, list everything, write nothing")
    stage.add_scheduler_flag(parser)
    args = stage.parse(parser, argv)
    if args.size < 32 or args.size % 32:
        parser.error(f"--size must be a multiple of 32, got {args.size}")
    if not re.fullmatch(r"\d+|\d+(\.\d+)?%", args.max_bad, re.ASCII):
        parser.error(f"--max-bad is a number or a percentage, got {args.max_bad!r}")
    return args


def main(argv=None):
    args = parse_args(argv)
    found = discovery.search(args.input, follow_symlinks=args.follow_symlinks, skip=args.output)
    label_csv = discovery.label_file(found, args.labels)
    sample_csv = discovery.sample_file(found, args.sample_submission)

    output = None if args.verify else args.output
    job = prepare.plan(label_csv, sample_csv, size=args.size, salt=args.salt, output=output)
    files = len(found.dicoms) + len(found.not_files) + len(found.unreadable)
    if args.verify:
        outcome = prepare.prepare(
            found, args.input, job, engine=Engine(args.workers, args.scheduler)
        )
        print(*doctor.report(outcome.rows, outcome.rejected), sep="\n")
        finish(args, outcome, files)
        print(f"{files} files checked, nothing written")
        return
    with locks.lock(args.output, "00_prepare_data") as holder:
        locks.check_room(args.output, prepare.bytes_needed(found, job, args.output))
        (args.output / artifacts.PREPARED.path).unlink(
            missing_ok=True
        )  # no later stage runs until all is well
        workers = Engine(args.workers, args.scheduler, shared=holder)
        outcome = prepare.prepare(found, args.input, job, engine=workers, anew=args.overwrite)
        outputs, facts = write_tables(args.output, outcome, job)
        finish(args, outcome, files)
        inputs = {"label file": records.sha256(job.labels)}
        if job.sample:
            inputs["sample submission"] = records.sha256(job.sample)
        facts["phantoms"] = (args.input / discovery.PHANTOM_NOTE).is_file()
        records.write(
            args.output,
            artifacts.PREPARED,
            settings={"size": args.size},
            inputs=inputs,
            outputs=outputs,
            **facts,
        )
    print(
        f"wrote {args.output / artifacts.MANIFEST.path} and {args.output / 'cache' / str(args.size)}"
    )
    print(f"next: python 01_make_folds.py --output {args.output}")


def write_tables(
    output: Path, outcome: prepare.Outcome, job: prepare.Job
) -> tuple[list[str], dict[str, Any]]:
    """All tables; returns those to seal and the fingerprints. With errors in the labels only rejected.csv."""
    artifacts.write_table(output, artifacts.REJECTED, prepare.rejections(outcome))
    if outcome.label_errors:
        return [], {}
    manifest, label_rows = prepare.manifest(outcome), prepare.label_table(outcome, job)
    artifacts.write_table(output, artifacts.MANIFEST, manifest)
    artifacts.write_table(output, artifacts.LABELS, label_rows)
    tables = [artifacts.MANIFEST.path, artifacts.LABELS.path]
    sample_copy = output / artifacts.SAMPLE_SUBMISSION
    if job.sample:
        sample = labels.read_sample(job.sample)
        writing.write(sample_copy, sample, dict.fromkeys(sample.image_ids, rle.EMPTY))
        tables.append(artifacts.SAMPLE_SUBMISSION)
    else:
        sample_copy.unlink(missing_ok=True)
    return tables, prepare.fingerprints(manifest, label_rows, job.size)


def finish(args: argparse.Namespace, outcome: prepare.Outcome, files: int) -> None:
    """Print the numbers to check; raise one BadInput with everything that would make training on this wrong."""
    print(*prepare.summary(outcome), sep="\n")
    complaints = []
    if outcome.label_errors:
        complaints.append(
            bad_list(
                f"{len(outcome.label_errors)} labels do not fit their image", outcome.label_errors
            )
        )
    if outcome.missing and not args.allow_missing:
        headline = f"{len(outcome.missing)} listed ids have no image (--allow-missing accepts that)"
        complaints.append(bad_list(headline, outcome.missing))
    limit = float(args.max_bad.removesuffix("%"))
    if outcome.bad > (limit / 100 * files if args.max_bad.endswith("%") else limit):
        bad = [entry for entry in outcome.rejected if entry["code"] != prepare.UNLABELLED]
        lines = [f"{entry['source']}: {entry['code']}: {entry['message']}" for entry in bad]
        complaints.append(
            bad_list(f"{len(bad)} of {files} files rejected (--max-bad accepts them)", lines)
        )
    if not any(row["split"] == artifacts.TRAIN for row in outcome.rows):
        complaints.append(
            BadInput("no image has a label: are the images and the label file from the same stage?")
        )
    elif args.verify and not any(row["positive"] for row in outcome.rows):
        complaints.append(BadInput("no training image is positive: there is nothing to learn"))
    if complaints:
        raise BadInput("\n".join(map(str, complaints)))


if __name__ == "__main__":
    stage.run(main)
