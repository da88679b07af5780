"""Stage 00: what its guards cost, per image, in one process.

Goal: at most 10 % of the time. `unguarded` gives the same PNGs and manifest rows, as
fast, but trusts every file: it checks no sizes, headers, ids and frames, may leave
half-written files, and keeps no key to resume from.

    python -m benchmarks.guards --input DIR
"""

import hashlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
from pydicom.encaps import generate_frames

from benchmarks import preparing, timing
from pneumothorax import png, rle
from pneumothorax.data import jobs
from pneumothorax.data.labels import patient_hash


def main() -> None:
    args = timing.parser(__doc__).parse_args()
    timing.machine("opencv-python-headless", "pydicom")
    with preparing.material(args) as given:
        ways = {
            "guarded": given.prepare,
            "unguarded": lambda: unguarded(given.files, given.job, given.new_folder()),
        }
        medians = timing.compare(ways, repeats=args.repeats, per=len(given.files), unit="image")
    timing.ratio(medians, "guarded", "unguarded", "at most 1.1")


def unguarded(paths: list[Path], job: jobs.Job, folder: Path) -> list[dict[str, Any]]:
    """Write the PNGs to the folder; the manifest rows."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    return [manifest_row(path, job, folder) for path in paths]


def manifest_row(path: Path, job: jobs.Job, folder: Path) -> dict[str, Any]:
    """One image, the short way."""
    dataset = pydicom.dcmread(path)
    image_id = str(dataset.SOPInstanceUID)
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
        image = cv2.imdecode(np.frombuffer(frame, np.uint8), cv2.IMREAD_UNCHANGED)
    else:
        image = dataset.pixel_array
    rows, mask_pixels, mask_png = job.listed.annotations[image_id].rows, 0, b""
    if rows:
        mask = rle.union(rows, image.shape)
        mask_pixels = int(np.count_nonzero(mask))
        mask_png = png.encode_mask(png.downsample_mask(mask, job.size))
        (folder / "masks" / f"{image_id}.png").write_bytes(mask_png)
    image_png = png.encode(png.downsample(image, job.size))
    (folder / "images" / f"{image_id}.png").write_bytes(image_png)
    return {
        "image_id": image_id,
        "patient_id": patient_hash(str(dataset.get("PatientID", "")), job.salt),
        "view": str(dataset.get("ViewPosition", "")),
        "sex": str(dataset.get("PatientSex", "")),
        "age": str(dataset.get("PatientAge", "")),
        "height": dataset.Rows,
        "width": dataset.Columns,
        "photometric": str(dataset.PhotometricInterpretation),
        "positive": int(bool(rows)),
        "mask_pixels": mask_pixels,
        "mask_rows": len(rows),
        "source": path.relative_to(job.tables["label file"].parent).as_posix(),
        "sha256": hashlib.sha256(image_png).hexdigest(),
        "mask_sha256": hashlib.sha256(mask_png).hexdigest(),
    }


if __name__ == "__main__":
    main()
