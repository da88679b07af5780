"""The CSV files of a data set, read strictly: labels, ids, flags, patients.

Every error is reported with its line and id. Leading spaces, a BOM, CRLF, blank lines
and several rows per image are accepted. Everything is read as text, so the id `1.20`
stays `1.20`. A label of `-1`, or an empty cell, means "no pneumothorax"; an image
without a row is not annotated, which is something else.
"""

import contextlib
import csv
import gzip
import hashlib
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pneumothorax import dicom, rle
from pneumothorax.errors import BadInput, bad_list, counted
from pneumothorax.pipeline import stage

SUBMISSION_COLUMNS = ("ImageId", "EncodedPixels")
SAMPLE_NAMES = ("stage_2_sample_submission.csv", "sample_submission.csv")
PATIENT_COLUMNS = ("ImageId", "PatientId")
NIH_COLUMNS = ("Kaggle_ID", "NIH_ID")  # SIIM-ACR's patients as they are published
MAX_BYTES = 256 << 20  # of a file; SIIM-ACR's labels are 7 MB
MAX_CELL = 4_000_000  # characters, more than a real mask of 64 megapixels needs
_PAIRS = re.compile(r"\d+ \d+(?: \d+ \d+)*", re.ASCII)
_NIH_FILE = re.compile(r"(\d+)_\d+\.png", re.ASCII)  # patient, number of the follow-up
_ZERO_LENGTH = re.compile(r"(?:\d+ \d+ )*\d+ 0+(?: \d+ \d+)*", re.ASCII)


@dataclass(frozen=True)
class Labels:
    """image id -> its mask rows as text, () for an image without pneumothorax."""

    rows: dict[str, tuple[str, ...]]
    repeated: int  # rows that are listed twice, word for word


@dataclass(frozen=True)
class SampleSubmission:
    """Its column names, and its ids in order, each once."""

    columns: tuple[str, str]
    image_ids: tuple[str, ...]


def read(path: Path) -> Labels:
    """Read Kaggle's `train-rle.csv` or `stage_2_train.csv`, optionally gzipped.

    Raises BadInput that lists all errors.
    """
    masks: dict[str, list[str]] = {}
    empty: set[str] = set()
    problems: list[str] = []
    repeated = 0
    for line, (image_id, text) in table(path, SUBMISSION_COLUMNS):
        problem = cell_problem(image_id, text)
        if problem:
            problems.append(f"line {line}, {image_id[:70]!r}: {problem}")
            continue
        known = masks.setdefault(image_id, [])
        if text in ("", rle.EMPTY):
            repeated += image_id in empty
            empty.add(image_id)
        elif text in known:
            repeated += 1
        else:
            known.append(text)
        if known and image_id in empty:
            problems.append(f"line {line}, {image_id!r}: both '-1' and a mask")
    if problems:
        raise bad_list(f"{path}: {counted(len(problems), 'error')}", problems)
    if not masks:
        raise BadInput(f"{path} has no rows")
    return Labels({image_id: tuple(rows) for image_id, rows in masks.items()}, repeated)


def read_sample(path: Path) -> SampleSubmission:
    """Read a sample submission; repeated ids (of positives, in stage 1) count once."""
    rows = list(table(path, SUBMISSION_COLUMNS))
    problems = [
        f"line {line}, {row[0][:70]!r}: not an image id"
        for line, row in rows
        if not dicom.is_image_id(row[0])
    ]
    if problems:
        raise bad_list(f"{path}: {counted(len(problems), 'error')}", problems)
    if not rows:
        raise BadInput(f"{path} has no rows")
    _, header = next(records(path))
    return SampleSubmission((header[0], header[1]), tuple(dict.fromkeys(row[0] for _, row in rows)))


def read_patients(path: Path) -> dict[str, str]:
    """Read a CSV of patients -> {image id: patient id}.

    It has PATIENT_COLUMNS, or NIH_COLUMNS with names of NIH's files: `00028864_007.png`
    is of patient 00028864. Raises BadInput that lists all errors.
    """
    patients: dict[str, str] = {}
    problems: list[str] = []
    columns = header(path)
    if columns not in ([*PATIENT_COLUMNS], [*NIH_COLUMNS]):
        known = " or ".join(", ".join(pair) for pair in (PATIENT_COLUMNS, NIH_COLUMNS))
        raise BadInput(f"{path}: expected the columns {known}; found {columns[:10]}")
    for line, (image_id, cell) in table(path, columns):
        file_name = _NIH_FILE.fullmatch(cell) if columns == [*NIH_COLUMNS] else None
        patient = file_name[1] if file_name else cell
        if not dicom.is_image_id(image_id) or not cell:
            problems.append(f"line {line}: needs an image id and a patient id")
        elif columns == [*NIH_COLUMNS] and not file_name:
            found = f"not a file name like '00028864_007.png': {cell[:40]!r}"
            problems.append(f"line {line}, {image_id!r}: {found}")
        elif patients.setdefault(image_id, patient) != patient:
            problems.append(f"line {line}, {image_id!r}: listed for two patients")
    if problems:
        raise bad_list(f"{path}: {counted(len(problems), 'error')}", problems)
    return patients


def patient_hash(patient_id: str, salt: str) -> str:
    """A patient id that may be written to files: salted, 16 hex digits; "" stays ""."""
    return hashlib.sha256(f"{salt}\0{patient_id}".encode()).hexdigest()[:16] if patient_id else ""


