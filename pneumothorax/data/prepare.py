"""DICOM files and labels -> cached PNGs and one manifest row per image.

Each file is worked on by itself (`prepare_one`, in a worker) and ends either as a manifest row or as a
rejection with a code; what needs a view of all files (ids that come twice, labels without an image) follows.
"""

import functools
import hashlib
import platform
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pneumothorax import dicom, png, rle
from pneumothorax.data import labels
from pneumothorax.data.discovery import Found, source_name
from pneumothorax.errors import BadInput, bad_list
from pneumothorax.pipeline import artifacts, atomic, records
from pneumothorax.pipeline.engine import Engine, as_finished
from pneumothorax.pipeline.journal import Journal

VERSION = 3  # raise it whenever a cached file would come out differently: earlier journals are then ignored
UNLABELLED = "UNLABELLED"
BAD_LABEL = "SIZE_MISMATCH"
FILES_PER_TASK = 16  # one task costs about as much as preparing a tenth of an image

Entry = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What all files share. `output` None: check everything, write nothing."""

    labels: Path
    sample: Path | None
    tables_hash: str  # a worker may outlive a run, or see another folder: it must not answer from another file
    size: int
    salt: str
    output: Path | None

    @property
    def listed(self) -> "Listed":
        return _listed(self.labels, self.sample, self.tables_hash)


def plan(
    labels_csv: Path, sample_csv: Path | None, *, size: int, salt: str, output: Path | None
) -> Job:
    """The job, with the tables' hash."""
    return Job(labels_csv, sample_csv, _tables_hash(labels_csv, sample_csv), size, salt, output)


def _tables_hash(labels_csv: Path, sample_csv: Path | None) -> str:
    return "".join(records.sha256(path) for path in (labels_csv, sample_csv) if path)


@dataclass
class Outcome:
    """All files, accounted for: manifest rows, rejections, label errors, counts for the summary."""

    rows: list[Entry] = field(default_factory=list)
    rejected: list[Entry] = field(default_factory=list)
    label_errors: list[str] = field(default_factory=list)
    missing: list[str] = field(
        default_factory=list
    )  # ids with a label or in the sample submission, without a file
    colour: int = 0
    duplicates: int = 0
    repeated_rows: int = 0  # label rows that stand there twice, word for word

    @property
    def unlabelled(self) -> int:
        return sum(1 for entry in self.rejected if entry["code"] == UNLABELLED)

    @property
    def bad(self) -> int:
        return len(self.rejected) - self.unlabelled


def prepare(found: Found, root: Path, job: Job, *, engine: Engine, anew: bool = False) -> Outcome:
    """Work on every file found below `root`, going on where an earlier run stopped. Raises BadInput for bad tables."""
    _check_tables(job.listed)
    if job.output is None:
        entries = dict(_run(found.dicoms, root, job, {}, engine))
    else:
        entries = _run_with_journal(found.dicoms, root, job, job.output, engine=engine, anew=anew)
    for path in found.not_files:
        entries[source_name(path, root)] = {
            "code": "NOT_A_FILE",
            "message": "not a regular file (links: --follow-symlinks)",
        }
    for path in found.unreadable:
        entries[source_name(path, root)] = {"code": "IO", "message": "the folder cannot be listed"}
    return _account(entries, {source_name(path, root): path for path in found.dicoms}, job)


def bytes_needed(found: Found, job: Job, output: Path) -> int:
    """About what the images that the cache does not hold yet will take."""
    cached = sum(
        1 for _ in (output / artifacts.Cache(job.size).image("x")).parent.glob("[!.]*.png")
    )
    images = min(len(found.dicoms), len(job.listed.rows) + len(job.listed.test_ids))
    return (
        max(0, images - cached) * job.size * (job.size + 1)
    )  # uncompressed, a filter byte per row


def patient_hash(patient_id: str, salt: str) -> str:
    """A patient id as it may be written to files: salted, 16 hex digits; "" stays ""."""
    return hashlib.sha256(f"{salt}\0{patient_id}".encode()).hexdigest()[:16] if patient_id else ""


def manifest(outcome: Outcome) -> pd.DataFrame:
    frame = pd.DataFrame(outcome.rows, columns=list(artifacts.MANIFEST.columns))
    return frame.sort_values(["split", "image_id"], ascending=[False, True], ignore_index=True)


