"""Layout images-masks: a folder of images and a folder of masks with the same names.

    images/         DICOM, PNG or JPEG
    masks/ or labels/    mask images: <stem>.png, or several: <stem>_1.png, <stem>_2.png, ...
    annotated.csv   optional: the annotated images (ImageId), and has_pneumo (0 or 1)
    images-test/    optional: test images; those with a mask are scored

An image is annotated if it has a mask, maybe an empty one, or a row in annotated.csv.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pneumothorax.data import discovery, labels
from pneumothorax.data.discovery import Found
from pneumothorax.data.layouts.listed import (
    Annotation,
    Listed,
    group_masks,
    only,
)
from pneumothorax.errors import BadInput, bad_list, counted

NAME = "images-masks"
IMAGES, TEST_IMAGES = "images", "images-test"
MASKS = ("masks", "labels")
TEST_MASKS = ("masks-test", "labels-test")
ANNOTATED = "annotated.csv"
FLAGGED = ("ImageId", "has_pneumo")


@dataclass(frozen=True)
class ImagesMasks:
    """The folders of images and of their masks; those of test images may be missing."""

    reason: str
    image_folder: Path
    masks: Path
    test_folder: Path | None
    test_masks: Path | None
    annotated: Path | None
    follow_symlinks: bool = False
    name: str = NAME

    @property
    def tables(self) -> dict[str, Path]:
        return {ANNOTATED: self.annotated} if self.annotated else {}

    @property
    def mask_folders(self) -> tuple[Path, ...]:
        return (self.masks, *([self.test_masks] if self.test_masks else []))

    def images(self, paths: Iterable[Path]) -> tuple[Path, ...]:
        folders = {self.image_folder, self.test_folder}
        return tuple(path for path in paths if not folders.isdisjoint(path.parents))

    def read(self) -> Listed:
        training, tested = self._stems(self.image_folder), self._stems(self.test_folder)
        masks, orphans = group_masks({*training, *tested}, self._mask_files(self.masks))
        if self.test_masks:
            of_test, others = group_masks(set(tested), self._mask_files(self.test_masks))
            both = sorted(masks.keys() & of_test)
            if both:
                have = counted(len(both), "test image has", "test images have")
                raise bad_list(f"{have} masks in two folders", both)
            masks, orphans = {**masks, **of_test}, [*orphans, *others]
        listed = self._listed()
        annotated = {**listed, **{stem: listed.get(stem) for stem in masks}}
        return Listed(
            annotations={
                image_id: Annotation(masks=masks.get(image_id, ()), positive=positive)
                for image_id, positive in annotated.items()
            },
            test_ids=tuple(tested),
            orphans=tuple(discovery.printable(str(path)) for path in orphans),
        )

    def _stems(self, folder: Path | None) -> list[str]:
        if folder is None:
            return []
        paths = discovery.images_below(folder, follow_symlinks=self.follow_symlinks)
        return [discovery.printable(path.stem) for path in paths]

    def _mask_files(self, folder: Path) -> tuple[Path, ...]:
        return discovery.images_below(
            folder, follow_symlinks=self.follow_symlinks, suffixes=discovery.MASK_SUFFIXES
        )

    def _listed(self) -> dict[str, bool | None]:
        """The images of annotated.csv, and what it says about them."""
        if self.annotated is None:
            return {}
        if FLAGGED[1] in labels.header(self.annotated):
            return dict(labels.read_flags(self.annotated, FLAGGED))
        return dict.fromkeys(labels.read_ids(self.annotated))


def recognise(found: Found) -> bool:
    return bool(_pairs(found))


def layout(found: Found, given: Path | None, *, follow_symlinks: bool) -> ImagesMasks:
    """Raises BadInput where there are several such pairs of folders.

    Args:
        given: the folder of masks from the command line.
    """
    if given is not None and not given.is_dir():
        raise BadInput(f"--labels: {given} is not a folder of mask images")
    folders = found.folders_named(IMAGES) if given else _pairs(found)
    images = only(folders, f"folder {IMAGES} next to {' or '.join(MASKS)}", flag="--input")
    if given and (
        given.resolve() == images.resolve() or given.resolve() in images.resolve().parents
    ):
        raise BadInput(f"--labels: {given} holds the images, not their masks")

    def beside(*names: str) -> list[Path]:
        return [path for path in found.folders_named(*names) if path.parent == images.parent]

    masks = given or only(beside(*MASKS), "folder of masks", flag="--labels")
    test_masks = beside(*TEST_MASKS)
    tables = [path for path in found.tables_named(ANNOTATED) if path.parent == images.parent]
    return ImagesMasks(
        f"the folders {images.name} and {masks.name}",
        images,
        masks,
        next(iter(beside(TEST_IMAGES)), None),
        only(test_masks, "folder of masks of test images", flag="--input") if test_masks else None,
        only(tables, ANNOTATED, flag="--input") if tables else None,
        follow_symlinks,
    )


def _pairs(found: Found) -> list[Path]:
    """The folders of images that have a folder of masks next to them."""
    with_masks = {folder.parent for folder in found.folders_named(*MASKS)}
    return [folder for folder in found.folders_named(IMAGES) if folder.parent in with_masks]
