"""Draw the demo data.

python -m pneumothorax.phantom --to input/demo --train 240 --test 60 --seed 42 --workers 2
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pneumothorax.errors import BadInput
from pneumothorax.phantom.writing import write_dataset


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m pneumothorax.phantom",
        description="Draw a demo data set in the SIIM-ACR layout.",
    )
    parser.add_argument(
        "--to", type=Path, required=True, help="folder to write, not there yet or empty"
    )
    parser.add_argument(
        "--train", type=int, default=240, help="training images (default: %(default)s)"
    )
    parser.add_argument("--test", type=int, default=60, help="test images (default: %(default)s)")
    parser.add_argument(
        "--unlabelled", type=int, default=3, help="images without a label (default: %(default)s)"
    )
    parser.add_argument(
        "--size",
        type=int,
        default=1024,
        help="side of a radiograph in pixels (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=42, help="same seed, same files (default: %(default)s)"
    )
    parser.add_argument(
        "--workers", type=int, default=None, help="processes (default: the cores it may use)"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        written = write_dataset(
            args.to,
            train_images=args.train,
            test_images=args.test,
            unlabelled_images=args.unlabelled,
            seed=args.seed,
            size=args.size,
            workers=args.workers,
        )
    except BadInput as error:
        print(error, file=sys.stderr)
        return 3
    print(
        f"wrote {written.folder}: {written.train_images} training images of {written.patients} patients "
        f"({written.positive_images} with pneumothorax, {written.label_rows} label rows), "
        f"{written.test_images} test images, {written.unlabelled_images} without a label"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