def cell_problem(image_id: str, text: str) -> str:
    """What is wrong with one row of run lengths, "" if nothing.

    The image's size is unknown here.
    """
    if not dicom.is_image_id(image_id):
        return "not an image id (letters, digits, '.', '_', '-', at most 64)"
    if text in ("", rle.EMPTY):
        return ""
    if len(text) > MAX_CELL:
        return f"a cell of {len(text)} characters"
    if _ZERO_LENGTH.fullmatch(text):
        return "a run of length 0"
    if _PAIRS.fullmatch(text):
        return ""
    found = f"found {text[:40]!r}"
    if re.fullmatch(r"[0-9 ]+", text):
        return f"an odd count of numbers or stray spaces: {found}"
    if re.fullmatch(r"[-0-9 ]+", text):
        mixed = rle.EMPTY in text.split(" ")
        return f"{'-1 next to runs' if mixed else 'a negative number: runs overlap'}: {found}"
    return f"not run lengths 'gap length gap length ...' or -1: {found}"


def records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, unchanged cells) of every row that is not blank, the header first.

    Raises BadInput when the file is not CSV text or a cell is too long.
    """
    csv.field_size_limit(2 * MAX_CELL)
    reader = csv.reader(io.StringIO(_text(path), newline=""))
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num, cells
    except csv.Error as error:
        raise BadInput(f"{path}, line {reader.line_num}: {error}") from error


def table(path: Path, columns: Sequence[str]) -> list[tuple[int, tuple[str, ...]]]:
    """(line number, cells without spaces around them) of every row below the header.

    Raises BadInput when the file does not have exactly these columns.
    """
    found = records(path)
    _, names = next(found, (1, []))
    if [cell.strip() for cell in names] != list(columns):
        raise BadInput(f"{path}: expected the columns {', '.join(columns)}; found {names[:10]}")
    rows: list[tuple[int, tuple[str, ...]]] = []
    ragged: list[str] = []
    for line, cells in found:
        if len(cells) == len(columns):
            rows.append((line, tuple(cell.strip() for cell in cells)))
        else:
            ragged.append(f"line {line}: {counted(len(cells), 'cell')} instead of {len(columns)}")
    if ragged:
        raise bad_list(f"{path}: {counted(len(ragged), 'error')}", ragged)
    return rows


def header(path: Path) -> list[str]:
    """The names of the columns, without spaces around them; [] for an empty file."""
    _, names = next(records(path), (1, []))
    return [name.strip() for name in names]


def first_column(*paths: Path) -> set[str]:
    """The cells of these tables, unchecked; a file that is not CSV text has none."""
    found: set[str] = set()
    for path in paths:
        with contextlib.suppress(BadInput):
            found |= {cells[0].strip() for _, cells in records(path)}
    return found


def read_ids(path: Path) -> tuple[str, ...]:
    """The column ImageId of any CSV file, each id once, in order."""
    ids = [(line, image_id) for line, (image_id,) in pick(path, SUBMISSION_COLUMNS[:1])]
    problems = [
        f"line {line}, {image_id[:70]!r}: not an image id"
        for line, image_id in ids
        if not dicom.is_image_id(image_id)
    ]
    if problems:
        raise bad_list(f"{path}: {counted(len(problems), 'error')}", problems)
    return tuple(dict.fromkeys(image_id for _, image_id in ids))


def read_flags(path: Path, columns: tuple[str, str]) -> dict[str, bool]:
    """Two columns of any CSV file, image ids and 0 or 1 -> {image id: flag}."""
    flags: dict[str, bool] = {}
    problems: list[str] = []
    for line, (image_id, flag) in pick(path, columns):
        problem = flag_problem(image_id, flag)
        if not problem and flags.setdefault(image_id, flag == "1") != (flag == "1"):
            problem = "listed with 0 and with 1"
        if problem:
            problems.append(f"line {line}, {image_id[:70]!r}: {problem}")
    if problems:
        raise bad_list(f"{path}: {counted(len(problems), 'error')}", problems)
    return flags


def pick(path: Path, columns: Sequence[str]) -> list[tuple[int, tuple[str, ...]]]:
    """`table`, but only these columns of a file that may have others."""
    names = header(path)
    missing = [column for column in columns if column not in names]
    if missing:
        expected = " and ".join(missing)
        raise BadInput(f"{path}: expected a column {expected}; found {names[:10]}")
    positions = [names.index(column) for column in columns]
    return [
        (line, tuple(cells[position] for position in positions))
        for line, cells in table(path, names)
    ]


def flag_problem(image_id: str, flag: str) -> str:
    """What is wrong with an image id and a cell that should be 0 or 1; "" if nothing."""
    if not dicom.is_image_id(image_id):
        return "not an image id (letters, digits, '.', '_', '-', at most 64)"
    return "" if flag in ("0", "1") else f"expected 0 or 1, found {flag[:40]!r}"


def _check_start(path: Path) -> None:
    """Raises BadInput for a zip or gzip file under the name of another."""
    with open(path, "rb") as file:
        start = file.read(4)
    if start in (b"PK\3\4", b"PK\5\6"):
        found = f"{path} is a zip archive (or a spreadsheet), not a CSV file"
        if path.suffix != ".zip":  # unpacked under its own name, it would overwrite itself
            raise BadInput(f"{found}: rename it to {path.name}.zip (or save it as CSV)")
        command = stage.quoted("-m", "zipfile", "-e", path, path.parent)
        raise BadInput(f"{found}: unpack it with python {command}")
    if start.startswith(b"\x1f\x8b") and path.suffix != ".gz":
        raise BadInput(f"{path} is a gzip file, not a CSV file: rename it to {path.name}.gz")


def _text(path: Path) -> str:
    try:
        if path.is_dir():
            raise BadInput(f"{path} is a folder, not a CSV file: put the file in its place")
        if not path.is_file():
            raise BadInput(f"{path} does not exist or is not a regular file")
        _check_start(path)
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise BadInput(f"{path} holds more than {MAX_BYTES >> 20} MiB")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start})"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(f"{path} cannot be read: {error}") from error
