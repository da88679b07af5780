"""The gallery's files: a thumbnail of every image, and a data file with scores and outlines.

A page opened from a folder may load scripts but not data, so the data file is a script.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from pneumothorax import png, rle
from pneumothorax.pipeline import artifacts, atomic
from pneumothorax.pipeline.engine import Engine, in_order
from pneumothorax.scores import per_image

THUMBNAILS, DATA = "gallery", "gallery.js"  # below the report's folder
BEFORE_DATA, AFTER_DATA = "window.GALLERY = ", ";\n"  # around the JSON in DATA
THUMBNAIL_PX = 256
JPEG_QUALITY = 85
IMAGES_PER_TASK = 32

# Outlines at 512, simplified by a pixel, are shorter than exact ones at 256 and just as close:
# 150 instead of 410 bytes, Dice 0.96 for both, measured on 600 masks of SIIM-ACR.
GRID = 512
SIMPLIFIED_BY_PX = 1.0

OUTCOMES = ("found", "missed", "false positive", "true negative")
KNOWN = ("image_id", "view", "sex", "height", "width")  # the manifest's columns used here


@dataclass(frozen=True)
class Item:
    """One image to draw: the cached image, the thumbnail's path, the labels' size (H, W), and
    the masks as run lengths: the rows of the label, and one row per run.
    """

    image: Path
    thumbnail: Path
    shape: tuple[int, int]
    label_rows: tuple[str, ...]
    predictions: tuple[str, ...]


def write(
    output: Path,
    folder: Path,
    runs: Mapping[str, pd.DataFrame],
    manifest: pd.DataFrame,
    *,
    cache_size: int,
    workers: int,
) -> list[str]:
    """Write the thumbnails and the data file of all images, replacing earlier ones.

    Args:
        folder: the page's folder.
        runs: {run: artifacts.Submission.out_of_fold rows}, all of the same images, in the
            order of the page's menus; test images have `fold` per_image.TEST_FOLD.
        manifest: artifacts.MANIFEST rows.

    Returns the paths of the written files below `folder`, in the manifest's order.
    """
    shutil.rmtree(folder / THUMBNAILS, ignore_errors=True)  # images may have been removed
    (folder / THUMBNAILS).mkdir(parents=True)
    images = predicted_images(runs, manifest)
    calls = [(item,) for item in items(output, folder, runs, images, cache_size)]
    outlines = in_order(draw, calls, Engine(workers), per_task=IMAGES_PER_TASK, title="gallery")
    large = os.path.relpath((output / artifacts.Cache(cache_size).image("")).parent, folder)
    write_data(folder / DATA, data(runs, images, outlines, large=Path(large).as_posix()))
    return [*(f"{THUMBNAILS}/{image_id}.jpg" for image_id in images["image_id"]), DATA]


def predicted_images(runs: Mapping[str, pd.DataFrame], manifest: pd.DataFrame) -> pd.DataFrame:
    """The manifest's rows of the predicted images, in its order, with `fold` and `true_px`."""
    facts = next(iter(runs.values()))[["image_id", "fold", "true_px"]]
    return manifest[list(KNOWN)].merge(facts, on="image_id", validate="one_to_one")


def items(
    output: Path,
    folder: Path,
    runs: Mapping[str, pd.DataFrame],
    images: pd.DataFrame,
    cache_size: int,
) -> list[Item]:
    """One per row of `images` (`predicted_images`)."""
    labels = artifacts.label_rows(output)
    if (images["fold"] == per_image.TEST_FOLD).any():
        labels |= artifacts.label_rows(output, artifacts.TEST_LABELS)
    rows_of = [dict(zip(frame["image_id"], frame["rle"], strict=True)) for frame in runs.values()]
    sizes = zip(images["height"].tolist(), images["width"].tolist(), strict=True)
    return [
        Item(
            output / artifacts.Cache(cache_size).image(image_id),
            folder / THUMBNAILS / f"{image_id}.jpg",
            shape,
            labels.get(image_id, ()),
            tuple(rows[image_id] for rows in rows_of),
        )
        for image_id, shape in zip(images["image_id"], sizes, strict=True)
    ]


def draw(item: Item) -> tuple[str, ...]:
    """Write the thumbnail; return the outlines of the truth and of each run's prediction."""
    atomic.write_bytes(item.thumbnail, thumbnail(png.read(item.image)), sync=False)
    truth = outline(rle.union(item.label_rows, item.shape)) if item.label_rows else ""
    return truth, *(
        outline(rle.decode(text, item.shape)) if text != rle.EMPTY else ""
        for text in item.predictions
    )


