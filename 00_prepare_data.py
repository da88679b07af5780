"""Stage 00: turn DICOM files and run-length labels into small PNGs and a manifest.

Reads   *.dcm below --input, at any depth, with a label CSV and, if there is one, a sample submission
Writes  output/manifest.csv             one row per image that can be used
        output/rejected.csv             one row per file that cannot, with a code and the reason
        output/cache/<size>/images/     8-bit grey PNGs, white = dense
        output/cache/<size>/masks/      1-bit PNGs, positives only: the union of an image's label rows
        output/labels.csv, output/sample_submission.csv    what the later stages need of the two tables

Images with a label are for training, images named in the sample submission are for testing; an image in neither is
listed and used by nobody. Bad files never stop the good ones: all are listed, then the exit code is 3 unless
--max-bad allows for them. Killed and started again it goes on where it stopped.

    python 00_prepare_data.py --input input --output output
    python 00_prepare_data.py --input input --verify        check everything, write nothing
"""

import argparse
from pathlib import Path

import pandas as pd

from pneumothorax import artifacts, discovery, labels, prepare, records, stage
from pneumothorax.errors import BadInput, bad_list


def parse_args(argv=None):
    parser = stage.parser(__doc__)
    flag = parser.add_argument
    flag("--labels", type=Path, metavar="CSV", help="label file (default: found by name below --input)")
    flag(
        "--sample-submission", type=Path, metavar="CSV", help="sample submission (default: found by name below --input)"
    )
    flag("--size", type=int, default=512, help="height and width of the cached images (default: %(default)s)")
    flag("--max-bad", default="0", metavar="N|N%", help="rejected files to accept (default: %(default)s)")
    flag("--allow-missing", action="store_true", help="accept labels and sample ids that have no image")
    flag("--follow-symlinks", action="store_true", help="also read links and what lies behind them")
    flag("--salt", default="pneumothorax", help="salt of the patient hashes: set it where patient ids can be guessed")
    flag("--verify", action="store_true", help="check everything, list everything, write nothing")
    args = parser.parse_args(argv)
    if args.size < 32 or args.size % 32:
        parser.error(f"--size must be a multiple of 32, got {args.size}")
    try:
        float(args.max_bad.removesuffix("%"))
    except ValueError:
        parser.error(f"--max-bad is a number or a percentage, got {args.max_bad!r}")
    return args


def main(argv=None):
    args = parse_args(argv)
    found = discovery.search(args.input, follow_symlinks=args.follow_symlinks)
    label_csv = discovery.label_file(found, args.labels)
    sample_csv = discovery.sample_file(found, args.sample_submission)

    output = None if args.verify else args.output
    job = prepare.Job(label_csv, sample_csv, args.size, args.salt, output)
    work = {"workers": args.workers, "anew": args.overwrite}
    if args.verify:
        outcome = prepare.prepare(found.dicoms, found.not_files, args.input, job, **work)
    else:
        with stage.lock(args.output, "00_prepare_data"):
            (args.output / artifacts.PREPARED.path).unlink(missing_ok=True)  # until this run has found all well
            outcome = prepare.prepare(found.dicoms, found.not_files, args.input, job, **work)
            write(args, outcome, job)

    print(*prepare.summary(outcome), sep="\n")
    complain(args, outcome, len(found.dicoms) + len(found.not_files))
    if not args.verify:
        print(f"wrote {args.output / artifacts.MANIFEST.path} and {args.output / 'cache' / str(args.size)}")
        print(f"next: python 01_make_folds.py --output {args.output}")


def write(args: argparse.Namespace, outcome: prepare.Outcome, job: prepare.Job) -> None:
    """The tables, and the record that seals them. With errors in the labels only rejected.csv, and no record."""
    artifacts.write_table(args.output, artifacts.REJECTED, prepare.rejections(outcome))
    if outcome.label_errors:
        return
    artifacts.write_table(args.output, artifacts.MANIFEST, prepare.manifest(outcome))
    artifacts.write_table(args.output, artifacts.LABELS, prepare.label_table(outcome, job.labels))
    inputs = {"label file": records.sha256(job.labels)}
    tables = [artifacts.MANIFEST, artifacts.LABELS]
    if job.sample:
        sample = labels.read_sample(job.sample)
        blank = pd.DataFrame({sample.columns[0]: sample.image_ids, sample.columns[1]: "-1"})
        artifacts.write_table(args.output, artifacts.SAMPLE_SUBMISSION, blank)
        inputs["sample submission"] = records.sha256(job.sample)
        tables.append(artifacts.SAMPLE_SUBMISSION)
    else:
        (args.output / artifacts.SAMPLE_SUBMISSION.path).unlink(missing_ok=True)
    settings = {"size": args.size}
    outputs = [table.path for table in tables]
    records.write(args.output, artifacts.PREPARED, settings=settings, inputs=inputs, outputs=outputs)


def complain(args: argparse.Namespace, outcome: prepare.Outcome, files: int) -> None:
    """Raise one BadInput with everything that would make training on this wrong."""
    complaints = []
    if outcome.label_errors:
        complaints.append(bad_list(f"{len(outcome.label_errors)} labels do not fit their image", outcome.label_errors))
    if outcome.missing and not args.allow_missing:
        headline = f"{len(outcome.missing)} listed ids have no image (--allow-missing accepts that)"
        complaints.append(bad_list(headline, outcome.missing))
    limit = float(args.max_bad.removesuffix("%"))
    if outcome.bad > (limit / 100 * files if args.max_bad.endswith("%") else limit):
        bad = [entry for entry in outcome.rejected if entry["code"] != prepare.UNLABELLED]
        lines = [f"{entry['source']}: {entry['code']}: {entry['message']}" for entry in bad]
        complaints.append(bad_list(f"{len(bad)} of {files} files rejected (--max-bad accepts them)", lines))
    if not any(row["split"] == artifacts.TRAIN for row in outcome.rows):
        complaints.append(BadInput("no image has a label: are the images and the label file from the same stage?"))
    if complaints:
        raise BadInput("\n".join(map(str, complaints)))


if __name__ == "__main__":
    stage.run(main)
