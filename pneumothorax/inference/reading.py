"""DICOM, PNG and JPEG files that no stage prepared: which are usable, and their ids."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pneumothorax import dicom
from pneumothorax.data import discovery, raster
from pneumothorax.errors import BadInput, bad_list, counted
from pneumothorax.pipeline import records
from pneumothorax.pipeline.progress import show_progress


@dataclass(frozen=True)
class RadiographFile:
    """A file with a usable header."""

    path: Path
    source: str  # the path relative to the folder that was searched
    image_id: str  # of the header, or the name of a PNG or JPEG without its suffix
    sha256: str
    not_a_radiograph: str = ""  # why, by the header of a DICOM file

    @property
    def is_dicom(self) -> bool:
        return not discovery.is_raster(self.path)


@dataclass
class Listed:
    """Every file below a path, accounted for."""

    files: list[RadiographFile] = field(default_factory=list)
    rejected: list[dict[str, str]] = field(default_factory=list)  # artifacts.REJECTED rows
    copies: int = 0  # of `files`
    narrow: list[str] = field(default_factory=list)  # sources, once they are decoded
    notes: list[str] = field(default_factory=list)  # what was left out
    n_files: int = 0

    def reject(self, source: str, code: str, message: str) -> None:
        self.rejected.append({"source": source, "code": code, "message": message})

    def reject_others(self) -> None:
        """Move files that are not radiographs by their header to the rejections."""
        for file in self.files:
            if file.not_a_radiograph:
                self.reject(file.source, "NOT_A_RADIOGRAPH", file.not_a_radiograph)
        self.files = [file for file in self.files if not file.not_a_radiograph]

    @property
    def warning(self) -> str:
        """The list of files that are not radiographs by their header; "" without any."""
        others = [file for file in self.files if file.not_a_radiograph]
        if not others:
            return ""
        files = f"of {self.n_files} files"
        are = counted(len(others), f"{files} is not a radiograph", f"{files} are not radiographs")
        headline = (
            f"warning: {are} according to the header, so that predictions mean nothing there "
            "(--only-radiographs refuses such files):"
        )
        return str(
            bad_list(headline, [f"{file.source}: {file.not_a_radiograph}" for file in others])
        )

    def rejections(self) -> list[dict[str, str]]:
        return sorted(self.rejected, key=lambda entry: (entry["code"], entry["source"]))

    def error(self) -> BadInput:
        """The list of rejections as an error, to raise once all other files are done."""
        lines = [
            f"{entry['source']}: {entry['code']}: {entry['message']}" for entry in self.rejected
        ]
        files = counted(self.n_files, "file")
        headline = f"{len(lines)} of {files} rejected or incomplete; the others are done"
        return bad_list(headline, lines)


def search(path: Path, *, follow_symlinks: bool = False) -> Listed:
    """The file, or all DICOM, PNG and JPEG files of a folder at any depth, sorted by name.

    Raises BadInput where there is none.
    """
    if path.is_file():
        return _read([path], path.parent, Listed(n_files=1))
    found = discovery.search(path, any_name=True, follow_symlinks=follow_symlinks)
    masks = discovery.masks(found)
    left_out = {file for files in masks.values() for file in files}
    images = [image for image in found.images if image not in left_out]
    if not images:
        raise BadInput(
            f"all files below {path} look like masks: to predict one of them, give {min(left_out)}"
        )
    listed = Listed(n_files=len(images) + len(found.not_files) + len(found.unreadable))
    listed.notes += found.notes()
    for folder, files in masks.items():
        listed.notes.append(
            f"not predicted: {counted(len(files), 'file')} in {folder}, named and coloured as masks"
        )
    for other in found.not_files:
        reason = discovery.why_not_a_file(other)
        listed.reject(discovery.source_name(other, path), "NOT_A_FILE", reason)
    for other in found.unreadable:
        listed.reject(discovery.source_name(other, path), "IO", "the folder cannot be listed")
    return _read(images, path, listed)


def _read(paths: Sequence[Path], root: Path, listed: Listed) -> Listed:
    """Add every file at `paths` to the files, the copies or the rejections."""
    by_id: dict[str, list[RadiographFile]] = defaultdict(list)
    for path in show_progress(paths, total=len(paths), title="reading headers", unit="file"):
        source = discovery.source_name(path, root)
        try:
            image_id, reason = _identity(path)
            file = RadiographFile(path, source, image_id, records.sha256(path), reason)
            by_id[image_id].append(file)
        except dicom.Rejected as error:
            listed.reject(source, error.code, str(error))
        except OSError as error:
            listed.reject(source, "IO", f"cannot be read: {error.strerror or error}")
    clashes = discovery.clashes(by_id, are_copies=_are_copies)
    for image_id, files in by_id.items():
        if image_id in clashes:
            for file in files:
                listed.reject(file.source, *clashes[image_id])
        else:
            listed.files.append(files[0])
            listed.copies += len(files) - 1
    return listed


def _identity(path: Path) -> tuple[str, str]:
    """The image id, and why the file is not a radiograph."""
    if discovery.is_raster(path):
        return raster.image_id(path), ""
    header, dataset = dicom.open_header(path)
    return header.image_id, dicom.not_a_radiograph(dataset)


def _are_copies(files: Sequence[RadiographFile]) -> bool:
    return len({file.sha256 for file in files}) == 1
