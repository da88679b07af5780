"""What is below the input folder: images, the label CSV, the sample submission."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pneumothorax.data import raster
from pneumothorax.errors import BadInput

File = TypeVar("File")

IMAGE_SUFFIXES = (".dcm", *raster.SUFFIXES)  # in any case
LABEL_NAMES = ("train-rle.csv", "stage_2_train.csv")
SAMPLE_NAMES = ("stage_2_sample_submission.csv", "sample_submission.csv")
PHANTOM_NOTE = "phantoms.txt"  # in the demo data's folder: its scores must not pass for real ones


@dataclass(frozen=True)
class Found:
    """Paths below the input folder, each tuple sorted."""

    images: tuple[Path, ...]
    not_files: tuple[Path, ...]  # named like images, but not regular files: folders, pipes, links
    tables: tuple[Path, ...]
    unreadable: tuple[Path, ...] = ()  # folders that cannot be listed

    @property
    def n_sources(self) -> int:
        """How many files and folders stage 00 has to account for."""
        return len(self.images) + len(self.not_files) + len(self.unreadable)


def search(
    folder: Path, *, follow_symlinks: bool = False, skip: Path | None = None, any_name: bool = False
) -> Found:
    """Walk the folder once, leaving out the folder `skip` (our own output).

    Args:
        any_name: also take every file that begins like a DICOM file, as clinical
            systems export files without a suffix.

    Raises BadInput when the folder is missing or holds no image.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a folder: put the data there or pass --input")
    images: list[Path] = []
    not_files: list[Path] = []
    tables: list[Path] = []
    unreadable: list[Path] = []
    for entry in _walk(folder, unreadable, follow_symlinks=follow_symlinks, skip=skip):
        path = Path(entry.path)
        is_file = entry.is_file(follow_symlinks=follow_symlinks)
        is_folder = entry.is_dir(follow_symlinks=follow_symlinks)
        if path.suffix.lower() in IMAGE_SUFFIXES:
            (images if is_file else not_files).append(path)
        elif any_name and is_file and begins_as_dicom(path):
            images.append(path)
        elif not is_folder and path.name in LABEL_NAMES + SAMPLE_NAMES and entry.is_file():
            tables.append(path)
    if not images:
        raise BadInput(f"{folder} holds no DICOM, PNG or JPEG file at any depth")
    return Found(
        images=tuple(sorted(images)),
        not_files=tuple(sorted(not_files)),
        tables=tuple(sorted(tables)),
        unreadable=tuple(sorted(unreadable)),
    )


def begins_as_dicom(path: Path) -> bool:
    """Whether a file is DICOM, but not a DICOMDIR; True for one that cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM" and path.name != "DICOMDIR"
    except OSError:
        return True


def source_name(path: Path, root: Path) -> str:
    """The path below `root` as text. Bytes of a name that are not text are escaped."""
    return path.relative_to(root).as_posix().encode("utf-8", "backslashreplace").decode("utf-8")


def label_file(found: Found, given: Path | None) -> Path:
    """The label CSV: the one given, or the only one found.

    Raises BadInput for none or several.
    """
    path = _given_or_only(found, given, LABEL_NAMES, "--labels")
    if path is None:
        names = " or ".join(LABEL_NAMES)
        raise BadInput(f"no label CSV ({names}) below the input folder: pass --labels")
    return path


def sample_file(found: Found, given: Path | None) -> Path | None:
    """The sample submission; None if there is none, and so no test images."""
    return _given_or_only(found, given, SAMPLE_NAMES, "--sample-submission")


def holds_phantoms(folder: Path) -> bool:
    """Whether the input folder says that its images are phantoms."""
    return (folder / PHANTOM_NOTE).is_file()


def clashes(
    by_id: Mapping[str, Sequence[File]], *, are_copies: Callable[[Sequence[File]], bool]
) -> dict[str, tuple[str, str]]:
    """The ids that do not name one image, each with a rejection's code and message.

    Copies of one file may share an id. Ids that differ only in case would share a file
    name on some disks.
    """
    spellings = Counter(image_id.casefold() for image_id in by_id)
    found = {}
    for image_id, files in by_id.items():
        if spellings[image_id.casefold()] > 1:
            message = f"{image_id} differs from another id only in case: some disks ignore case"
            found[image_id] = "BAD_ID", message
        elif len(files) > 1 and not are_copies(files):
            message = f"{len(files)} files with different contents have the id {image_id}"
            found[image_id] = "DUPLICATE_ID", message
    return found


def _walk(
    folder: Path, unreadable: list[Path], *, follow_symlinks: bool, skip: Path | None
) -> Iterator[os.DirEntry[str]]:
    """Everything below the folder; folders that cannot be listed go to `unreadable`."""
    pending = [folder]
    seen = {os.path.realpath(folder), *([os.path.realpath(skip)] if skip else [])}
    while pending:
        current = pending.pop()
        try:
            with os.scandir(current) as listing:
                entries = list(listing)
        except OSError:
            unreadable.append(current)
            continue
        for entry in entries:
            yield entry
            if entry.is_dir(follow_symlinks=follow_symlinks):
                target = os.path.realpath(entry.path)
                if target not in seen:  # a link to a parent folder would never end
                    seen.add(target)
                    pending.append(Path(entry.path))


def _given_or_only(
    found: Found, given: Path | None, names: tuple[str, ...], flag: str
) -> Path | None:
    if given is not None:
        if not given.is_file():
            raise BadInput(f"{flag}: {given} does not exist or is not a regular file")
        return given
    paths = [path for path in found.tables if path.name in names]
    if len(paths) > 1:
        listed = ", ".join(map(str, paths))
        raise BadInput(f"found several of {' and '.join(names)}: {listed}; choose with {flag}")
    return paths[0] if paths else None
