"""Masks like pneumothoraces, and a prepared output folder, for tests of submissions."""

import runpy

import cv2
import numpy as np
import pandas as pd

from pneumothorax.pipeline import artifacts, records, stage
from tests.helpers.stages import ROOT, write_lines

SIZE = 1024


def drawn(rng, size=SIZE):
    """(size, size) uint8: a typical mask, an upright crescent at the chest wall."""
    mask = np.zeros((size, size), np.uint8)
    side = rng.choice([-1, 1])
    row, column = rng.uniform(0.2, 0.35), 0.5 + side * rng.uniform(0.22, 0.3)
    axes = int(rng.uniform(0.015, 0.03) * size), int(rng.uniform(0.08, 0.16) * size)
    cv2.ellipse(
        mask, (int(column * size), int(row * size)), axes, side * rng.uniform(0, 15), 0, 360, 1, -1
    )
    return mask


def edges(mask):
    """0-based starts and ends of the pixel runs down the columns, from the pixels."""
    flat = np.concatenate([[0], mask.T.ravel(), [0]]).astype(int)
    return np.flatnonzero(np.diff(flat) == 1), np.flatnonzero(np.diff(flat) == -1)


def absolute(mask, first=0):
    """A row of absolute starts; `first` is the number of the first pixel."""
    starts, ends = edges(mask)
    return " ".join(
        f"{start + first} {end - start}" for start, end in zip(starts, ends, strict=True)
    )


def downsampled(mask, size):
    return cv2.resize(mask, (size, size), interpolation=cv2.INTER_NEAREST)


def prepared(folder, training, test_shapes):
    """An output folder as stage 00 leaves it.

    Args:
        training: a row of run lengths per training image, all 1024 x 1024.
        test_shapes: test image id -> (H, W).
    """
    ids = [f"train{number}" for number in range(len(training))]
    shapes = [(SIZE, SIZE)] * len(ids) + list(test_shapes.values())
    manifest = pd.DataFrame("", index=range(len(shapes)), columns=list(artifacts.MANIFEST.columns))
    manifest["image_id"] = [*ids, *test_shapes]
    manifest["split"] = [artifacts.TRAIN] * len(ids) + [artifacts.TEST] * len(test_shapes)
    manifest[["height", "width"]] = shapes
    manifest["positive"] = [int(text != "-1") for text in training] + [0] * len(test_shapes)
    manifest[["mask_pixels", "mask_rows"]] = 0
    positive = [
        (image_id, text) for image_id, text in zip(ids, training, strict=True) if text != "-1"
    ]
    artifacts.write_table(folder, artifacts.MANIFEST, manifest)
    artifacts.write_table(
        folder, artifacts.LABELS, pd.DataFrame(positive, columns=list(artifacts.LABELS.columns))
    )
    write_lines(
        folder / artifacts.SAMPLE_SUBMISSION,
        ["ImageId,EncodedPixels", *(f"{i},-1" for i in test_shapes)],
    )
    facts = {artifacts.TRAINING_IMAGES: "a", artifacts.TEST_IMAGES: "b"}
    sealed = [artifacts.MANIFEST.path, artifacts.LABELS.path, artifacts.SAMPLE_SUBMISSION]
    records.write(folder, artifacts.PREPARED, settings={}, inputs={}, outputs=sealed, **facts)
    return folder


def called(*args):
    """The exit code of check_submission.py."""
    main = runpy.run_path(str(ROOT / "check_submission.py"), run_name="script")["main"]
    return stage.exit_code(lambda: main([str(argument) for argument in args]))