def rejections(outcome: Outcome) -> pd.DataFrame:
    frame = pd.DataFrame(outcome.rejected, columns=list(artifacts.REJECTED.columns))
    return frame.sort_values(["code", "source"], ignore_index=True)


def label_table(outcome: Outcome, job: Job) -> pd.DataFrame:
    """The mask rows of the manifest's positive images, as `labels.csv` keeps them: several rows per image."""
    ids = sorted(row["image_id"] for row in outcome.rows if row["positive"])
    pairs = [(image_id, text) for image_id in ids for text in job.listed.rows[image_id]]
    return pd.DataFrame(pairs, columns=list(artifacts.LABELS.columns))


def fingerprints(
    manifest_table: pd.DataFrame, label_rows: pd.DataFrame, size: int
) -> dict[str, str]:
    """One hash of everything that training rests on, one of what the test maps rest on: either may change alone."""
    columns = [
        "image_id",
        "patient_id",
        "height",
        "width",
        "positive",
        "mask_pixels",
        "sha256",
        "mask_sha256",
    ]
    text = {
        split: manifest_table.loc[manifest_table["split"] == split, columns].to_csv(index=False)
        for split in (artifacts.TRAIN, artifacts.TEST)
    }
    training = f"{size}\n{text[artifacts.TRAIN]}\n{label_rows.to_csv(index=False)}"
    test = f"{size}\n{text[artifacts.TEST]}"
    return {
        artifacts.TRAINING_IMAGES: _digest(training.encode()),
        artifacts.TEST_IMAGES: _digest(test.encode()),
    }


def prepare_one(path: Path, root: Path, job: Job, known: Entry | None) -> Entry:
    """One file -> its journal entry: `row` (a manifest row) or `code` and `message`.

    An entry of an earlier run is returned as it is when neither the file nor its label has changed and its PNGs
    have the recorded hashes.
    """
    if known and _still_good(known, path, job):
        return known
    try:
        return _prepare_one(path, root, job)
    except dicom.Rejected as error:
        return {"code": error.code, "message": str(error)}


def _prepare_one(path: Path, root: Path, job: Job) -> Entry:
    listed = job.listed  # first: where the tables are not seen, the file is not to blame
    version = _version(
        path
    )  # before it is read: what changes meanwhile is read again by the next run
    header, dataset = dicom.open_header(path)
    image_id, split = _identify(header.image_id, path.stem, job)
    rows = listed.rows.get(image_id, ())
    radiograph = dicom.decode(header, dataset)
    height, width = radiograph.image.shape
    mask_pixels, mask_png = 0, b""
    if rows:
        try:
            mask = rle.union(rows, (height, width))
        except BadInput as error:
            return {
                "code": BAD_LABEL,
                "message": f"label of {image_id}: {error}",
                "label_error": True,
            }
        mask_pixels, mask_png = (
            int(np.count_nonzero(mask)),
            png.encode_mask(png.downsample_mask(mask, job.size)),
        )
    uid = (
        header.image_id if header.image_id in (path.stem, image_id) else ""
    )  # of a damaged file it may be anything
    image_png = png.encode(png.downsample(radiograph.image, job.size))
    if job.output is not None:
        _store(job.output / artifacts.Cache(job.size).image(image_id), image_png)
        _store(job.output / artifacts.Cache(job.size).mask(image_id), mask_png)
    return {
        "key": _key(version, path.stem, uid, image_id, job),
        "uid": uid,
        "colour": radiograph.colour,
        "row": {
            "image_id": image_id,
            "split": split,
            "patient_id": patient_hash(header.patient_id, job.salt),
            "view": header.view,
            "sex": header.sex,
            "age": header.age,
            "height": height,
            "width": width,
            "positive": int(bool(rows)),
            "mask_pixels": mask_pixels,
            "mask_rows": len(rows),
            "source": source_name(path, root),
            "decoder": radiograph.decoder,
            "sha256": _digest(image_png),
            "mask_sha256": _digest(mask_png),
        },
    }


