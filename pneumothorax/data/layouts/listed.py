"""What a data set lists: which images are annotated, how, and which are for testing."""

import functools
import re
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pneumothorax.data.discovery import printable
from pneumothorax.data.labels import SampleSubmission
from pneumothorax.errors import BadInput, bad_list, counted


@dataclass(frozen=True)
class Annotation:
    """What is known about one annotated image; without rows and masks it is negative.

    Args:
        rows: its run-length rows.
        masks: its mask files; the mask is their union.
        positive: what a table says about it; None if no table does.
    """

    rows: tuple[str, ...] = ()
    masks: tuple[Path, ...] = ()
    positive: bool | None = None


@dataclass(frozen=True)
class Listed:
    """Everything that the tables, names and folders of a data set say about its images.

    Args:
        annotations: by image id, of training and test images.
        test_ids: the images for testing, in the order of their table.
        sample: the sample submission, if there is one.
        id_of: file name -> image id, where the name of a file is not its image's id.
        repeated: label rows that are listed twice, word for word.
        in_both: ids with a label that the sample submission lists as well.
        orphans: mask files without an image, as text.
    """

    annotations: dict[str, Annotation]
    test_ids: tuple[str, ...] = ()
    sample: SampleSubmission | None = None
    id_of: dict[str, str] = field(default_factory=dict)
    repeated: int = 0
    in_both: tuple[str, ...] = ()
    orphans: tuple[str, ...] = ()

    @functools.cached_property
    def test_set(self) -> frozenset[str]:
        return frozenset(self.test_ids)

    @functools.cached_property
    def image_ids(self) -> frozenset[str]:
        """Every id that should have an image."""
        return self.test_set.union(self.annotations)


class Layout(Hashable, Protocol):
    """Where the parts of a data set are; small enough to send to a worker with every file."""

    @property
    def name(self) -> str:
        """As in --layout."""

    @property
    def reason(self) -> str:
        """What it was recognised by, for the summary."""

    @property
    def tables(self) -> dict[str, Path]:
        """The CSV files that `read` reads, by what they are."""

    @property
    def mask_folders(self) -> tuple[Path, ...]:
        """The folders of mask images, if the labels are images."""

    def images(self, paths: Iterable[Path]) -> tuple[Path, ...]:
        """Those of the paths below the input folder that are images of this data set."""

    def read(self) -> Listed:
        """Raises BadInput that lists all errors of a table."""


def only(paths: Collection[Path], what: str, *, flag: str) -> Path:
    """The only path. Raises BadInput for none, or for several, with the flag that decides."""
    if not paths:
        raise BadInput(f"no {what} below the input folder")
    if len(paths) > 1:
        raise BadInput(f"more than one {what}: {', '.join(map(str, paths))}; choose with {flag}")
    return next(iter(paths))


def group_masks(
    stems: Collection[str], masks: Iterable[Path]
) -> tuple[dict[str, tuple[Path, ...]], list[Path]]:
    """The mask files of each image stem, and those that belong to no image.

    A mask is named like its image, `<stem>.png`, or is one of several, `<stem>_1.png`.
    Raises BadInput where the names do not say which masks belong to an image.
    """
    found: dict[str, list[Path]] = defaultdict(list)
    orphans = []
    by_number: set[str] = set()  # images that have numbered masks
    contested: set[str] = set()  # images whose numbered mask is named like another image
    for path in masks:
        stem = printable(path.stem)
        numbered = re.fullmatch(r"(.+)_\d+", stem)
        base = numbered[1] if numbered and numbered[1] in stems else ""
        if stem in stems:
            found[stem].append(path)
            contested.add(base)
        elif base:
            found[base].append(path)
            by_number.add(base)
        else:
            orphans.append(path)
    unclear = [
        printable(f"{stem}: {', '.join(map(str, paths))}")
        for stem, paths in found.items()
        if len({path.stem for path in paths}) < len(paths) or stem in by_number & contested
    ]
    if unclear:
        images = counted(len(unclear), "image")
        raise bad_list(f"the masks of {images} are not clear by their names", unclear)
    return {stem: tuple(paths) for stem, paths in found.items()}, orphans
