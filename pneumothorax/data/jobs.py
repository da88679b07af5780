"""What preparing an image needs beyond its file: the layout, size, salt, output."""

import functools
import hashlib
import platform
from dataclasses import dataclass, replace
from pathlib import Path

from pneumothorax.data import labels
from pneumothorax.data.layouts.listed import Layout, Listed
from pneumothorax.errors import BadInput, bad_list, counted


@dataclass(frozen=True)
class Job:
    """One run of stage 00, small enough to send to a worker with every file.

    Args:
        version: hash of what the layout listed when the run began. A worker may outlive
            a run or see another folder: it must not answer from another version.
        size: height and width of the cached images in pixels.
        output: None checks everything and writes nothing.
        follow_symlinks: whether a mask may be a link.
        mask_threshold: from which value on, of 0 to 255, a pixel of a mask image is
            inside; None for masks of two values.
        test, holdout: CSV files with the ids of further test images; those of `holdout`
            must be labelled.
    """

    layout: Layout
    version: str
    size: int
    salt: str
    output: Path | None
    follow_symlinks: bool = False
    mask_threshold: int | None = None
    test: Path | None = None
    holdout: Path | None = None

    @property
    def listed(self) -> Listed:
        """What the layout lists, read once per process.

        Raises BadInput if it has changed.
        """
        return _unchanged(self.layout, self.test, self.holdout, self.version)

    @property
    def tables(self) -> dict[str, Path]:
        """Every CSV file that is read, by what it is."""
        given = {"test ids": self.test, "held-out ids": self.holdout}
        return {**self.layout.tables, **{name: path for name, path in given.items() if path}}


def plan(
    layout: Layout,
    *,
    size: int,
    salt: str,
    output: Path | None,
    follow_symlinks: bool = False,
    mask_threshold: int | None = None,
    test: Path | None = None,
    holdout: Path | None = None,
) -> Job:
    """The job, for the tables and folders with their present contents."""
    version = _version(_read(layout, test, holdout))
    return Job(layout, version, size, salt, output, follow_symlinks, mask_threshold, test, holdout)


@functools.lru_cache(maxsize=1)
def _unchanged(layout: Layout, test: Path | None, holdout: Path | None, version: str) -> Listed:
    try:
        listed = _read(layout, test, holdout)
    except (BadInput, OSError) as error:
        raise BadInput(f"{error} (seen from {platform.node()})") from error
    if _version(listed) != version:
        names = ", ".join(str(path) for path in layout.tables.values()) or layout.reason
        raise BadInput(f"{names}: changed since the run began, seen from {platform.node()}")
    return listed


def _read(layout: Layout, test: Path | None, holdout: Path | None) -> Listed:
    """What the layout lists, with the test images that --test and --holdout name."""
    listed = layout.read()
    held_out = labels.read_ids(holdout) if holdout else ()
    unlabelled = [image_id for image_id in held_out if image_id not in listed.annotations]
    if unlabelled:
        have = counted(len(unlabelled), "image has", "images have")
        raise bad_list(f"--holdout {holdout}: {have} no label", unlabelled)
    both = sorted(set(listed.in_both) - set(held_out))
    if both:
        have = counted(len(both), "id has a label and is", "ids have labels and are")
        raise bad_list(
            f"{have} in the sample submission (--holdout CSV makes test images of them)",
            both,
        )
    further = (*(labels.read_ids(test) if test else ()), *held_out)
    if listed.sample:
        known = listed.annotations.keys() | set(listed.sample.image_ids)
        extra = sorted(set(further) - known)
        if extra:
            are = counted(len(extra), "id is", "ids are")
            raise bad_list(
                f"--test {test}: {are} neither labelled nor in the sample submission, "
                "so they can be neither scored nor submitted",
                extra,
            )
    return replace(listed, test_ids=tuple(dict.fromkeys((*listed.test_ids, *further))))


def _version(listed: Listed) -> str:
    return hashlib.sha256(repr(listed).encode("utf-8", "backslashreplace")).hexdigest()
