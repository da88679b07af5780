"""Stage 00 on PNG: 1024 x 1024 image and mask to 512 x 512 PNGs, in one process.

Goal: at most 1.5 times the floor.

ours    both read and checked, downsampled, encoded, hashed and written whole
floor   reading both files and decoding them with libpng, nothing else

    python -m benchmarks.preparing_png --input DIR
"""

import argparse
import hashlib
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from benchmarks import timing
from pneumothorax import dicom, png, rle
from pneumothorax.data import labels, raster
from pneumothorax.data.layouts import mask_images
from pneumothorax.pipeline import atomic

IMAGES, MASKS = "png_images", "png_masks"


class Pair(NamedTuple):
    """The files of one image."""

    image: Path
    mask: Path


@contextmanager
def material(args: argparse.Namespace) -> Iterator[list[Pair]]:
    """From --input, a folder with png_images/ and png_masks/ at any depth, or phantoms."""
    if args.input is not None:
        images = sorted(args.input.rglob(f"{IMAGES}/*.png"))[: args.images]
        yield [Pair(path, path.parent.parent / MASKS / path.name) for path in images]
        return
    with timing.material(args) as (paths, table), tempfile.TemporaryDirectory() as temporary:
        rows = labels.read(table).rows
        yield [write_pair(path, rows[path.stem], Path(temporary)) for path in paths]


def write_pair(path: Path, rows: tuple[str, ...], folder: Path) -> Pair:
    """A DICOM file and its label rows as PNGs, as OpenCV writes them by default."""
    image = dicom.read(path).image
    mask = rle.union(rows, image.shape) if rows else np.zeros_like(image)
    pair = Pair(*(folder / kind / f"{path.stem}.png" for kind in (IMAGES, MASKS)))
    for place, values in zip(pair, (image, mask * np.uint8(255)), strict=True):
        place.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(place), values)
    return pair


def main() -> None:
    args = timing.parser(__doc__).parse_args()
    timing.machine("opencv-python-headless", "pillow")
    with material(args) as pairs, tempfile.TemporaryDirectory() as temporary:
        ways = {
            "ours": lambda: prepare(pairs, Path(temporary) / uuid.uuid4().hex),
            "floor": lambda: [floor(path) for pair in pairs for path in pair],
        }
        medians = timing.compare(ways, repeats=args.repeats, per=len(pairs), unit="image")
    timing.ratio(medians, "ours", "floor", "at most 1.5")


def prepare(pairs: list[Pair], folder: Path) -> None:
    """Write the cached files of all images to a new folder."""
    for pair in pairs:
        image = raster.read(pair.image).image
        mask = mask_images.read([pair.mask], image.shape, threshold=None)
        data = {IMAGES: png.encode(png.downsample(image, 512))}
        if cv2.countNonZero(mask):
            data[MASKS] = png.encode_mask(png.downsample_mask(mask, 512))
        for kind, content in data.items():
            hashlib.sha256(content).hexdigest()
            atomic.write_bytes(folder / kind / pair.image.name, content, sync=False)


def floor(path: Path) -> None:
    cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)


if __name__ == "__main__":
    main()
