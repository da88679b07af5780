"""Write the demo data: chest phantoms, as DICOM files or in the layout of the PNG copies.

python -m pneumothorax.phantom --to input/demo --train 240 --test 60 --seed 42 --workers 2
python -m pneumothorax.phantom --to demo-png --layout siim-png
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from pneumothorax.phantom.writing import LAYOUTS, write_dataset
from pneumothorax.pipeline import stage


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m pneumothorax.phantom",
        description="Write a demo data set: chest phantoms, laid out like the SIIM-ACR data.",
    )
    add = parser.add_argument
    add("--to", type=Path, required=True, metavar="FOLDER", help="a new or empty folder")
    add(
        "--layout",
        choices=LAYOUTS,
        default="siim-dicom",
        help="DICOM files and run lengths, or PNG images and masks (default: %(default)s)",
    )
    add("--train", type=int, default=240, help="number of training images (default: %(default)s)")
    add("--test", type=int, default=60, help="number of test images (default: %(default)s)")
    add(
        "--unlabelled",
        type=int,
        default=3,
        help="number of images without a label (default: %(default)s)",
    )
    add("--size", type=int, default=1024, help="image side in pixels (default: %(default)s)")
    add("--seed", type=int, default=42, help="same seed, same files (default: %(default)s)")
    add("--workers", type=int, help="number of processes (default: all available cores)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    written = write_dataset(
        args.to,
        layout=args.layout,
        train_images=args.train,
        test_images=args.test,
        unlabelled_images=args.unlabelled,
        seed=args.seed,
        size=args.size,
        workers=args.workers,
    )
    print(
        f"wrote {written.folder}: {written.train_images} training images of "
        f"{written.patients} patients ({written.positive_images} with pneumothorax), "
        f"{written.test_images} test images, {written.unlabelled_images} images without a label"
    )


if __name__ == "__main__":
    stage.run(main)
