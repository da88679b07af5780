"""What lies below the input folder: DICOM files at any depth, the label CSV, the sample submission."""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pneumothorax.errors import BadInput

File = TypeVar("File")

LABEL_NAMES = ("train-rle.csv", "stage_2_train.csv")
SAMPLE_NAMES = ("stage_2_sample_submission.csv", "sample_submission.csv")
PHANTOM_NOTE = "phantoms.txt"  # stands beside the demo data's files, so that no score of theirs is taken for real


@dataclass(frozen=True)
class Found:
    """Paths below the input folder; `not_files` end in .dcm but are no regular files (folders, pipes, links)."""

    dicoms: tuple[Path, ...]
    not_files: tuple[Path, ...]
    tables: tuple[Path, ...]
    unreadable: tuple[Path, ...] = ()  # folders that cannot be listed


def search(
    folder: Path, *, follow_symlinks: bool = False, skip: Path | None = None, any_name: bool = False
) -> Found:
    """Walk the folder once, in sorted order, without the folder `skip` (our own output).

    Args:
        any_name: take whatever begins as a DICOM file does, too: clinical systems export files without a suffix.

    Raises BadInput when the folder is missing or holds no DICOM file.
    """
    if not folder.is_dir():
        raise BadInput(
            f"{folder} does not exist or is no folder: put the data there or pass --input"
        )
    dicoms: list[Path] = []
    not_files: list[Path] = []
    tables: list[Path] = []
    unreadable: list[Path] = []
    pending = [folder]
    seen = {os.path.realpath(folder), *([os.path.realpath(skip)] if skip else [])}
    while pending:
        current = pending.pop()
        try:
            with os.scandir(current) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError:
            unreadable.append(Path(current))
            continue
        for entry in entries:
            path = Path(entry.path)
            is_dicom = path.suffix.lower() == ".dcm"
            if entry.is_dir(follow_symlinks=follow_symlinks):
                if is_dicom:
                    not_files.append(path)
                if os.path.realpath(path) not in seen:  # a link back up would never end
                    seen.add(os.path.realpath(path))
                    pending.append(path)
            elif is_dicom or (
                any_name
                and entry.is_file(follow_symlinks=follow_symlinks)
                and begins_as_dicom(path)
            ):
                (dicoms if entry.is_file(follow_symlinks=follow_symlinks) else not_files).append(
                    path
                )
            elif path.name in LABEL_NAMES + SAMPLE_NAMES and entry.is_file():
                tables.append(path)
    if not dicoms:
        raise BadInput(f"{folder} holds no {'DICOM' if any_name else '*.dcm'} file at any depth")
    return Found(
        tuple(sorted(dicoms)),
        tuple(sorted(not_files)),
        tuple(sorted(tables)),
        tuple(sorted(unreadable)),
    )


def begins_as_dicom(path: Path) -> bool:
    """Whether a file is a DICOM file, and no directory of others (DICOMDIR); one that cannot be read may be."""
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM" and path.name != "DICOMDIR"
    except OSError:
        return True


def source_name(path: Path, root: Path) -> str:
    """Relative to the folder; bytes of a name that are no text are written out, so that it can be stored."""
    return path.relative_to(root).as_posix().encode("utf-8", "backslashreplace").decode("utf-8")


def label_file(found: Found, given: Path | None) -> Path:
    """The label CSV: the one given, or the only one found. Raises BadInput when there is none or several."""
    path = given or _only(found, LABEL_NAMES, "--labels")
    if path is None:
        raise BadInput(
            f"no label CSV ({' or '.join(LABEL_NAMES)}) below the input folder: pass --labels"
        )
    return path


def sample_file(found: Found, given: Path | None) -> Path | None:
    """The sample submission, or None: then there are no test images."""
    return given or _only(found, SAMPLE_NAMES, "--sample-submission")


def _only(found: Found, names: tuple[str, ...], flag: str) -> Path | None:
    paths = [path for path in found.tables if path.name in names]
    if len(paths) > 1:
        raise BadInput(
            f"found several of {names}: {', '.join(map(str, paths))}; say which with {flag}"
        )
    return paths[0] if paths else None


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
