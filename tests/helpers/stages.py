"""A tiny complete input, and stages run on it by path."""

import os
import runpy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pneumothorax.pipeline import artifacts
from tests.helpers.dicoms import write_dicom
from tests.helpers.images import disc, noise, plain_encode

ROOT = Path(__file__).resolve().parents[2]
REAL_DATA = Path(os.environ.get("PNEUMOTHORAX_REAL_DATA", ROOT.parent / "shared" / "data"))
# A config whose two folds train in seconds and find the discs of `tiny_input`. Its checkpoints
# take 6 MB: those of a ResNet take 100 times as long to write, hash and copy.
TINY = """
model: unet
model_settings: {base_channels: 8}
image_size: 64
epochs: 2
batch_size: 4
learning_rate: 0.03
precision: fp32
"""


def run_stage(script, *args):
    """Stage files start with a digit, so they are run by path, not imported."""
    main = runpy.run_path(str(ROOT / script), run_name="stage")["main"]
    main([str(argument) for argument in args])


def run_on(output, script, *args):
    """Run a stage on an output folder, without worker processes."""
    run_stage(script, *args, "--output", output, "--workers", 0)


def settings(*changes):
    """("epochs=3", ...) -> the flags of stage 02 that change these settings."""
    return [word for change in changes for word in ("--set", change)]


def run_all(folder, output, config, *more, stages=range(6), flags=()):
    """Run stages 00 to 05, or some, with the run "tiny"; `more` goes to 02, `flags` to all."""
    commands = {
        0: ("00_prepare_data.py", "--input", folder, "--size", 64),
        1: ("01_make_folds.py", "--folds", 2),
        2: ("02_train.py", "--config", config, "--run", "tiny", *more),
        3: ("03_predict.py", "--run", "tiny"),
        4: ("04_submit.py", "--run", "tiny"),
        5: ("05_report.py",),
    }
    for number in stages:
        run_on(output, *commands[number], *flags)


def train_from_tiny(output, config, *more):
    """Train the run "second" from the weights of "tiny", at another image size."""
    changes = settings("init_from=runs/tiny", "image_size=32", "learning_rate=1.0e-9")
    run_on(output, "02_train.py", "--config", config, "--run", "second", *changes, *more)


def scores(output, submission="tiny"):
    """The cross-validation table by row: per fold, "all", "all-empty baseline", ..."""
    table = artifacts.read_table(output, artifacts.Submission(submission).cross_validation)
    return table.set_index("row")


def files_below(folder):
    """{path below folder: (bytes, time of change)} of all files but locks."""
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and ".locks" not in path.parts
    }


@dataclass
class TinyInput:
    """What `tiny_input` wrote.

    Attributes:
        masks: training image id -> (H, W) mask of 0 and 1.
        patients: training image id -> PatientID.
    """

    folder: Path
    masks: dict[str, np.ndarray] = field(default_factory=dict)
    patients: dict[str, str] = field(default_factory=dict)
    test_ids: list[str] = field(default_factory=list)
    unlabelled_ids: list[str] = field(default_factory=list)

    @property
    def positives(self):
        return [image_id for image_id, mask in self.masks.items() if mask.any()]


def tiny_input(folder, *, train=12, test=3, unlabelled=1, size=128, seed=0):
    """A complete small --input: noise, and bright discs in every second training image.

    Two training images per patient. The second positive has three label rows, two of
    which overlap. One image is half the size, one is uncompressed, one MONOCHROME1, one
    12 bit; the others are JPEG as in the competition.
    """
    made = TinyInput(Path(folder))
    rng = np.random.default_rng(seed)
    lines = ["ImageId, EncodedPixels"]
    for number in range(train):
        image_id = f"1.2.276.0.{seed}.{number}"
        grid = size // 2 if number == 3 else size
        discs = _lesions(rng, number, grid)
        mask = np.bitwise_or.reduce([np.zeros((grid, grid), np.uint8), *discs])
        image = noise(1000 * seed + number, grid)
        image[mask == 1] = 230
        _write_training_image(_training_path(made.folder, number, image_id), number, image)
        lines += [f"{image_id}, {plain_encode(part)}" for part in discs] or [f"{image_id}, -1"]
        made.masks[image_id] = mask
        made.patients[image_id] = f"patient-{number // 2}"
    for number in range(test):
        image_id = f"ID_{seed:03x}{number:06x}"
        image = noise(1000 * seed + 500 + number, size)
        if number == 0:
            image[disc(size, size // 2, size // 3, size // 8) == 1] = 230
        path = made.folder / "stage_2_images" / f"{image_id}.dcm"
        write_dicom(path, image, jpeg=True, PatientID="")
        made.test_ids.append(image_id)
    for number in range(unlabelled):
        image_id = f"1.2.276.9.{seed}.{number}"
        image = noise(1000 * seed + 900 + number, size)
        path = _training_path(made.folder, f"u{number}", image_id)
        write_dicom(path, image, jpeg=True, PatientID=f"stranger-{number}")
        made.unlabelled_ids.append(image_id)
    write_lines(made.folder / "train-rle.csv", lines)
    if test:
        sample = ["ImageId,EncodedPixels", *(f"{i},-1" for i in made.test_ids)]
        write_lines(made.folder / "stage_2_sample_submission.csv", sample)
    return made


def _lesions(rng, number, grid):
    """Discs in every second image, three of them in image 2."""
    if number % 2:
        return []
    row, column = rng.integers(grid // 4, 3 * grid // 4, 2)
    discs = [disc(grid, row, column, grid // 8 - 4 + number)]
    if number == 2:
        discs.append(disc(grid, row + 5, column + 5, grid // 8))
        discs.append(disc(grid, grid - 1, grid - 1, grid // 16))
    return discs


def _training_path(folder, number, image_id):
    series = folder / "dicom-images-train" / f"study.{number}" / f"series.{number}"
    return series / f"{image_id}.dcm"


def _write_training_image(path, number, image):
    tags = {
        "PatientID": f"patient-{number // 2}",
        "ViewPosition": "PA" if number % 3 else "AP",
        "PatientSex": "FM"[number // 2 % 2],
    }
    if number == 5:
        write_dicom(path, image, **tags)
    elif number == 6:
        write_dicom(path, 255 - image, PhotometricInterpretation="MONOCHROME1", **tags)
    elif number == 7:
        write_dicom(path, image.astype(np.uint16) * 16, BitsStored=12, **tags)
    else:
        write_dicom(path, image, jpeg=True, **tags)


def write_lines(path, lines):
    """Write UTF-8 text with LF line ends; returns `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    return path
