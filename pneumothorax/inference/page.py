"""The page of a results folder: every image with its mask, for a browser without a network.

A page opened from a folder may load images and scripts but not data, and its scripts may
not read the pixels of images: the data are inside the page, and a filter of the browser
colours the mask files. Overlays cannot be faded, as the outline hides the pixels below it,
so the folder holds a small copy of each radiograph, too.
"""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import cv2
import numpy as np

from pneumothorax import plotting
from pneumothorax.inference import overlay, results
from pneumothorax.pipeline import artifacts, atomic

SHOWN_PX = 1024  # height or width of the copies, whichever is longer
JPEG_QUALITY = 85
COLUMNS = "image_id source height width p_positive area_px area_mm2 not_a_radiograph".split()


def radiograph(image: np.ndarray) -> bytes:
    """(H, W) uint8 -> a grey JPEG file in the image's proportions, SHOWN_PX long at most."""
    factor = SHOWN_PX / max(image.shape)
    if factor < 1:
        height, width = (max(1, round(factor * length)) for length in image.shape)
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))
    if not done:
        raise RuntimeError(f"OpenCV cannot encode an image of shape {image.shape}, {image.dtype}")
    return data.tobytes()


def write(folder: Path, rows: Sequence[Mapping[str, Any]], *, caution: str, notice: str) -> Path:
    """Write the page of the images in `rows`, replacing an earlier one; returns its path.

    Args:
        rows: of results.PREDICTIONS, with the values that predicting gives them: an
            unknown area_mm2 is "".
        caution: what a reader must know about the networks; "" if there is nothing.
        notice: what the predictions must not be used for.
    """
    others = sum(bool(row["not_a_radiograph"]) for row in rows)
    cautions = [caution] if caution else []
    if others:
        are = "is not a radiograph" if others == 1 else "are not radiographs"
        cautions.append(
            f"{others:,} of {len(rows):,} images {are} according to the header: what the networks "
            "find there means nothing."
        )
    if not rows:
        cautions.append(f"No image was predicted: {artifacts.REJECTED.path} says why.")
    on_phantoms = any(row["trained_on"] == "phantoms" for row in rows)
    page = Template(_template("predictions.html")).substitute(
        prediction="#" + bytes(plotting.PREDICTION_RGB).hex(),
        style=plotting.template("pneumothorax", "page.css"),
        script=plotting.template("pneumothorax", "gallery.js") + _template("predictions.js"),
        cautions="\n".join(f'<p class="caution">{_sentence(text)}</p>' for text in cautions),
        notice=_sentence(notice),
        images=f"{len(rows):,}",
        positives=f"{sum(row['area_px'] > 0 for row in rows):,}",
        table=results.PREDICTIONS.path,
        data=_json(rows, overlay.PHANTOMS if on_phantoms else ""),
    )
    path = folder / results.PAGE
    atomic.write_text(path, page)
    return path


def _json(rows: Sequence[Mapping[str, Any]], caution: str) -> str:
    """What the page's script reads, in a form that cannot end its script element."""
    columns = {name: [row[name] for row in rows] for name in COLUMNS}
    columns["area_mm2"] = [None if area == "" else area for area in columns["area_mm2"]]
    paths = {
        "radiograph": results.radiograph("*"),
        "mask": results.mask("*"),
        "overlay": results.overlay("*"),
    }
    data = {"paths": paths, "caution": caution, "images": columns}
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _sentence(text: str) -> str:
    """Text with a capital letter at its beginning and a full stop at its end, as HTML."""
    return html.escape(text[:1].upper() + text[1:].rstrip(".") + ".")


def _template(name: str) -> str:
    return plotting.template("pneumothorax.inference", name)
