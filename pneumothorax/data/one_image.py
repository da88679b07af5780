"""One input file -> its PNGs in the cache and its entry in the journal.

An entry holds either `row`, the image's row of the manifest, or `code` and `message`,
the reason why the file cannot be used. Entries are plain JSON.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from pneumothorax import dicom, png, rle
from pneumothorax.data.discovery import source_name
from pneumothorax.data.jobs import Job, Listed
from pneumothorax.data.labels import patient_hash
from pneumothorax.errors import BadInput
from pneumothorax.pipeline import artifacts, atomic, records

VERSION = 3  # increase it when cached files would come out differently: old journals are ignored
UNLABELLED = "UNLABELLED"
BAD_LABEL = "SIZE_MISMATCH"

Entry = dict[str, Any]


def prepare(path: Path, root: Path, job: Job, known: Entry | None) -> Entry:
    """Prepare one file below the input folder `root`; never raises for a bad file.

    Args:
        known: the file's entry from an earlier run. It is returned unchanged when
            neither the file nor its label has changed and its PNGs have the recorded
            hashes.
    """
    if known and _is_current(known, path, job):
        return known
    try:
        return _prepare(path, root, job)
    except dicom.Rejected as error:
        return {"code": error.code, "message": str(error)}


def identify(uid: str, stem: str, listed: Listed) -> tuple[str, str]:
    """(image id, split) of a file with this SOPInstanceUID and this name (no suffix).

    The two usually agree; where they differ, the one that is listed names the image.
    Raises Rejected when neither or both are listed.
    """
    labelled, tested = listed.rows, listed.test_ids
    names = [name for name in dict.fromkeys((uid, stem)) if name in labelled or name in tested]
    if uid != stem and len(names) != 1:
        found = "both are" if names else "neither is"
        raise dicom.Rejected("BAD_ID", f"SOPInstanceUID and file name differ, and {found} listed")
    if not names:
        raise dicom.Rejected(
            UNLABELLED, "in neither the label file nor the sample submission: not used"
        )
    return names[0], artifacts.TRAIN if names[0] in labelled else artifacts.TEST


def remove_cached(image_id: str, job: Job) -> None:
    """Remove the image's PNGs, if any, from the cache."""
    _store(image_id, job, image_png=b"", mask_png=b"")


def _prepare(path: Path, root: Path, job: Job) -> Entry:
    listed = job.listed  # first: a table that cannot be read here is not the file's fault
    version = _version(path)  # before the file is read: a later change is noticed by the next run
    header, dataset = dicom.open_header(path)
    image_id, split = identify(header.image_id, path.stem, listed)
    radiograph = dicom.decode(header, dataset)
    label_rows = listed.rows.get(image_id, ())
    try:
        mask_pixels, mask_png = _encode_mask(label_rows, radiograph.image.shape, job.size)
    except BadInput as error:
        message = f"label of {image_id}: {error}"
        return {"code": BAD_LABEL, "message": message, "label_error": True}
    image_png = png.encode(png.downsample(radiograph.image, job.size))
    _store(image_id, job, image_png=image_png, mask_png=mask_png)
    # A SOPInstanceUID that does not name the image is not kept: in a damaged file it may be
    # the text of another tag.
    uid = header.image_id if header.image_id in (path.stem, image_id) else ""
    height, width = radiograph.image.shape
    row = {
        "image_id": image_id,
        "split": split,
        "patient_id": patient_hash(header.patient_id, job.salt),
        "view": header.view,
        "sex": header.sex,
        "age": header.age,
        "height": height,
        "width": width,
        "positive": int(bool(label_rows)),
        "mask_pixels": mask_pixels,
        "mask_rows": len(label_rows),
        "source": source_name(path, root),
        "decoder": radiograph.decoder,
        "sha256": digest(image_png),
        "mask_sha256": digest(mask_png),
    }
    key = _key(version, path.stem, uid, image_id, job)
    return {"key": key, "uid": uid, "colour": radiograph.colour, "row": row}


def _encode_mask(
    label_rows: tuple[str, ...], shape: tuple[int, ...], size: int
) -> tuple[int, bytes]:
    """The mask's (area in pixels of the image, PNG at `size`); (0, b"") without rows."""
    if not label_rows:
        return 0, b""
    height, width = shape
    mask = rle.union(label_rows, (height, width))
    return int(np.count_nonzero(mask)), png.encode_mask(png.downsample_mask(mask, size))


def _store(image_id: str, job: Job, *, image_png: bytes, mask_png: bytes) -> None:
    """Write both PNGs to the cache, whole or not at all; b"" removes an old one."""
    if job.output is None:
        return
    cache = artifacts.Cache(job.size)
    for path, data in ((cache.image(image_id), image_png), (cache.mask(image_id), mask_png)):
        if data:  # without fsync: the journal holds the hash, so a damaged file is noticed
            atomic.write_bytes(job.output / path, data, sync=False)
        else:
            (job.output / path).unlink(missing_ok=True)


def _is_current(known: Entry, path: Path, job: Job) -> bool:
    if "row" not in known or job.output is None:
        return False  # a rejected file may decode today, with another decoder installed
    row = known["row"]
    image_id, cache = row["image_id"], artifacts.Cache(job.size)
    expected = {cache.image(image_id): row["sha256"], cache.mask(image_id): row["mask_sha256"]}
    try:
        if known["key"] != _key(_version(path), path.stem, known["uid"], image_id, job):
            return False
        return all(
            not sha256 or records.sha256(job.output / cached) == sha256
            for cached, sha256 in expected.items()
        )
    except (OSError, dicom.Rejected):
        return False


def _version(path: Path) -> tuple[str, int, int]:
    """(absolute path, size in bytes, time of the last change in ns) of a file.

    Raises Rejected.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise dicom.Rejected("IO", f"cannot be read: {error.strerror or error}") from error
    return str(path.resolve()), found.st_size, found.st_mtime_ns


def _key(version: tuple[str, int, int], stem: str, uid: str, image_id: str, job: Job) -> str:
    """A hash of everything an entry was made from; any change makes the entry stale.

    Args:
        uid: "" if it was not kept. Then every change of the tables counts, since a
            new table might list it.
    """
    rows, test_ids = job.listed.rows, job.listed.test_ids
    listed: Any = [(name in rows, name in test_ids) for name in (uid, stem)]
    if not uid:
        listed = job.tables_hash
    made_from = (*version, listed, rows.get(image_id))
    return digest(repr((VERSION, job.size, job.salt, *made_from)).encode())


def digest(data: bytes) -> str:
    """sha256 as 64 hex digits; "" for b""."""
    return hashlib.sha256(data).hexdigest() if data else ""
