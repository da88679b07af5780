"""What is below the input folder: images and tables, found in one walk."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from pneumothorax import dicom
from pneumothorax.data import raster
from pneumothorax.errors import BadInput, counted
from pneumothorax.pipeline import artifacts, locks

File = TypeVar("File")

IMAGE_SUFFIXES = (*dicom.SUFFIXES, *raster.SUFFIXES)  # in any case
# Of masks: others than PNG and JPEG are rejected rather than overlooked
MASK_SUFFIXES = (*IMAGE_SUFFIXES, ".tif", ".tiff", ".bmp", ".gif", ".webp")
# In the output folder of stages and of predict_radiographs.py
OUTPUT_MARKS = (artifacts.PREPARED.path, locks.FOLDER, artifacts.RADIOGRAPHS_JOURNAL)
# What is left in folders by macOS, by Windows, by disk servers, by Linux and Jupyter; in any case
LITTER = {
    *".ds_store __macosx .appledouble .trashes .spotlight-v100 .fseventsd".split(),
    *["thumbs.db", "desktop.ini", "$recycle.bin", "system volume information"],
    *"@eadir #recycle #snapshot @recycle .@__thumb .snapshot".split(),
    *["lost+found", ".ipynb_checkpoints"],
}
LITTER_STARTS = ("._", ".trash-")
ARCHIVES = (".zip", ".gz", ".tar", ".tgz", ".bz2", ".xz", ".7z", ".rar")
MASK_NAME = re.compile("mask|label|segmentation|annotation", re.IGNORECASE)
N_NAMED = 5  # of what is left out
N_NARROW = 3  # of narrow_range
PHANTOM_NOTE = "phantoms.txt"  # in the demo data's folder: its scores must not pass for real ones


@dataclass(frozen=True)
class Found:
    """Paths below the folder `root`, each tuple sorted."""

    root: Path
    images: tuple[Path, ...]  # with one of IMAGE_SUFFIXES, in any case
    not_files: tuple[Path, ...]  # named like images, but not regular files: folders, pipes, links
    tables: tuple[Path, ...]  # *.csv, *.csv.gz; *.csv.zip and folders, which reading refuses
    unreadable: tuple[Path, ...] = ()  # folders that cannot be listed
    links: tuple[Path, ...] = ()  # to images and folders, not followed
    litter: tuple[Path, ...] = ()  # see LITTER
    outputs: tuple[Path, ...] = ()  # folders with one of OUTPUT_MARKS
    archives: tuple[Path, ...] = ()  # with one of ARCHIVES, tables aside

    @property
    def dicoms(self) -> tuple[Path, ...]:
        """The images that are DICOM files by their name, or that have no image's suffix."""
        return tuple(path for path in self.images if not is_raster(path))

    def tables_named(self, *names: str) -> list[Path]:
        """The tables with one of these names, in any case, packed or not.

        A zip file counts until it is unpacked.
        """
        wanted = {name.casefold() for name in names}
        return [
            path
            for path in self.tables
            if _unpacked_name(path) in wanted
            and not (path.suffix == ".zip" and path.with_suffix("") in self.tables)
        ]

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

    def notes(self) -> list[str]:
        """For the summary: what was left out."""
        lines = []
        if self.links:
            are = counted(len(self.links), "link is", "links are")
            headline = f"{are} not followed (--follow-symlinks also reads links)"
            lines.append(f"{headline}: {self._named(self.links)}")
        if self.outputs:
            are = counted(len(self.outputs), "folder is", "folders are")
            headline = f"{are} output of this software, so not read"
            lines.append(f"{headline}: {self._named(self.outputs)}")
        if self.archives:
            are = counted(len(self.archives), "archive is", "archives are")
            lines.append(f"{are} not read (unpack what you need): {self._named(self.archives)}")
        if self.litter:
            kinds = Counter("._*" if p.name.startswith("._") else p.name for p in self.litter)
            names = ", ".join(f"{count} {name}" for name, count in sorted(kinds.items()))
            lines.append(f"not read, as an operating system or a disk server made them: {names}")
        return lines

    def _named(self, paths: tuple[Path, ...]) -> str:
        names = [source_name(path, self.root) for path in paths[:N_NAMED]]
        rest = [f"and {len(paths) - N_NAMED} more"] if len(paths) > N_NAMED else []
        return ", ".join([*names, *rest])


