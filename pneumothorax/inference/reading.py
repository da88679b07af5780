"""DICOM files that no stage has prepared: which of them are radiographs, and under which id."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from pneumothorax import dicom
from pneumothorax.data import discovery
from pneumothorax.pipeline import artifacts, records


@dataclass(frozen=True)
class DicomFile:
    """A file with a header that can be used. `source` is its path relative to the folder that was given."""

    path: Path
    source: str
    image_id: str
    sha256: str


@dataclass
class Listed:
    """Every file below a path, accounted for."""

    files: list[DicomFile] = field(default_factory=list)
    rejected: list[dict[str, str]] = field(default_factory=list)  # artifacts.REJECTED rows
    copies: int = 0  # of files that are listed

    def reject(self, source: str, code: str, message: str) -> None:
        self.rejected.append({"source": source, "code": code, "message": message})

    def rejections(self) -> pd.DataFrame:
        frame = pd.DataFrame(self.rejected, columns=list(artifacts.REJECTED.columns))
        return frame.sort_values(["code", "source"], ignore_index=True)


def search(path: Path) -> Listed:
    """The file, or all DICOM files of a folder at any depth, in the order of their names. Raises BadInput for none."""
    listed = Listed()
    if path.is_file():
        root = path.parent
        paths: tuple[Path, ...] = (path,)
    else:
        found = discovery.search(path, any_name=True)
        root, paths = path, found.dicoms
        for other in found.not_files:
            listed.reject(discovery.source_name(other, root), "NOT_A_FILE", "not a regular file")
        for other in found.unreadable:
            listed.reject(discovery.source_name(other, root), "IO", "the folder cannot be listed")
    by_id: dict[str, list[DicomFile]] = defaultdict(list)
    for one in tqdm(paths, unit="file", desc="reading headers"):
        source = discovery.source_name(one, root)
        try:
            header, _ = dicom.open_header(one)
            file = DicomFile(one, source, header.image_id, records.sha256(one))
            by_id[file.image_id].append(file)
        except dicom.Rejected as error:
            listed.reject(source, error.code, str(error))
        except OSError as error:
            listed.reject(source, "IO", f"cannot be read: {error.strerror or error}")
    _keep_one_each(by_id, listed)
    return listed


def _keep_one_each(by_id: dict[str, list[DicomFile]], listed: Listed) -> None:
    """An id names one file of each kind: equal files count once, others with the same id are all rejected."""
    spellings = Counter(image_id.casefold() for image_id in by_id)
    for image_id, twins in by_id.items():
        if spellings[image_id.casefold()] > 1:
            message = (
                f"{image_id} differs from another id in case only: on some disks they share a file"
            )
            for twin in twins:
                listed.reject(twin.source, "BAD_ID", message)
        elif len({twin.sha256 for twin in twins}) > 1:
            message = f"{image_id} comes {len(twins)} times with different contents"
            for twin in twins:
                listed.reject(twin.source, "DUPLICATE_ID", message)
        else:
            listed.files.append(twins[0])
            listed.copies += len(twins) - 1
