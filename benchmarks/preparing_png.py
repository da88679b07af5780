"""Stage 00 on PNG: 1024 x 1024 image and mask to 512 x 512 PNGs, in one process.

Goal: at most 1.5 times the floor.

ours    everything that stage 00 does for an image, its mask included
floor   reading both files and decoding them with libpng, nothing else

    python -m benchmarks.preparing_png --input DIR
"""

import tempfile
import uuid
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from benchmarks import timing
from pneumothorax.data import discovery, jobs, one_image
from pneumothorax.data.layouts import choose
from pneumothorax.phantom import writing


def main() -> None:
    args = timing.parser(__doc__).parse_args()
    timing.machine("opencv-python-headless", "pillow")
    with tempfile.TemporaryDirectory() as temporary:
        source = args.input or phantoms(Path(temporary) / "phantoms", args.images)
        found = discovery.search(source)
        layout = choose.choose(found, choose.Given(layout="siim-png"))
        job = jobs.plan(layout, size=512, salt="salt", output=Path(temporary))
        images = layout.images(found.images)[: args.images]

        def prepare() -> None:
            into = replace(job, output=Path(temporary) / uuid.uuid4().hex)
            for path in images:
                one_image.prepare(path, source, into, None)

        masks = {path: layout.mask_folders[0] / path.name for path in images}
        ways = {
            "ours": prepare,
            "floor": lambda: [floor(path) for pair in masks.items() for path in pair],
        }
        medians = timing.compare(ways, repeats=args.repeats, per=len(images), unit="image")
    timing.ratio(medians, "ours", "floor", "at most 1.5")


def phantoms(folder: Path, n_images: int) -> Path:
    writing.write_dataset(
        folder, layout="siim-png", train_images=n_images, test_images=1, unlabelled_images=0
    )
    return folder


def floor(path: Path) -> None:
    cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)


if __name__ == "__main__":
    main()