def search(
    folder: Path, *, follow_symlinks: bool = False, skip: Path | None = None, any_name: bool = False
) -> Found:
    """Walk the folder once, leaving out `skip` and every folder that stage 00 has written to.

    Args:
        any_name: also take every file that begins like a DICOM file, as clinical
            systems export files without a suffix.

    Raises BadInput when the folder is missing, is output, or holds no image.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a folder: put the data there or pass --input")
    if skip is not None and skip.resolve() == folder.resolve():
        raise BadInput(f"--output {skip} is the input folder, which is only read")
    if (folder / artifacts.PREPARED.path).is_file():
        raise BadInput(
            f"{folder} is the output of 00_prepare_data.py: pass the folder that it was made from"
        )
    paths: dict[str, list[Path]] = defaultdict(list)
    for entry in _walk(folder, paths, follow_symlinks=follow_symlinks, skip=skip):
        path = Path(entry.path)
        some_file = _leads_to(entry, os.DirEntry.is_file)
        is_file = some_file and (follow_symlinks or not entry.is_symlink())
        by_name = path.suffix.lower() in IMAGE_SUFFIXES
        if by_name or (any_name and some_file and begins_as_dicom(path)):
            if is_file:
                paths["images"].append(path)
            elif some_file:
                paths["links"].append(path)
            if by_name and not is_file:
                paths["not_files"].append(path)
        elif _unpacked_name(path).endswith(".csv") and (some_file or entry.is_dir()):
            paths["tables"].append(path)
        elif some_file:
            packed = path.suffix.lower() in ARCHIVES
            paths["archives" if packed else "others"].append(path)
    # Some programs unpack a table into a folder of its name: then the table is what counts.
    unpacked = {table.parent for table in paths["tables"]}
    paths["tables"] = [table for table in paths["tables"] if table not in unpacked]
    names = "images not_files tables unreadable links litter outputs archives".split()
    found = Found(folder, **{name: tuple(sorted(paths[name])) for name in names})
    if not found.images:
        headline = f"{folder} holds no DICOM, PNG or JPEG file at any depth"
        raise BadInput("\n  ".join([headline, *found.notes(), *_nearly(paths["others"])]))
    return found


def masks(found: Found) -> dict[Path, list[Path]]:
    """The PNG and JPEG files that are masks by their names and their pixels, by folder.

    A folder with the name of masks is judged by its first files, any other file by itself.
    """
    rasters = [path for path in found.images if is_raster(path)]
    named: dict[Path, list[Path]] = defaultdict(list)
    for path in rasters:
        above = [folder for folder in path.parents if found.root in folder.parents]
        for folder in [folder for folder in above if MASK_NAME.search(folder.name)][:1]:
            named[folder].append(path)
    left_out: dict[Path, list[Path]] = defaultdict(list)
    for folder, paths in named.items():
        if all(map(_is_like_mask, paths[:3])):
            left_out[folder] = paths
    known = {path for paths in left_out.values() for path in paths}
    for path in rasters:
        if MASK_NAME.search(path.stem) and path not in known and _is_like_mask(path):
            left_out[path.parent].append(path)
    return left_out


def _is_like_mask(path: Path) -> bool:
    """Whether nearly all pixels are black or white, blurred edges aside."""
    try:
        values, _ = raster.read_values(path)
    except dicom.Rejected:
        return False
    low, high = int(values.min()), int(values.max())
    margin = (high - low) // 16
    return float(np.mean((values <= low + margin) | (values >= high - margin))) > 0.95


def images_below(
    folder: Path, *, follow_symlinks: bool, suffixes: tuple[str, ...] = IMAGE_SUFFIXES
) -> tuple[Path, ...]:
    """Images and links to them in a folder at any depth, sorted; () for a missing folder.

    Raises BadInput where a folder cannot be listed.
    """
    if not folder.exists():
        return ()
    left_out: dict[str, list[Path]] = defaultdict(list)
    entries = _walk(folder, left_out, follow_symlinks=follow_symlinks, skip=None)
    paths = [Path(entry.path) for entry in entries if not entry.is_dir(follow_symlinks=False)]
    if left_out["unreadable"]:
        raise BadInput(f"{left_out['unreadable'][0]} cannot be listed")
    return tuple(sorted(path for path in paths if path.suffix.lower() in suffixes))


def is_raster(path: Path) -> bool:
    """Whether the file is a PNG or JPEG file by its name."""
    return path.suffix.lower() in raster.SUFFIXES


def begins_as_dicom(path: Path) -> bool:
    """Whether a file is DICOM, but not a DICOMDIR; True for one that cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM" and path.name.upper() != "DICOMDIR"
    except OSError:
        return True


