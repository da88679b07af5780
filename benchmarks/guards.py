"""Stage 00: what its guards cost, per image, in one process.

Goal: at most 10 % of the time. `unguarded` gives the same PNGs and manifest rows with fast parts alike and trusts all
files: no limits on sizes, no checks of headers, ids and frames, no whole-or-nothing writes, no key to go on from.

    python -m benchmarks.guards --input DIR
"""

import hashlib
import itertools
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
from pydicom.encaps import generate_frames

from benchmarks import timing
from benchmarks.preparing import ours
from pneumothorax import png, rle
from pneumothorax.data import jobs, one_image


def main() -> None:
    args = timing.parser(__doc__).parse_args()
    timing.machine("opencv-python-headless", "pydicom")
    with timing.material(args) as (paths, labels), tempfile.TemporaryDirectory() as temporary:
        root = labels.parent
        job = jobs.plan(labels, None, size=512, salt="salt", output=Path(temporary) / "first")
        labelled = [path for path in paths if "row" in one_image.prepare(path, root, job, None)]
        rounds = itertools.count()
        ways = {
            "guarded": lambda: ours(
                labelled, root, replace(job, output=Path(temporary) / str(next(rounds)))
            ),
            "unguarded": lambda: unguarded(labelled, job, Path(temporary) / str(next(rounds))),
        }
        medians = timing.compare(ways, repeats=args.repeats, per=len(labelled), unit="image")
    timing.ratio(medians, "guarded", "unguarded", "at most 1.1")


def unguarded(paths: list[Path], job: jobs.Job, folder: Path) -> list[dict[str, Any]]:
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    return [manifest_row(path, job, folder) for path in paths]


def manifest_row(path: Path, job: jobs.Job, folder: Path) -> dict[str, Any]:
    dataset = pydicom.dcmread(path)
    image_id = str(dataset.SOPInstanceUID)
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
        image = cv2.imdecode(np.frombuffer(frame, np.uint8), cv2.IMREAD_UNCHANGED)
    else:
        image = dataset.pixel_array
    rows, mask_pixels, mask_png = job.listed.rows[image_id], 0, b""
    if rows:
        mask = rle.union(rows, image.shape)
        mask_pixels, mask_png = (
            int(np.count_nonzero(mask)),
            png.encode_mask(png.downsample_mask(mask, job.size)),
        )
        (folder / "masks" / f"{image_id}.png").write_bytes(mask_png)
    image_png = png.encode(png.downsample(image, job.size))
    (folder / "images" / f"{image_id}.png").write_bytes(image_png)
    return {
        "image_id": image_id,
        "patient_id": labels.patient_hash(str(dataset.get("PatientID", "")), job.salt),
        "view": str(dataset.get("ViewPosition", "")),
        "sex": str(dataset.get("PatientSex", "")),
        "age": str(dataset.get("PatientAge", "")),
        "height": dataset.Rows,
        "width": dataset.Columns,
        "photometric": str(dataset.PhotometricInterpretation),
        "positive": int(bool(rows)),
        "mask_pixels": mask_pixels,
        "mask_rows": len(rows),
        "source": path.relative_to(job.labels.parent).as_posix(),
        "sha256": hashlib.sha256(image_png).hexdigest(),
        "mask_sha256": hashlib.sha256(mask_png).hexdigest(),
    }


if __name__ == "__main__":
    main()
