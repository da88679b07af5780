"""Stage 04 with as many images as the competition has: one run, and three blended.

Goals: thresholds for 12,000 images in at most 3 minutes; 12,000 out-of-fold and 3,205
test maps from 3 runs x 5 folds blended, tuned and submitted in at most 10 minutes,
below 2 GiB. The maps are generated at 512 x 512: soft lesions, shifted from the truth
to varying degrees, false alarms, and in most negatives only noise below the thresholds.
Linux only (reads /proc).

    python -m benchmarks.submitting
    python -m benchmarks.submitting --train 1200 --test 320
"""

import tempfile
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from benchmarks import timing
from benchmarks.memory import measure, parser
from pneumothorax import png, rle
from pneumothorax.masks import postprocess
from pneumothorax.pipeline import artifacts, atomic, lineage, records

RUNS = ("first", "second", "third")
FOLDS = 5
SIZE = 512
SHAPE = (1024, 1024)
SHARE_POSITIVE = 0.22
KINDS = 250  # different images; maps of the same kind differ only by their noise


def main() -> None:
    args = parser(__doc__).parse_args()
    timing.machine("numpy", "opencv-python-headless", "joblib", "pandas")
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary)
        write_output(output, args.train, args.test)
        common = ["--output", str(output), "--workers", str(args.workers)]
        measure("04_submit.py", "--run", RUNS[0], *common, title="one run")
        blend = ["--runs", ",".join(RUNS), "--name", "blend"]
        measure("04_submit.py", *blend, *common, title="three runs, weights fitted")
        every = [*blend[:2], "--name", "everything", "--fill-holes", "--image-threshold"]
        measure("04_submit.py", *every, *common, title="the same, every threshold")


def write_output(output: Path, n_train: int, n_test: int) -> None:
    """The output of stages 00 to 03, with generated maps instead of predicted ones."""
    rng = np.random.default_rng(0)
    truths = [truth(rng) if rng.random() < SHARE_POSITIVE else None for _ in range(KINDS)]
    labels = [rle.encode(one) if one is not None else "" for one in truths]
    soft = [[soft_map(one, rng) for _ in RUNS] for one in truths]
    ids = {
        artifacts.TRAIN: [f"train.{number}" for number in range(n_train)],
        artifacts.TEST: [f"ID_{number}" for number in range(n_test)],
    }
    write_prepared(output, ids, labels)
    for number, run in enumerate(RUNS):
        rows = []
        for split, folder in ((artifacts.TRAIN, artifacts.OOF), (artifacts.TEST, artifacts.TEST)):
            (output / artifacts.Run(run).probability_map(folder, "x")).parent.mkdir(parents=True)
            for place, image_id in enumerate(ids[split]):
                data = png.encode_small(with_noise(soft[place % KINDS][number], rng))
                path = output / artifacts.Run(run).probability_map(folder, image_id)
                path.write_bytes(data)
                fold = place % FOLDS if split == artifacts.TRAIN else ""
                p_max = float(png.decode(data, path).max()) / 255
                row = {
                    "image_id": image_id,
                    "split": folder,
                    "fold": fold,
                    "p_max": p_max,
                    "p_classification": "",
                }
                rows.append({**row, "sha256": records.sha256(path)})
        write_run(output, run, pd.DataFrame(rows))


def truth(rng: np.random.Generator) -> np.ndarray:
    """(1024, 1024) mask of 0 and 1: a crescent, as along the chest wall."""
    mask = np.zeros(SHAPE, dtype=np.uint8)
    centre, axes = rng.integers(300, 724, 2).tolist(), rng.integers(60, 260, 2).tolist()
    cv2.ellipse(mask, centre, axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
    inner = [centre[0] + int(rng.integers(10, 60)), centre[1]]
    cv2.ellipse(mask, inner, axes, float(rng.uniform(0, 180)), 0, 360, 0, -1)
    return mask


def soft_map(mask: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """(512, 512) float32 in [0, 1]: the truth, shifted and blurred.

    One negative in five has a false alarm.
    """
    if mask is None:
        mask = truth(rng) if rng.random() < 0.2 else np.zeros(SHAPE, dtype=np.uint8)
    shifted = np.roll(mask, rng.integers(-20, 21, 2), axis=(0, 1))
    small = cv2.resize(shifted.astype(np.float32), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    return cv2.GaussianBlur(small, (0, 0), float(rng.uniform(2, 8))) * float(rng.uniform(0.3, 1.0))


def with_noise(soft: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(512, 512) uint8: a little noise everywhere, as networks leave it."""
    coarse = rng.random((SIZE // 16, SIZE // 16), dtype=np.float32) * 0.08
    return postprocess.quantise(np.clip(soft + cv2.resize(coarse, (SIZE, SIZE)), 0, 1))


def write_prepared(output: Path, ids: dict[str, list[str]], labels: list[str]) -> None:
    """The files of stages 00 and 01 that stage 04 reads, and their records."""
    rows, folds, label_rows = [], [], []
    for split, image_ids in ids.items():
        for place, image_id in enumerate(image_ids):
            text = labels[place % KINDS] if split == artifacts.TRAIN else ""
            who = {"image_id": image_id, "patient_id": f"patient{place // 2}"}
            row = dict.fromkeys(artifacts.MANIFEST.columns, "")
            row |= dict.fromkeys(artifacts.MANIFEST.integers, 0) | who
            row |= {"split": split, "height": SHAPE[0], "width": SHAPE[1]}
            rows.append(row | {"positive": int(bool(text))})
            if split == artifacts.TRAIN:
                folds.append({**who, "fold": place % FOLDS, "stratum": ""})
                label_rows += [{"image_id": image_id, "rle": text}] if text else []
    for table, table_rows in (
        (artifacts.MANIFEST, rows),
        (artifacts.FOLDS, folds),
        (artifacts.LABELS, label_rows),
    ):
        artifacts.write_table(output, table, pd.DataFrame(table_rows))
    sample = ["ImageId,EncodedPixels", *(f"{image_id},-1" for image_id in ids[artifacts.TEST])]
    atomic.write_text(output / artifacts.SAMPLE_SUBMISSION, "\n".join(sample) + "\n")
    prepared = [artifacts.MANIFEST.path, artifacts.LABELS.path, artifacts.SAMPLE_SUBMISSION]
    facts = {artifacts.TRAINING_IMAGES: "generated", artifacts.TEST_IMAGES: "generated"}
    records.write(output, artifacts.PREPARED, settings={}, inputs={}, outputs=prepared, **facts)
    inputs = lineage.fold_inputs(output)
    records.write(
        output, artifacts.FOLDED, settings={}, inputs=inputs, outputs=[artifacts.FOLDS.path]
    )


def write_run(output: Path, run: str, predictions: pd.DataFrame) -> None:
    """The records of stages 02 and 03; the weights are empty files."""
    trained = lineage.train_inputs(output)
    for fold in range(FOLDS):
        path = artifacts.Run(run).fold(fold).best_weights
        atomic.write_bytes(output / path, b"")
        records.write(
            output,
            artifacts.Run(run).fold(fold).trained,
            settings={},
            inputs=trained,
            outputs=[path],
        )
    artifacts.write_table(output, artifacts.Run(run).predictions, predictions)
    splits, folds = [artifacts.OOF, artifacts.TEST], list(range(FOLDS))
    inputs = lineage.predict_inputs(output, run, folds, splits)
    settings = {"splits": splits, "folds": folds}
    table = artifacts.Run(run).predictions.path
    records.write(
        output, artifacts.Run(run).predicted, settings=settings, inputs=inputs, outputs=[table]
    )


if __name__ == "__main__":
    main()