def source_name(path: Path, root: Path) -> str:
    """The path below `root` as text. Bytes of a name that are not text are escaped."""
    return printable(path.relative_to(root).as_posix())


def printable(name: str) -> str:
    """The name of a file; bytes that are not text are escaped."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def narrow_range(sources: Sequence[str]) -> str:
    """The remark on the images that use less than a tenth of the grey range."""
    first = ", ".join(sources[:N_NARROW]) + ", ..." * (len(sources) > N_NARROW)
    return (
        f"{counted(len(sources), 'image uses', 'images use')} less than a tenth of the grey range "
        "(warning): "
        f"nearly black, white or grey: {first}"
    )


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


def _nearly(others: Sequence[Path]) -> list[str]:
    """What to do with files that are not taken for images, where there are no others."""
    for path in sorted(others):
        if os.access(path, os.R_OK) and begins_as_dicom(path):
            return [f"found {path.name}, a DICOM file: give such files the suffix .dcm"]
    return []


def why_not_a_file(path: Path) -> str:
    """What to say of one of Found.not_files."""
    if not path.is_symlink():
        return "not a regular file"
    if path.is_file():
        return "a link: --follow-symlinks follows it"
    return "a link, and not to a regular file"


def _unpacked_name(path: Path) -> str:
    """The name without .gz or .zip, in lower case: Kaggle zips the files that it sends."""
    return (path.stem if path.suffix.lower() in (".gz", ".zip") else path.name).casefold()


def _is_litter(name: str) -> bool:
    name = name.casefold()
    return name in LITTER or name.startswith(LITTER_STARTS)


def _leads_to(entry: os.DirEntry[str], kind: Callable[[os.DirEntry[str]], bool]) -> bool:
    """Whether an entry is a file or folder, or a link to one; False for a link in a circle."""
    try:
        return kind(entry)
    except OSError:
        return False


def _walk(
    folder: Path,
    left_out: dict[str, list[Path]],
    *,
    follow_symlinks: bool,
    skip: Path | None,
) -> Iterator[os.DirEntry[str]]:
    """Everything below the folder, except what goes to `left_out` by the names of Found."""
    pending = [folder]
    seen = {os.path.realpath(folder), *([os.path.realpath(skip)] if skip else [])}
    while pending:
        current = pending.pop()
        try:
            with os.scandir(current) as listing:
                entries = list(listing)
        except OSError:
            left_out["unreadable"].append(current)
            continue
        if current != folder and any(entry.name in OUTPUT_MARKS for entry in entries):
            left_out["outputs"].append(current)  # its cache looks like a data set
            continue
        for entry in entries:
            if _is_litter(entry.name):
                left_out["litter"].append(Path(entry.path))
                continue
            yield entry
            if not _leads_to(entry, os.DirEntry.is_dir):
                continue
            if entry.is_symlink() and not follow_symlinks:
                left_out["links"].append(Path(entry.path))
            else:
                target = os.path.realpath(entry.path)
                if target not in seen:  # a link to a parent folder would never end
                    seen.add(target)
                    pending.append(Path(entry.path))
