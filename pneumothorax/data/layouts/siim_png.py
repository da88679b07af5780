"""Layout siim-png: the PNG re-upload of SIIM-ACR, masks as PNG files and two tables.

    png_images/<number>_<train|test>_<0|1>_.png     png_masks/ with the same names
    stage_1_train_images.csv, stage_1_test_images.csv    new_filename,ImageId,has_pneumo

The tables name the image that a file shows, and so its patient. Where people kept the
two folders alone, the file names say split and label, and the stem is the id.

The competition's own files may lie beside them: the images that its sample submission lists
are test images, DICOM or not, where their files are named by id. Its label file is not read.
Published at https://www.kaggle.com/datasets/vbookshelf/pneumothorax-chest-xray-images-and-masks
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pneumothorax import dicom
from pneumothorax.data import discovery, labels
from pneumothorax.data.discovery import Found
from pneumothorax.data.layouts.listed import (
    Annotation,
    Listed,
    group_masks,
    only,
)
from pneumothorax.errors import bad_list, counted
from pneumothorax.pipeline.artifacts import TEST, TRAIN

NAME = "siim-png"
IMAGES, MASKS = "png_images", "png_masks"
TABLES = {TRAIN: "stage_1_train_images.csv", TEST: "stage_1_test_images.csv"}
COLUMNS = ("new_filename", "ImageId", "has_pneumo")
PUBLISHED = "https://www.kaggle.com/datasets/vbookshelf/pneumothorax-chest-xray-images-and-masks"
_FILE_NAME = re.compile(r"\d+_(train|test)_([01])_\.(?:png|jpe?g)", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class SiimPng:
    """The folders `images` and `masks`, and the table of each split that there is one for.

    Args:
        sample: lists the test images that lie beside the folders.
    """

    reason: str
    image_folder: Path
    mask_folders: tuple[Path, ...]
    table_of: tuple[tuple[str, Path], ...]
    sample: Path | None = None
    follow_symlinks: bool = False
    name: str = NAME

    @property
    def tables(self) -> dict[str, Path]:
        sample = {"sample submission": self.sample} if self.sample else {}
        return {TABLES[split]: path for split, path in self.table_of} | sample

    def images(self, paths: Iterable[Path]) -> tuple[Path, ...]:
        sampled = self._sampled() if self.sample else frozenset()
        return tuple(
            path
            for path in paths
            if self.image_folder in path.parents
            or (path.stem in sampled and self.mask_folders[0] not in path.parents)
        )

    def _sampled(self) -> frozenset[str]:
        """The ids of the sample submission, without those of the PNG files."""
        assert self.sample is not None
        known = {entry.image_id for entry in self._entries()}
        return frozenset(labels.first_column(self.sample) - known)

    def read(self) -> Listed:
        entries = self._entries()
        stems = {Path(entry.file_name).stem for entry in entries}
        files = discovery.images_below(
            self.mask_folders[0],
            follow_symlinks=self.follow_symlinks,
            suffixes=discovery.MASK_SUFFIXES,
        )
        masks, orphans = group_masks(stems, files)
        # The mask of an image that no table lists is not an orphan.
        unlisted = {path.stem for path in self._images()} - stems
        orphans = [path for path in orphans if path.stem not in unlisted]
        sample = labels.read_sample(self.sample) if self.sample else None
        sampled = sample.image_ids if sample else ()
        ids = {
            split: [entry.image_id for entry in entries if entry.split == split] for split in TABLES
        }
        return Listed(
            annotations={
                entry.image_id: Annotation(
                    masks=masks.get(Path(entry.file_name).stem, ()), positive=entry.positive
                )
                for entry in entries
            },
            test_ids=tuple(dict.fromkeys((*ids[TEST], *sampled))),
            sample=sample,
            in_both=tuple(sorted(set(ids[TRAIN]) & set(sampled))),
            id_of={entry.file_name: entry.image_id for entry in entries},
            orphans=tuple(discovery.printable(str(path)) for path in orphans),
        )

    def _images(self) -> tuple[Path, ...]:
        return discovery.images_below(self.image_folder, follow_symlinks=self.follow_symlinks)

    def _entries(self) -> "list[_Entry]":
        return self._entries_of_tables() if self.table_of else self._entries_of_names()

    def _entries_of_tables(self) -> "list[_Entry]":
        entries: list[_Entry] = []
        problems: list[str] = []
        names: set[str] = set()
        ids: set[str] = set()
        for split, path in self.table_of:
            for line, (file_name, image_id, flag) in labels.table(path, COLUMNS):
                problem = labels.flag_problem(image_id, flag)
                if not problem and Path(file_name).name != file_name:
                    problem = "not the name of a file"
                if not problem and (file_name in names or image_id in ids):
                    problem = f"{file_name!r} or its image is listed twice"
                if problem:
                    problems.append(f"{path.name}, line {line}, {image_id[:70]!r}: {problem}")
                    continue
                names.add(file_name)
                ids.add(image_id)
                entries.append(_Entry(file_name, image_id, split, flag == "1"))
        if problems:
            headline = f"{self.image_folder.parent}: {counted(len(problems), 'error')}"
            raise bad_list(headline, problems)
        return entries

    def _entries_of_names(self) -> "list[_Entry]":
        entries = []
        for path in self._images():
            said = _FILE_NAME.fullmatch(path.name)
            if said and dicom.is_image_id(path.stem):
                split = TRAIN if said[1].lower() == "train" else TEST
                entries.append(_Entry(path.name, path.stem, split, said[2] == "1"))
        return entries


@dataclass(frozen=True)
class _Entry:
    """An image of the tables, or of the file names."""

    file_name: str
    image_id: str
    split: str
    positive: bool


def recognise(found: Found) -> bool:
    return bool(found.folders_named(IMAGES) and found.folders_named(MASKS))


def has_only_test_images_beside(found: Found) -> bool:
    """Whether the sample submission lists all images beside the two folders by name."""
    beside = _beside(found)
    return beside <= _listed(found.tables_named(*labels.SAMPLE_NAMES), beside)


def _beside(found: Found) -> set[Path]:
    """The images that are not in the two folders."""
    return set(found.images) - set(found.below(*found.folders_named(IMAGES, MASKS)))


def _listed(samples: list[Path], images: set[Path]) -> set[Path]:
    """Those of the images that a sample submission lists by name.

    Raises BadInput where there are images, but a table is not CSV text.
    """
    for path in samples if images else ():
        labels.header(path)
    ids = labels.first_column(*samples)
    return {path for path in images if path.stem in ids}


def layout(found: Found, sample: Path | None, *, follow_symlinks: bool) -> SiimPng:
    """Raises BadInput where a folder or a table is missing or found several times.

    Args:
        sample: the sample submission from the command line.
    """
    image_folder = only(found.folders_named(IMAGES), f"folder {IMAGES}", flag="--input")
    mask_folder = only(found.folders_named(MASKS), f"folder {MASKS}", flag="--input")
    tables = tuple(
        (split, only(found.tables_named(name), name, flag="--input"))
        for split, name in TABLES.items()
        if found.tables_named(name)
    )
    names = " and ".join(TABLES[split] for split, _ in tables)
    reason = f"the folders {IMAGES} and {MASKS}" + (f" with {names}" if names else "")
    samples = [sample] if sample else found.tables_named(*labels.SAMPLE_NAMES)
    if sample or _listed(samples, _beside(found)):
        sample = only(samples, "sample submission", flag="--sample-submission")
        reason += f"; test images, too: those that {sample.name} lists"
    return SiimPng(reason, image_folder, (mask_folder,), tables, sample, follow_symlinks)


def warnings(layout: SiimPng, found: Found) -> list[str]:
    """What is not there, or not used, and what that means."""
    lines = []
    missing = [name for name in TABLES.values() if name not in layout.tables]
    if missing:
        effect = (
            "patients are unknown"
            if len(missing) == len(TABLES)
            else "its images are not annotated"
        )
        lines.append(f"warning: no {' and '.join(missing)}, so {effect}; published at {PUBLISHED}")
    if layout.sample is None:
        lines += [
            f"not used: {path.name}, as none of its test images is here"
            for path in found.tables_named(*labels.SAMPLE_NAMES)
        ]
        if _beside(found):
            lines.append(
                "warning: without a sample submission (--sample-submission) the images beside "
                "these folders are not test images"
            )
    return lines
