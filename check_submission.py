"""Check a submission CSV before you submit it, or compare two. Writes nothing.

    python check_submission.py mine.csv --sample-submission sample_submission.csv
    python check_submission.py mine.csv --output output
    python check_submission.py old.csv new.csv

The file may come from anybody, and you need not run a stage first. Each row is checked by
itself: illegal run lengths, absolute or 1-based starts, runs past the end, masks encoded at
another image size, repeated ids. Further checks need something to compare with:

- A sample submission: header, missing and extra ids, order.
- An output folder where stage 00 has run: the sample submission found there, the size
  of each image, and the training masks. These show masks that are transposed (text row
  by row) or upside down, odd areas, and an odd share of positives. The default folder
  counts if it knows an image of the file. Without a folder, every image is assumed to be
  1024 x 1024.

The summary says what could not be checked. Exit code 0: no errors; anything legal but
odd is a warning. Exit code 2: wrong usage. Exit code 3: errors, each with its line and id,
up to 20 of a kind. With two files: how many images differ, the Dice between them, the
area, and the images that changed most.

How sure is it? It refuses none of SIIM-ACR's 2,669 training masks. Wrong
orientation is an error only with 20 masks or more, another size only in a mask of 8 pixel
runs or more. It cannot tell whether the only start of a mask is absolute, whether starts
are one too large unless a mask touches the lower edge, or whether left and right are
swapped.
"""

import argparse
from pathlib import Path

from pneumothorax.pipeline import artifacts, stage
from pneumothorax.submission import checking, comparing, reading


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = stage.manual(__doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="submission CSV")
    parser.add_argument(
        "other", type=Path, nargs="?", metavar="OTHER", help="newer submission CSV to compare with"
    )
    parser.add_argument(
        "--sample-submission",
        type=Path,
        metavar="CSV",
        help="the competition's sample (default: the one that stage 00 found)",
    )
    default = stage.default_output()
    parser.add_argument(
        "--output",
        type=stage.place,
        metavar="DIR",
        help=f"folder where stage 00 has run (default: {default}, if it knows an image of FILE)",
    )
    args = parser.parse_args(argv)
    if args.other and args.sample_submission:
        parser.error("--sample-submission is for checking one file")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    args.output = args.output or fitting(stage.default_output(), args.file)
    if args.other:
        compare(args.file, args.other, args.output)
    else:
        check(args.file, args.sample_submission, args.output)


def fitting(output: Path, path: Path) -> Path | None:
    """The folder, if stage 00 has run there and found an image of the submission."""
    if not (output / artifacts.MANIFEST.path).is_file():
        return None
    known = artifacts.read_table(output, artifacts.MANIFEST)["image_id"]
    if known.isin(list(reading.read(path, {}).lines)).any():
        print(f"compared with the images in {output}", flush=True)
        return output
    print(f"not compared with {output}, which knows no image of {path}", flush=True)
    return None


def check(path: Path, sample_submission: Path | None, output: Path | None) -> None:
    known = checking.read_reference(output, sample_submission)
    report = checking.check(path, known)
    print(*report.lines(), sep="\n", flush=True)
    report.submitted.refuse()
    verdict = "is a valid submission" if known.sample else "has only legal rows; ids not checked"
    print(f"{path} {verdict}{'; see the warnings' if report.warnings else ''}")


def compare(path: Path, other: Path, output: Path | None) -> None:
    shapes = {}
    if output:
        shapes = artifacts.image_shapes(artifacts.read_table(output, artifacts.MANIFEST))
    first, second = (reading.read(each, shapes) for each in (path, other))
    print(*comparing.describe(comparing.compare(first, second)), sep="\n")


if __name__ == "__main__":
    stage.run(main)
