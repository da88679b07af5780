"""What is below the input folder: images and tables, found in one walk."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pneumothorax import dicom
from pneumothorax.data import raster
from pneumothorax.errors import BadInput
from pneumothorax.pipeline import artifacts, locks

File = TypeVar("File")

IMAGE_SUFFIXES = (*dicom.SUFFIXES, *raster.SUFFIXES)  # in any case
# Of masks: others than PNG and JPEG are rejected rather than overlooked
MASK_SUFFIXES = (*IMAGE_SUFFIXES, ".tif", ".tiff", ".bmp", ".gif", ".webp")
OUTPUT_MARKS = (artifacts.PREPARED.path, locks.FOLDER)  # in every folder that stage 00 writes to
PHANTOM_NOTE = "phantoms.txt"  # in the demo data's folder: its scores must not pass for real ones


@dataclass(frozen=True)
class Found:
    """Paths below the folder `root`, each tuple sorted."""

    root: Path
    images: tuple[Path, ...]  # with one of IMAGE_SUFFIXES, in any case
    not_files: tuple[Path, ...]  # named like images, but not regular files: folders, pipes, links
    tables: tuple[Path, ...]  # *.csv and *.csv.gz, also folders, which reading refuses
    unreadable: tuple[Path, ...] = ()  # folders that cannot be listed

    @property
    def dicoms(self) -> tuple[Path, ...]:
        """The images that are DICOM files by their name, or that have no image's suffix."""
        return tuple(path for path in self.images if not is_raster(path))

    def tables_named(self, *names: str) -> list[Path]:
        """The tables with one of these names, gzipped or not."""
        return [path for path in self.tables if path.name.removesuffix(".gz") in names]

    def folders_named(self, *names: str) -> list[Path]:
        """The folders with one of these names, in any case, that hold images, at any depth."""
        wanted = {name.casefold() for name in names}
        parents = {path.parent for path in self.images}
        folders = {folder for parent in parents for folder in (parent, *parent.parents)}
        return sorted(
            folder
            for folder in folders
            if folder.name.casefold() in wanted
            and folder != self.root
            and folder.is_relative_to(self.root)
        )

    def below(self, *folders: Path) -> tuple[Path, ...]:
        """The images in these folders, at any depth."""
        return tuple(path for path in self.images if not set(folders).isdisjoint(path.parents))


def search(
    folder: Path, *, follow_symlinks: bool = False, skip: Path | None = None, any_name: bool = False
) -> Found:
    """Walk the folder once, leaving out `skip` and every folder that stage 00 has written to.

    Args:
        any_name: also take every file that begins like a DICOM file, as clinical
            systems export files without a suffix.

    Raises BadInput when the folder is missing or holds no image.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a folder: put the data there or pass --input")
    if skip is not None and skip.resolve() == folder.resolve():
        raise BadInput(f"--output {skip} is the input folder, which is only read")
    images: list[Path] = []
    not_files: list[Path] = []
    tables: list[Path] = []
    unreadable: list[Path] = []
    for entry in _walk(folder, unreadable, follow_symlinks=follow_symlinks, skip=skip):
        path = Path(entry.path)
        is_file = entry.is_file(follow_symlinks=follow_symlinks)
        if path.suffix.lower() in IMAGE_SUFFIXES:
            (images if is_file else not_files).append(path)
        elif any_name and is_file and begins_as_dicom(path):
            images.append(path)
        elif path.name.removesuffix(".gz").endswith(".csv") and (entry.is_file() or entry.is_dir()):
            tables.append(path)
    if not images:
        raise BadInput(f"{folder} holds no DICOM, PNG or JPEG file at any depth")
    return Found(
        root=folder,
        images=tuple(sorted(images)),
        not_files=tuple(sorted(not_files)),
        # Some programs unpack a table into a folder of its name: then the table is what counts.
        tables=tuple(sorted(set(tables).difference(table.parent for table in tables))),
        unreadable=tuple(sorted(unreadable)),
    )


def images_below(
    folder: Path, *, follow_symlinks: bool, suffixes: tuple[str, ...] = IMAGE_SUFFIXES
) -> tuple[Path, ...]:
    """Images and links to them in a folder at any depth, sorted; () for a missing folder.

    Raises BadInput where a folder cannot be listed.
    """
    if not folder.exists():
        return ()
    unreadable: list[Path] = []
    entries = _walk(folder, unreadable, follow_symlinks=follow_symlinks, skip=None)
    paths = [Path(entry.path) for entry in entries if not entry.is_dir(follow_symlinks=False)]
    if unreadable:
        raise BadInput(f"{unreadable[0]} cannot be listed")
    return tuple(sorted(path for path in paths if path.suffix.lower() in suffixes))


def is_raster(path: Path) -> bool:
    """Whether the file is a PNG or JPEG file by its name."""
    return path.suffix.lower() in raster.SUFFIXES


def begins_as_dicom(path: Path) -> bool:
    """Whether a file is DICOM, but not a DICOMDIR; True for one that cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM" and path.name != "DICOMDIR"
    except OSError:
        return True


def source_name(path: Path, root: Path) -> str:
    """The path below `root` as text. Bytes of a name that are not text are escaped."""
    return printable(path.relative_to(root).as_posix())


def printable(name: str) -> str:
    """The name of a file; bytes that are not text are escaped."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


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
        if current != folder and any(entry.name in OUTPUT_MARKS for entry in entries):
            continue  # an output folder: its cache looks like a data set
        for entry in entries:
            yield entry
            if entry.is_dir(follow_symlinks=follow_symlinks):
                target = os.path.realpath(entry.path)
                if target not in seen:  # a link to a parent folder would never end
                    seen.add(target)
                    pending.append(Path(entry.path))
