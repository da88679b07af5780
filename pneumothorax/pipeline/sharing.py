"""What is sent to somebody else: one zip file, without ids that could lead to a patient."""

import csv
import io
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

from pneumothorax.pipeline import atomic

# Of all images of SIIM-ACR, stage 1 and stage 2: Kaggle published them.
PUBLISHED_ID = re.compile(
    r"1\.2\.276\.0\.7230010\.3\.1\.4\.8323329\.\d+\.151787\d+\.\d+|ID_[0-9a-f]{9}", re.ASCII
)


def public_ids(image_ids: Iterable[str]) -> dict[str, str]:
    """Image id -> itself if the competition published it, else the image's number.

    Other ids may be UIDs of a hospital's archive, or names of files with a patient's name.
    """
    return {
        image_id: image_id if PUBLISHED_ID.fullmatch(image_id) else f"image-{number}"
        for number, image_id in enumerate(image_ids, start=1)
    }


def public_files(
    output: Path, paths: Iterable[str], images: Mapping[str, str]
) -> dict[str, Path | bytes]:
    """{path below the output folder: the content to send, or the file that has it}.

    In CSV files, the columns image_id and patient_id have other ids. A patient has the
    same number in all of them.

    Args:
        paths: below the output folder.
        images: image id -> the id to send.
    """
    found: dict[str, Path | bytes] = {}
    patients = {"": ""}  # an unknown one stays so
    for path in paths:
        is_table = path.endswith(".csv")
        found[path] = _table(output / path, images, patients) if is_table else output / path
    return found


def _table(path: Path, images: Mapping[str, str], patients: dict[str, str]) -> bytes:
    """Patients who are not in `patients` are added."""
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        columns, rows = list(reader.fieldnames or ()), list(reader)
    for row in rows:
        if "image_id" in row:
            row["image_id"] = images[row["image_id"]]
        if "patient_id" in row:
            number = f"patient-{len(patients)}"
            row["patient_id"] = patients.setdefault(row["patient_id"], number)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8")


def write_zip(path: Path, files: Mapping[str, Path | bytes]) -> None:
    """Write a compressed zip file, sorted by name; files as for `add`."""

    def fill(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            add(archive, dict(sorted(files.items())))

    atomic.write(path, fill)


def add(archive: zipfile.ZipFile, files: Mapping[str, Path | bytes]) -> None:
    """Add files to an open zip file, in their order; equal content gives equal bytes.

    Args:
        files: name in the zip file -> the content, or the file that has it.
    """
    for name, content in files.items():
        entry = zipfile.ZipInfo(name)  # of 1980, whenever it is written
        entry.create_system, entry.external_attr = 3, 0o644 << 16  # Unix, on every platform
        data = content if isinstance(content, bytes) else content.read_bytes()
        archive.writestr(entry, data, archive.compression)