def thumbnail(image: np.ndarray) -> bytes:
    """(S, S) uint8 -> a grey JPEG file of THUMBNAIL_PX x THUMBNAIL_PX."""
    done, data = cv2.imencode(
        ".jpg", png.downsample(image, THUMBNAIL_PX), (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY)
    )
    if not done:
        raise RuntimeError(f"OpenCV cannot encode an image of shape {image.shape}, {image.dtype}")
    return data.tobytes()


def outline(mask: np.ndarray) -> str:
    """(H, W) uint8 of 0 and 1 -> an SVG path along the centres of the border pixels.

    "" for an empty mask. Coordinates are pixels of a GRID x GRID image, counted from 0.
    Filled by the even-odd rule and stroked one pixel wide, the path covers the mask;
    without the stroke, components one pixel wide would vanish.
    """
    small = png.downsample_mask(mask, GRID)
    contours, _ = cv2.findContours(small, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return "".join(
        _subpath(cv2.approxPolyDP(contour, SIMPLIFIED_BY_PX, closed=True)) for contour in contours
    )


def _subpath(contour: np.ndarray) -> str:
    """(N, 1, 2) of x, y -> "Mx yldx dy dx dyz"; a minus sign needs no space before it."""
    points = contour[:, 0, :].astype(int)
    steps = " ".join(map(str, np.diff(points, axis=0).ravel().tolist())).replace(" -", "-")
    return f"M{points[0, 0]} {points[0, 1]}{'l' if steps else ''}{steps}z"


def data(
    runs: Mapping[str, pd.DataFrame],
    images: pd.DataFrame,
    outlines: list[tuple[str, ...]],
    *,
    large: str,
) -> dict[str, Any]:
    """What the page's script reads: columns in the order of `images`.

    Args:
        outlines: per image: of the truth, then of each run.
        large: the folder of the cached images, as seen from the page; "" without them.
    """
    columns = list(zip(*outlines, strict=True)) or [()] * (len(runs) + 1)
    return {
        "grid": GRID,
        "thumbnails": THUMBNAILS,
        "large": large,
        "outcomes": OUTCOMES,
        "images": {
            "id": images["image_id"].tolist(),
            "view": images["view"].tolist(),
            "sex": images["sex"].tolist(),
            "fold": images["fold"].tolist(),
            "true_px": images["true_px"].tolist(),
            "pixels": (images["height"] * images["width"]).tolist(),
            "truth": columns[0],
        },
        "runs": [
            {"name": name, **_run_columns(frame, images["image_id"]), "outline": column}
            for (name, frame), column in zip(runs.items(), columns[1:], strict=True)
        ],
    }


def _run_columns(frame: pd.DataFrame, image_ids: pd.Series) -> dict[str, list[Any]]:
    rows = frame.set_index("image_id").loc[image_ids]
    true, predicted = rows["true_px"] > 0, rows["predicted_px"] > 0
    outcome = np.select([true & predicted, true, predicted], [0, 1, 2], 3)  # positions in OUTCOMES
    return {
        "outcome": outcome.tolist(),
        "dice": rows["dice"].round(4).tolist(),
        "predicted_px": rows["predicted_px"].tolist(),
    }


def write_data(path: Path, columns: dict[str, Any]) -> None:
    """As a script that sets window.GALLERY; ASCII, and the same data give the same bytes."""
    atomic.write_text(path, _script(columns))


def shared(folder: Path, ids: Mapping[str, str]) -> dict[str, Path | bytes]:
    """The gallery as it is sent to somebody else: its thumbnails, not the cached images.

    Args:
        folder: the page's folder, where `write` has written.
        ids: image id -> the id to show instead.

    Returns {path, beginning with the folder's name: the content, or the file that has it}.
    """
    text = (folder / DATA).read_text("utf-8")
    columns = json.loads(text.removeprefix(BEFORE_DATA).removesuffix(AFTER_DATA))
    images = columns["images"]
    files: dict[str, Path | bytes] = {
        f"{folder.name}/{THUMBNAILS}/{ids[image_id]}.jpg": folder / THUMBNAILS / f"{image_id}.jpg"
        for image_id in images["id"]
    }
    images["id"] = [ids[image_id] for image_id in images["id"]]
    files[f"{folder.name}/{DATA}"] = _script({**columns, "large": ""}).encode("ascii")
    return files


def _script(columns: dict[str, Any]) -> str:
    return BEFORE_DATA + json.dumps(columns, separators=(",", ":"), allow_nan=False) + AFTER_DATA
