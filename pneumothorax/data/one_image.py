"""One input file -> its PNGs in the cache and its entry in the journal.

An entry holds either `row`, the image's row of the manifest, and `label`, its mask as
text if it came from mask images; or `code` and `message`, the reason why the file
cannot be used. Entries are plain JSON.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from pneumothorax import dicom, png, rle
from pneumothorax.data import raster
from pneumothorax.data.discovery import is_raster, printable, source_name
from pneumothorax.data.jobs import Job
from pneumothorax.data.labels import patient_hash
from pneumothorax.data.layouts import mask_images
from pneumothorax.data.layouts.listed import Annotation, Listed
from pneumothorax.data.layouts.mask_images import BAD_MASK, SIZE_MISMATCH
from pneumothorax.errors import BadInput
from pneumothorax.pipeline import artifacts, atomic, records

VERSION = 6  # increase it when cached files would come out differently: old journals are ignored
UNLABELLED = "UNLABELLED"

Entry = dict[str, Any]
Version = tuple[str, int, int, int]


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
        return {"code": error.code, "message": printable(str(error))}


def identify(uid: str, stem: str, listed: Listed) -> str:
    """The image id of a file with this id in its header and this name (no suffix).

    The two usually agree; where they differ, the one that is listed names the image.
    Raises Rejected when neither or both are listed.
    """
    known = listed.image_ids
    names = [name for name in dict.fromkeys((uid, stem)) if name in known]
    if uid != stem and len(names) != 1:
        found = "both are" if names else "neither is"
        raise dicom.Rejected(
            "BAD_ID", f"the header's id and the file name differ, and {found} listed"
        )
    if not names:
        raise dicom.Rejected(UNLABELLED, "neither annotated nor listed as a test image: not used")
    if not dicom.is_image_id(names[0]):  # a name that no table has checked
        found = f"a file name of {len(names[0])} characters"
        raise dicom.Rejected("BAD_ID", f"{found} that cannot be an image id: use {dicom.ID_RULE}")
    return names[0]


def remove_cached(image_id: str, job: Job) -> None:
    """Remove the image's PNGs, if any, from the cache."""
    _store(image_id, job, image_png=b"", mask_png=b"")


def _prepare(path: Path, root: Path, job: Job) -> Entry:
    listed = job.listed  # first: a table that cannot be read here is not the file's fault
    version = _version(path)  # before the files are read: the next run notices a later change
    image_id, radiograph = _open(path, listed)
    annotation = listed.annotations.get(image_id, Annotation())
    versions = version, *map(_version, annotation.masks)
    header, (height, width) = radiograph.header, radiograph.image.shape
    try:
        mask = _mask(annotation, (height, width), job)
    except dicom.Rejected as error:
        message = printable(f"label of {image_id}: {error}")
        is_wrong = error.code in (SIZE_MISMATCH, BAD_MASK)  # and not a damaged file
        return {"code": error.code, "message": message, "label_error": is_wrong}
    tested = image_id in listed.test_set
    shown = None if tested else mask  # the label of a test image stays out of manifest and cache
    image_png = png.encode(png.downsample(radiograph.image, job.size))
    mask_png = b"" if shown is None else png.encode_mask(png.downsample_mask(shown, job.size))
    _store(image_id, job, image_png=image_png, mask_png=mask_png)
    # A SOPInstanceUID that does not name the image is not kept: in a damaged file it may be
    # the text of another tag.
    uid = header.image_id if header.image_id in (path.stem, image_id) else ""
    row = {
        "image_id": image_id,
        "split": artifacts.TEST if tested else artifacts.TRAIN,
        "patient_id": patient_hash(header.patient_id, job.salt),
        "view": header.view,
        "sex": header.sex,
        "age": header.age,
        "height": height,
        "width": width,
        "positive": int(shown is not None),
        "mask_pixels": 0 if shown is None else int(np.count_nonzero(shown)),
        "mask_rows": 0 if shown is None else max(1, len(annotation.rows)),
        "source": source_name(path, root),
        "decoder": radiograph.decoder,
        "sha256": digest(image_png),
        "mask_sha256": digest(mask_png),
    }
    return {
        "key": _key(path, versions, uid, image_id, job),
        "uid": uid,
        "colour": radiograph.colour,
        "narrow": radiograph.is_narrow,
        "row": row,
        "label": [rle.encode(mask)] if annotation.masks and mask is not None else [],
    }


def _open(path: Path, listed: Listed) -> tuple[str, dicom.Radiograph]:
    """(image id, radiograph). Pixels are decoded only if the image is used."""
    if is_raster(path):
        name = listed.id_of.get(path.name, printable(path.stem))
        image_id = identify(name, name, listed)
        return image_id, raster.read(path, image_id=image_id)
    header, dataset = dicom.open_header(path)
    return identify(header.image_id, path.stem, listed), dicom.decode(header, dataset)


def _mask(annotation: Annotation, shape: tuple[int, int], job: Job) -> np.ndarray | None:
    """(H, W) uint8 of 0 and 1; None for an empty mask.

    Raises Rejected, also if a table says something else than the mask.
    """
    mask = None
    for path in annotation.masks:
        if path.is_symlink() and not job.follow_symlinks:
            message = f"mask {path.name} is not a regular file (links: --follow-symlinks)"
            raise dicom.Rejected("NOT_A_FILE", message)
    if annotation.rows:
        try:
            mask = rle.union(annotation.rows, shape)
        except BadInput as error:
            raise dicom.Rejected(SIZE_MISMATCH, str(error)) from error
    elif annotation.masks:
        union = mask_images.read(annotation.masks, shape, threshold=job.mask_threshold)
        mask = union if union.any() else None
    positive = mask is not None
    if annotation.positive is not None and annotation.positive != positive:
        found = "a mask" if positive else "no mask or an empty one"
        said = "positive" if annotation.positive else "negative"
        raise dicom.Rejected(BAD_MASK, f"{said} by the table, but with {found}")
    return mask


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
    masks = job.listed.annotations.get(image_id, Annotation()).masks
    try:
        versions = tuple(map(_version, (path, *masks)))
        if known["key"] != _key(path, versions, known["uid"], image_id, job):
            return False
        return all(
            not sha256 or records.sha256(job.output / cached) == sha256
            for cached, sha256 in expected.items()
        )
    except (OSError, dicom.Rejected):
        return False


def _version(path: Path) -> Version:
    """Absolute path, size in bytes, times of the last change of contents and of the file in ns.

    Raises Rejected.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise dicom.Rejected("IO", f"cannot be read: {error.strerror or error}") from error
    return str(path.resolve()), found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _key(path: Path, versions: tuple[Version, ...], uid: str, image_id: str, job: Job) -> str:
    """A hash of everything an entry was made from; any change makes the entry stale.

    Args:
        versions: of the file and of its masks.
        uid: "" if it was not kept. Then every change of the tables counts, since a
            new table might list it.
    """
    listed = job.listed
    annotation = listed.annotations.get(image_id, Annotation())
    names = [(name in listed.annotations, name in listed.test_set) for name in (uid, path.stem)]
    made_from = (
        versions,
        names if uid else job.version,
        (listed.id_of.get(path.name), image_id in listed.test_set),
        (annotation.rows, annotation.positive, job.mask_threshold if annotation.masks else None),
    )
    return digest(repr((VERSION, job.size, job.salt, *made_from)).encode())


def digest(data: bytes) -> str:
    """sha256 as 64 hex digits; "" for b""."""
    return hashlib.sha256(data).hexdigest() if data else ""