def _identify(uid: str, stem: str, job: Job) -> tuple[str, str]:
    """(image id, split). File name and SOPInstanceUID usually agree; where not, the one that is listed decides."""
    labelled, tested = job.listed.rows, job.listed.test_ids
    listed = [name for name in dict.fromkeys((uid, stem)) if name in labelled or name in tested]
    if uid != stem and len(listed) != 1:
        found = "both are" if listed else "neither is"
        raise dicom.Rejected(
            "BAD_ID", f"SOPInstanceUID and the file's name differ and {found} listed"
        )
    if not listed:
        raise dicom.Rejected(
            UNLABELLED, "in neither the label file nor the sample submission: not used"
        )
    return listed[0], artifacts.TRAIN if listed[0] in labelled else artifacts.TEST


def _store(path: Path, data: bytes) -> None:
    """Write a cache file, or remove an old one where there is nothing to write. The journal holds its hash."""
    if data:
        atomic.write_bytes(path, data, sync=False)
    else:
        path.unlink(missing_ok=True)


def _still_good(known: Entry, path: Path, job: Job) -> bool:
    if "row" not in known or job.output is None:
        return False  # what was rejected may decode today, with another decoder installed
    image_id = known["row"]["image_id"]
    try:
        if known["key"] != _key(_version(path), path.stem, known["uid"], image_id, job):
            return False
        cache = artifacts.Cache(job.size)
        stored = (
            (cache.image(image_id), known["row"]["sha256"]),
            (cache.mask(image_id), known["row"]["mask_sha256"]),
        )
        return all(
            not digest or records.sha256(job.output / path) == digest for path, digest in stored
        )
    except (OSError, dicom.Rejected):
        return False


def _version(path: Path) -> tuple[str, int, int]:
    """Where a file is, its size and its time, which change with its contents. Raises Rejected."""
    try:
        found = path.stat()
    except OSError as error:
        raise dicom.Rejected("IO", f"cannot be read: {error.strerror or error}") from error
    return str(path.resolve()), found.st_size, found.st_mtime_ns


def _key(version: tuple[str, int, int], stem: str, uid: str, image_id: str, job: Job) -> str:
    """Everything an entry was made from; where it changes, the entry is made again.

    Args:
        uid: "" where it was not kept: then any change of the tables counts, which might list it now.
    """
    listed: Any = [(name in job.listed.rows, name in job.listed.test_ids) for name in (uid, stem)]
    if not uid:
        listed = job.tables_hash
    made_from = (*version, listed, job.listed.rows.get(image_id))
    return _digest(repr((VERSION, job.size, job.salt, *made_from)).encode())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if data else ""


@dataclass(frozen=True)
class Listed:
    """What the two tables say: mask rows by training id, the test ids, rows that stand there twice."""

    rows: dict[str, tuple[str, ...]]
    test_ids: frozenset[str]
    repeated: int


@functools.lru_cache(maxsize=1)
def _listed(labels_csv: Path, sample_csv: Path | None, tables_hash: str) -> Listed:
    """The tables, read once per worker and version of the files. Raises BadInput for another version."""
    try:
        same = _tables_hash(labels_csv, sample_csv) == tables_hash
    except OSError:
        same = False
    if not same:
        names = " and ".join(str(path) for path in (labels_csv, sample_csv) if path)
        raise BadInput(
            f"{names}: not, or no longer, what this run began with, seen from {platform.node()}"
        )
    read = labels.read(labels_csv)
    return Listed(
        read.rows,
        frozenset(labels.read_sample(sample_csv).image_ids if sample_csv else ()),
        read.repeated,
    )


def _check_tables(listed: Listed) -> None:
    both = sorted(set(listed.rows) & listed.test_ids)
    if both:
        raise bad_list(f"{len(both)} ids are in the label file and in the sample submission", both)


def _run_with_journal(
    dicoms: tuple[Path, ...], root: Path, job: Job, output: Path, *, engine: Engine, anew: bool
) -> dict[str, Entry]:
    cache = artifacts.Cache(job.size)
    journal_path = output / cache.journal
    folders = [(output / file("x")).parent for file in (cache.image, cache.mask)]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        atomic.sweep(folder)
    if anew:
        journal_path.unlink(missing_ok=True)
    with Journal(journal_path) as journal:
        known = dict(journal.entries)
        entries: dict[str, Entry] = {}
        for source, entry in _run(dicoms, root, job, known, engine):
            entries[source] = entry
            if entry is not known.get(source) and entry != known.get(source):
                journal.append(source, entry)
    for folder in folders:
        atomic.sweep(folder)  # of workers of a cluster that were killed
    return entries


