"""Which layout a data set has: found by looking, or given with --layout."""

import argparse
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pneumothorax.data import discovery, labels
from pneumothorax.data.discovery import Found
from pneumothorax.data.layouts import images_masks, nnunet, run_lengths, siim_png
from pneumothorax.data.layouts.listed import Layout
from pneumothorax.errors import BadInput
from pneumothorax.pipeline import stage

NAMES = (
    run_lengths.SIIM_DICOM,
    siim_png.NAME,
    run_lengths.IMAGES_RLE,
    images_masks.NAME,
    nnunet.NAME,
)

WHERE_TO_TRAIN_FROM = (
    "Kaggle's competition page no longer has training images; docs/your-data.md says who has"
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of stage 00 that say what the data are."""
    found = "(default: found by name below --input)"
    flag = parser.add_argument
    flag("--layout", choices=NAMES, help="how the data are laid out (default: found by looking)")
    flag(
        "--labels", type=stage.place, metavar="PATH", help=f"label file, or folder of masks {found}"
    )
    flag("--sample-submission", type=stage.place, metavar="CSV", help=f"sample submission {found}")
    flag(
        "--test",
        type=stage.place,
        metavar="CSV",
        help="ids of further test images (column ImageId)",
    )
    held_out = "labelled images that become test images, which are only scored (column ImageId)"
    flag("--holdout", type=stage.place, metavar="CSV", help=held_out)
    inside = "value, from 1 to 255, from which on a pixel of a grey mask image is inside"
    flag("--mask-threshold", type=_grey_value, metavar="N", help=inside)
    flag("--follow-symlinks", action="store_true", help="also read links and linked folders")


def _grey_value(text: str) -> int:
    """argparse type: a number from 1 to 255."""
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 255):
        raise argparse.ArgumentTypeError(f"must be a number from 1 to 255, got {text!r}")
    return int(text)


@dataclass(frozen=True)
class Given:
    """What the command line says about the layout.

    Args:
        labels: the label CSV or, for images-masks, the folder of masks.
    """

    layout: str | None = None
    labels: Path | None = None
    sample: Path | None = None
    follow_symlinks: bool = False


def from_flags(args: argparse.Namespace) -> Given:
    return Given(args.layout, args.labels, args.sample_submission, args.follow_symlinks)


def choose(found: Found, given: Given) -> Layout:
    """Raises BadInput that says what was found, and what is missing or decides."""
    if given.labels is not None and not given.labels.exists():
        raise BadInput(f"--labels: {given.labels} does not exist")
    if given.labels is not None and given.labels.is_dir() and not _holds_masks(given):
        raise BadInput(
            f"--labels: {given.labels} is a folder without mask images: "
            "pass a CSV file, or a folder of masks"
        )
    names = [given.layout] if given.layout else recognised(found, given.labels)
    if len(names) > 1:
        raise BadInput(
            f"{found.root} fits several layouts, {' and '.join(names)}: choose with --layout"
        )
    if not names:
        raise BadInput(_nothing(found, given))
    layout = _layout(names[0], found, given)
    if isinstance(layout, run_lengths.RunLengths):
        _require_more_than_test_images(layout, found)
    return layout


def recognised(found: Found, given: Path | None) -> list[str]:
    """The layouts that the folder has all parts of.

    Args:
        given: a label CSV or a folder of masks from the command line: either leaves the
            layouts with such labels.
    """
    if given is not None and given.is_dir():
        return [images_masks.NAME]
    by_run_lengths = run_lengths.recognise(found, given)
    if given is not None:
        return [by_run_lengths] * bool(by_run_lengths)
    fits = {
        by_run_lengths: bool(by_run_lengths),
        siim_png.NAME: siim_png.recognise(found),
        images_masks.NAME: images_masks.recognise(found),
        nnunet.NAME: nnunet.recognise(found),
    }
    if fits[siim_png.NAME] and siim_png.has_only_test_images_beside(found):
        fits[by_run_lengths] = False
    return [name for name in NAMES if fits.get(name)]


def described(layout: Layout, found: Found) -> list[str]:
    """For the summary: the layout, and the images and label tables that it does not use."""
    used = set(layout.images(found.images))
    masks = set(found.below(*layout.mask_folders)) if layout.mask_folders else set()
    rest = [path for path in found.images if path not in used and path not in masks]
    lines = [f"layout {layout.name}: {layout.reason}"]
    if isinstance(layout, siim_png.SiimPng):
        lines += siim_png.warnings(layout, found)
    if rest:
        lines.append(f"not part of the layout, so not used: {_kinds(rest)} (--layout decides)")
    read = {path.resolve() for path in layout.tables.values()}
    for table in found.tables_named(*run_lengths.LABEL_NAMES):
        if layout.mask_folders and table.resolve() not in read:
            lines.append(f"not used: {table.name}, as the mask images are the labels")
    return lines


def _layout(name: str, found: Found, given: Given) -> Layout:
    if name in (run_lengths.SIIM_DICOM, run_lengths.IMAGES_RLE):
        return run_lengths.layout(name, found, given.labels, given.sample)
    if given.labels and name != images_masks.NAME:
        raise BadInput(f"--labels does not fit layout {name}, which brings its own labels")
    if name == siim_png.NAME:
        return siim_png.layout(found, given.sample, follow_symlinks=given.follow_symlinks)
    if given.sample:
        raise BadInput(f"--sample-submission does not fit layout {name}: pass --test")
    if name == images_masks.NAME:
        return images_masks.layout(found, given.labels, follow_symlinks=given.follow_symlinks)
    return nnunet.layout(found, follow_symlinks=given.follow_symlinks)


def _require_more_than_test_images(layout: run_lengths.RunLengths, found: Found) -> None:
    """Raises BadInput for the competition's own files, which no longer have training images."""
    images = layout.images(found.images)
    names = {path.stem for path in images}
    labelled = labels.first_column(layout.labels)
    if layout.sample and names <= labels.first_column(layout.sample) - labelled:
        raise BadInput(
            f"all {_kinds(images)} are test images of {layout.sample.name}: {WHERE_TO_TRAIN_FROM}"
            + "; for the PNG files here pass --layout siim-png" * siim_png.recognise(found)
        )


def _nothing(found: Found, given: Given) -> str:
    """Why no layout fits."""
    tables = [given.labels] if given.labels else found.tables_named(*run_lengths.LABEL_NAMES)
    for table in tables:
        if labels.header(table) != list(labels.SUBMISSION_COLUMNS):
            labels.table(table, labels.SUBMISSION_COLUMNS)  # says what is wrong with it
    if given.labels:
        return f"{given.labels} lists none of the {_kinds(found.images)} below {found.root} by name"
    samples = found.tables_named(*labels.SAMPLE_NAMES)
    if {path.stem for path in found.images} <= labels.first_column(*samples):
        return (
            f"all {_kinds(found.images)} below {found.root} are test images of {samples[0].name}: "
            + WHERE_TO_TRAIN_FROM
        )
    label_names = " or ".join(run_lengths.LABEL_NAMES)
    masks = ", ".join([siim_png.MASKS, *images_masks.MASKS, nnunet.MASKS])
    half = found.folders_named(siim_png.MASKS, *images_masks.MASKS, nnunet.MASKS)
    lines = [f"{found.root} holds {_kinds(found.images)}, but no labels that go with them"]
    if half:
        images = ", ".join([siim_png.IMAGES, images_masks.IMAGES, nnunet.IMAGES])
        names = ", ".join(folder.name for folder in half)
        lines.append(f"found the folder {names}, but not its images ({images})")
    if tables:
        names = ", ".join(table.name for table in tables)
        lines.append(f"found {names}, but it lists none of the images by name")
    else:
        lines.append(f"no label CSV ({label_names}): pass --labels")
    lines.append(f"no folder of masks next to the images ({masks}); layouts: docs/your-data.md")
    return "\n  ".join(lines)


def _holds_masks(given: Given) -> bool:
    assert given.labels is not None
    return bool(
        discovery.images_below(
            given.labels,
            follow_symlinks=given.follow_symlinks,
            suffixes=discovery.MASK_SUFFIXES,
        )
    )


def _kinds(paths: tuple[Path, ...] | list[Path]) -> str:
    names = {".dcm": "DICOM", ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
    counts = Counter(names.get(path.suffix.lower(), "DICOM") for path in paths)
    return " and ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) + " files"
