"""Stage 00: DICOM to 512 x 512 PNG with its mask, per image, in one process.

Goal: at least 12 times the naive way, at most 2 times the floor.

naive   pydicom's pixel_array, skimage-style resize with anti-aliasing, cv2.imwrite's defaults, and the image's label
        rows looked up with DataFrame.loc, decoded by a Python loop
floor   reading the file and decoding its JPEG with libjpeg-turbo, nothing else

    python -m benchmarks.preparing --input DIR
"""

import itertools
import tempfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pydicom
from scipy import ndimage

from benchmarks import timing
from benchmarks.run_lengths import decode_naive
from pneumothorax.data import jobs, one_image


def main() -> None:
    args = timing.parser(__doc__).parse_args()
    timing.machine("opencv-python-headless", "pydicom", "scipy")
    with timing.material(args) as (paths, labels), tempfile.TemporaryDirectory() as temporary:
        root = labels.parent
        job = jobs.plan(labels, None, size=512, salt="salt", output=Path(temporary) / "first")
        labelled = [path for path in paths if "row" in one_image.prepare(path, root, job, None)]
        rounds = itertools.count()
        frame = pd.read_csv(labels, skipinitialspace=True).set_index("ImageId")
        ways = {
            "ours": lambda: ours(
                labelled, root, replace(job, output=Path(temporary) / str(next(rounds)))
            ),
            "naive": lambda: [naive(path, frame, Path(temporary)) for path in labelled],
            "floor": lambda: [floor(path) for path in labelled],
        }
        medians = timing.compare(ways, repeats=args.repeats, per=len(labelled), unit="image")
    timing.ratio(medians, "naive", "ours", "at least 12")
    timing.ratio(medians, "ours", "floor", "at most 2")


def ours(paths: list[Path], root: Path, job: jobs.Job) -> None:
    """Into a new folder each time, as when data is prepared: replacing files costs more."""
    for path in paths:
        one_image.prepare(path, root, job, None)


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
    """What skimage.transform.resize(anti_aliasing=True) does: a Gaussian of sigma (scale - 1) / 2, then spline zoom."""
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