def _run(
    dicoms: tuple[Path, ...], root: Path, job: Job, known: dict[str, Entry], engine: Engine
) -> Iterator[tuple[str, Entry]]:
    """(source, entry) of every file, in no particular order, with a progress bar."""
    sources = [source_name(path, root) for path in dicoms]
    calls = [
        (path, root, job, known.get(source)) for path, source in zip(dicoms, sources, strict=True)
    ]
    entries = as_finished(prepare_one, calls, engine, per_task=FILES_PER_TASK, title="preparing")
    for position, entry in entries:
        yield sources[position], entry


def _account(entries: dict[str, Entry], path_of: dict[str, Path], job: Job) -> Outcome:
    """Put every file into one of the outcome's lists. `path_of`: by source, which may be no path (source_name)."""
    outcome = Outcome()
    by_id: dict[str, list[Entry]] = defaultdict(list)
    for source, entry in sorted(entries.items()):
        if "row" in entry:
            by_id[entry["row"]["image_id"]].append(entry)
            continue
        outcome.rejected.append(
            {"source": source, "code": entry["code"], "message": entry["message"]}
        )
        if entry.get("label_error"):
            outcome.label_errors.append(entry["message"])
    spellings = Counter(image_id.casefold() for image_id in by_id)
    for image_id, twins in by_id.items():
        if spellings[image_id.casefold()] > 1:
            for twin in twins:
                message = f"{image_id} differs from another id in case only: on some disks they share a file"
                outcome.rejected.append(
                    {"source": twin["row"]["source"], "code": "BAD_ID", "message": message}
                )
            continue
        if len(twins) == 1 or same_contents([path_of[twin["row"]["source"]] for twin in twins]):
            outcome.rows.append(twins[0]["row"])
            outcome.colour += twins[0]["colour"]
            outcome.duplicates += len(twins) - 1
            continue
        for twin in twins:
            message = f"{image_id} comes {len(twins)} times, and not with the same contents"
            outcome.rejected.append(
                {"source": twin["row"]["source"], "code": "DUPLICATE_ID", "message": message}
            )
        if job.output is not None:
            (job.output / artifacts.Cache(job.size).image(image_id)).unlink(missing_ok=True)
            (job.output / artifacts.Cache(job.size).mask(image_id)).unlink(missing_ok=True)
    wanted = set(job.listed.rows) | job.listed.test_ids
    rejected_names = {
        Path(entry["source"]).stem for entry in outcome.rejected
    }  # listed there already
    outcome.repeated_rows = job.listed.repeated
    outcome.missing = sorted(wanted - set(by_id) - rejected_names)
    return outcome


def same_contents(paths: Sequence[Path]) -> bool:
    """Whether all files hold the same bytes; not where one cannot be read any more."""
    try:
        return len({records.sha256(path) for path in paths}) == 1
    except OSError:
        return False


def summary(outcome: Outcome) -> list[str]:
    """The numbers to check, a line each."""
    rows = outcome.rows
    train = [row for row in rows if row["split"] == artifacts.TRAIN]
    positives = sum(row["positive"] for row in train)
    views = Counter(row["view"] or "unknown" for row in rows)
    share = f"{positives / len(train):.1%}" if train else "none"
    lines = [
        f"{len(train)} training images, {positives} with pneumothorax ({share}; SIIM-ACR has 22.2 %)",
        f"{len(rows) - len(train)} test images",
        f"views: {', '.join(f'{count} {view}' for view, count in views.most_common())}",
    ]
    codes = Counter(entry["code"] for entry in outcome.rejected)
    if outcome.unlabelled:
        lines.append(
            f"{outcome.unlabelled} images are not annotated (in neither list): not used, not counted as negative"
        )
    if outcome.bad:
        lines.append(
            "rejected: "
            + ", ".join(f"{n} {code}" for code, n in sorted(codes.items()) if code != UNLABELLED)
        )
    if outcome.colour:
        lines.append(f"{outcome.colour} colour images converted to grey")
    if outcome.duplicates:
        lines.append(f"{outcome.duplicates} files are copies of another one: each image kept once")
    if outcome.repeated_rows:
        lines.append(
            f"warning: {outcome.repeated_rows} label rows stand there twice: each taken once"
        )
    hashes = Counter(row["sha256"] for row in rows)
    same = sum(count for count in hashes.values() if count > 1)
    if same:
        lines.append(f"{same} images share their pixels with another one: they will share a fold")
    return lines
