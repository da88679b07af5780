"""Stage 00: DICOM to 512 x 512 PNG with its mask, per image, in one process.

Goal: at least 15 times the naive way, at most 1.6 times the floor.

naive   pydicom's pixel_array, skimage-style resize with anti-aliasing, cv2.imwrite's defaults,
        label rows looked up with DataFrame.loc and decoded by a Python loop
floor   reading the file and decoding its JPEG with libjpeg-turbo, nothing else

    python -m benchmarks.preparing --input DIR
"""

import argparse
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pydicom
from scipy import ndimage

from benchmarks import timing
from benchmarks.run_lengths import decode_naive
from pneumothorax.data import discovery, jobs, one_image
from pneumothorax.data.layouts import choose


@dataclass(frozen=True)
class Material:
    """DICOM files with a label, and a job of stage 00 from scratch."""

    files: list[Path]
    labels: Path
    job: jobs.Job
    folder: Path  # empty

    def new_folder(self) -> Path:
        """Not there yet: replacing files would cost more than writing new ones."""
        return self.folder / uuid.uuid4().hex

    def prepare(self) -> None:
        """What stage 00 does for every file, one after the other."""
        job = replace(self.job, output=self.new_folder())
        for path in self.files:
            one_image.prepare(path, self.labels.parent, job, None)


@contextmanager
def material(args: argparse.Namespace) -> Iterator[Material]:
    """From --input, or phantoms."""
    with timing.material(args) as (paths, labels), tempfile.TemporaryDirectory() as temporary:
        layout = choose.choose(discovery.search(labels.parent), choose.Given(labels=labels))
        job = jobs.plan(layout, size=512, salt="salt", output=Path(temporary) / "first")
        entries = {path: one_image.prepare(path, labels.parent, job, None) for path in paths}
        labelled = job.listed.annotations
        files = [
            path for path, entry in entries.items() if "row" in entry and path.stem in labelled
        ]
        yield Material(files, labels, job, Path(temporary))


def main() -> None:
    args = timing.parser(__doc__).parse_args()
    timing.machine("opencv-python-headless", "pydicom", "scipy")
    with material(args) as given:
        frame = pd.read_csv(given.labels, skipinitialspace=True).set_index("ImageId")
        ways = {
            "ours": given.prepare,
            "naive": lambda: [naive(path, frame, given.folder) for path in given.files],
            "floor": lambda: [floor(path) for path in given.files],
        }
        medians = timing.compare(ways, repeats=args.repeats, per=len(given.files), unit="image")
    timing.ratio(medians, "naive", "ours", "at least 15")
    timing.ratio(medians, "ours", "floor", "at most 1.6")


def naive(path: Path, frame: pd.DataFrame, folder: Path) -> None:
    dataset = pydicom.dcmread(path)
    image = dataset.pixel_array
    cv2.imwrite(str(folder / "image.png"), resize(image, 512))
    rows = frame.loc[[path.stem]]
    mask = np.zeros(image.shape)
    for text in rows["EncodedPixels"]:
        if text.strip() != "-1":
            mask = np.maximum(mask, decode_naive(text))
    cv2.imwrite(str(folder / "mask.png"), resize(mask * 255, 512))


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """As skimage.transform.resize(anti_aliasing=True) does.

    A Gaussian of sigma (scale - 1) / 2, then spline zoom.
    """
    factors = [length / size for length in image.shape]
    smooth = ndimage.gaussian_filter(
        image.astype(np.float64), [max(0, (factor - 1) / 2) for factor in factors], mode="mirror"
    )
    zoomed = ndimage.zoom(
        smooth, [1 / factor for factor in factors], order=1, mode="mirror", grid_mode=True
    )
    return zoomed.astype(np.uint8)


def floor(path: Path) -> None:
    data = path.read_bytes()
    start = data.index(b"\xff\xd8\xff")
    cv2.imdecode(np.frombuffer(data, np.uint8, offset=start), cv2.IMREAD_UNCHANGED)


if __name__ == "__main__":
    main()
