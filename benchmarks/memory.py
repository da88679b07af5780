"""Memory of stages 00, 03, 04 and 05 with as many images as the competition has.

Goal: at most 1 GiB for each, all its processes together, with 12,000 training and 3,205
test images. The DICOM files are links to a few phantoms, and the network has random
weights and works at 32 x 32: neither changes what is kept in memory. Linux only (reads
/proc).

    python -m benchmarks.memory
    python -m benchmarks.memory --train 1200 --test 320
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from benchmarks import processes, timing
from pneumothorax.compute import checkpoint
from pneumothorax.data import discovery, labels
from pneumothorax.phantom import writing
from pneumothorax.pipeline import artifacts, lineage, records
from pneumothorax.training import config

SETTINGS = {
    "model_settings": {
        "encoder": "resnet18",
        "encoder_weights": "none",
        "decoder_channels": [8, 8, 8, 8, 8],
    },
    "image_size": 32,
}


def parser(manual: str) -> argparse.ArgumentParser:
    """The flags of a benchmark that runs whole stages."""
    made = timing.bare_parser(manual)
    flag = made.add_argument
    flag("--train", type=int, default=12_000, help="training images (default: %(default)s)")
    flag("--test", type=int, default=3_205, help="test images (default: %(default)s)")
    flag("--workers", type=int, default=2, help="processes per stage (default: %(default)s)")
    return made


def main() -> None:
    args = parser(__doc__).parse_args()
    timing.machine("joblib", "pandas", "torch")
    with tempfile.TemporaryDirectory() as temporary:
        source, output = Path(temporary, "input"), Path(temporary, "output")
        write_input(source, args.train, args.test)
        common = ["--output", str(output), "--workers", str(args.workers)]
        measure("00_prepare_data.py", "--input", str(source), *common)
        measure("01_make_folds.py", "--folds", "2", *common)
        write_run(output)
        measure("03_predict.py", "--run", "random", "--batch-size", "64", *common)
        measure("04_submit.py", "--run", "random", *common)
        measure("05_report.py", *common)


def write_input(
    folder: Path, n_train: int, n_test: int, *, phantoms: int = 40, radiograph_px: int = 1024
) -> None:
    """Links to a few phantoms. Only the links' names are listed, so they are the ids."""
    writing.write_dataset(
        folder / "phantoms",
        train_images=phantoms,
        test_images=1,
        unlabelled_images=0,
        size=radiograph_px,
    )
    rows_of = labels.read(folder / "phantoms" / "train-rle.csv").rows
    found = discovery.search(folder / "phantoms").images
    originals = [path for path in found if path.stem in rows_of]
    lines = ["ImageId,EncodedPixels"]
    for number in range(n_train):
        original = originals[number % len(originals)]
        link(original, folder / "train" / f"train.{number}.dcm")
        lines += [f"train.{number},{text}" for text in rows_of[original.stem] or ("-1",)]
    for number in range(n_test):
        link(originals[number % len(originals)], folder / "test" / f"ID_{number}.dcm")
    (folder / "stage_2_train.csv").write_text("\n".join(lines) + "\n")
    sample = ["ImageId,EncodedPixels", *(f"ID_{number},-1" for number in range(n_test))]
    (folder / "sample_submission.csv").write_text("\n".join(sample) + "\n")
    for path in [*found, *(folder / "phantoms").glob("*.csv")]:
        path.unlink()


def link(original: Path, name: Path) -> None:
    name.parent.mkdir(parents=True, exist_ok=True)
    os.link(original, name)


def write_run(output: Path) -> None:
    """The output of stage 02 for two folds, with random weights."""
    import models

    settings = config.TrainConfig(**SETTINGS)
    inputs = lineage.train_inputs(output)
    config.save(output / artifacts.Run("random").config, settings)
    for fold in range(2):
        network = models.build(settings.model, **settings.model_settings)
        path = artifacts.Run("random").fold(fold).best_weights
        checkpoint.save(
            output / path, {"config": config.as_dict(settings), "network": network.state_dict()}
        )
        history = pd.DataFrame([dict.fromkeys(artifacts.HISTORY_COLUMNS, 1)])
        artifacts.write_table(output, artifacts.Run("random").fold(fold).history, history)
        same = {"settings": config.as_dict(settings), "inputs": inputs}
        outputs = [path, artifacts.Run("random").fold(fold).history.path]
        records.write(
            output, artifacts.Run("random").fold(fold).trained, **same, outputs=outputs, seconds=0.0
        )


def measure(*command: str, title: str = "") -> None:
    """Run a stage; print its seconds and the peak memory of all its processes."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([sys.executable, *command], stdout=log, stderr=log)
        gib = processes.peak(process, processes.proportional_set_size) / 2**30
        if process.returncode:
            log.seek(0)
            sys.exit(log.read().decode())
    seconds = time.perf_counter() - started
    measured = f"{seconds:6.0f} s   {gib:5.2f} GiB   (goal: at most 1)"
    print(f"{title or command[0]:30s} {measured}", flush=True)


if __name__ == "__main__":
    main()
