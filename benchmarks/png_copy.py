"""Stage 00 on a PNG copy of 12,047 small images, against as many DICOM files of that size.

Goal: at most 1.3 times the time of the DICOM files, and at most 2 GiB. Both folders hold
the same pixels, ids and labels: links to a few phantoms. Linux only (reads /proc).

    python -m benchmarks.png_copy
    python -m benchmarks.png_copy --train 1000 --test 100
"""

import csv
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

from benchmarks import memory, timing
from pneumothorax import rle
from pneumothorax.data import labels
from pneumothorax.phantom import siim_png, writing

SIZE = 64  # of the images, and of the cache


@dataclass(frozen=True)
class Original:
    """A phantom in both layouts; () are the rows of a negative one."""

    dicom: Path
    image: Path
    mask: Path
    rows: tuple[str, ...]


def main() -> None:
    parser = timing.bare_parser(__doc__)
    flag = parser.add_argument
    flag("--train", type=int, default=10_675, help="training images (default: %(default)s)")
    flag("--test", type=int, default=1_372, help="test images (default: %(default)s)")
    flag("--workers", type=int, default=2, help="processes (default: %(default)s)")
    flag("--repeats", type=int, default=3, help="timed rounds (default: %(default)s)")
    args = parser.parse_args()
    timing.machine("opencv-python-headless", "pydicom", "pandas")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_inputs(folder, args.train, args.test)

        def prepare(layout: str) -> None:
            flags = ["--input", str(folder / layout), "--output", str(folder / uuid.uuid4().hex)]
            flags += ["--size", str(SIZE), "--workers", str(args.workers)]
            memory.measure("00_prepare_data.py", *flags, title=layout)

        medians = timing.compare(
            {"PNG": lambda: prepare("siim-png"), "DICOM": lambda: prepare("siim-dicom")},
            repeats=args.repeats,
            per=args.train + args.test,
            unit="image",
        )
    timing.ratio(medians, "PNG", "DICOM", "at most 1.3")


def write_inputs(folder: Path, n_train: int, n_test: int) -> None:
    """The folders siim-dicom and siim-png with the same images, both with labelled test images."""
    found = originals(folder / "originals")
    dicoms, copy = folder / "siim-dicom", folder / "siim-png" / siim_png.FOLDER
    label_header = ["ImageId,EncodedPixels"]
    sample = list(label_header)
    for split, n_images in (("train", n_train), ("test", n_test)):
        label_lines, table = list(label_header), ["new_filename,ImageId,has_pneumo"]
        for number in range(n_images):
            original, image_id = found[number % len(found)], f"{split}.{number}"
            positive = int(bool(original.rows))
            name = f"{number}_{split}_{positive}_.png"
            memory.link(original.dicom, dicoms / split / f"{image_id}.dcm")
            memory.link(original.image, copy / "png_images" / name)
            memory.link(original.mask, copy / "png_masks" / name)
            label_lines += [f"{image_id},{text}" for text in original.rows or (rle.EMPTY,)]
            table.append(f"{name},{image_id},{positive}")
            sample += [f"{image_id},{rle.EMPTY}"] if split == "test" else []
        write_lines(dicoms / f"{split}-rle.csv", label_lines)
        write_lines(copy / f"stage_1_{split}_images.csv", table)
    write_lines(dicoms / "sample_submission.csv", sample)


def originals(folder: Path) -> list[Original]:
    """40 phantoms, written in both layouts."""
    for layout in writing.LAYOUTS:
        writing.write_dataset(
            folder / layout,
            layout=layout,
            train_images=40,
            test_images=0,
            unlabelled_images=0,
            size=SIZE,
        )
    dicoms = {path.stem: path for path in (folder / "siim-dicom").rglob("*.dcm")}
    rows = labels.read(folder / "siim-dicom" / "train-rle.csv").rows
    copy = folder / "siim-png" / siim_png.FOLDER
    with open(copy / "stage_1_train_images.csv", encoding="utf-8", newline="") as file:
        name_of = {line["ImageId"]: line["new_filename"] for line in csv.DictReader(file)}
    return [
        Original(
            dicoms[image_id], copy / "png_images" / name, copy / "png_masks" / name, rows[image_id]
        )
        for image_id, name in name_of.items()
    ]


def write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
