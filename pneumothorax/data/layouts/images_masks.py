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
from pneumothorax.errors import BadInput

NAME = "images-masks"
IMAGES, TEST_IMAGES = "images", "images-test"
MASKS = ("masks", "labels")
TEST_MASKS = ("masks-test", "labels-test")
ANNOTATED = "annotated.csv"
FLAGGED = ("ImageId", "has_pneumo")


@dataclass(frozen=True)
class ImagesMasks:
    """The folder `root` that holds all the others, and the folders of masks."""

    reason: str
    root: Path
    mask_folders: tuple[Path, ...]
    annotated: Path | None
    follow_symlinks: bool = False
    name: str = NAME

    @property
    def tables(self) -> dict[str, Path]:
        return {ANNOTATED: self.annotated} if self.annotated else {}

    def images(self, paths: Iterable[Path]) -> tuple[Path, ...]:
        folders = {self.root / IMAGES, self.root / TEST_IMAGES}
        return tuple(path for path in paths if not folders.isdisjoint(path.parents))

    def read(self) -> Listed:
        training = [path.stem for path in self._files(self.root / IMAGES)]
        tested = [path.stem for path in self._files(self.root / TEST_IMAGES)]
        files = [path for folder in self.mask_folders for path in self._files(folder)]
        masks, orphans = group_masks({*training, *tested}, files)
        listed = self._listed()
        annotated = {**listed, **{stem: listed.get(stem) for stem in masks}}
        return Listed(
            annotations={
                image_id: Annotation(masks=masks.get(image_id, ()), positive=positive)
                for image_id, positive in annotated.items()
            },
            test_ids=tuple(tested),
            orphans=tuple(str(path) for path in orphans),
        )

    def _files(self, folder: Path) -> tuple[Path, ...]:
        return discovery.images_below(folder, follow_symlinks=self.follow_symlinks)

    def _listed(self) -> dict[str, bool | None]:
        """The images of annotated.csv, and what it says about them."""
        if self.annotated is None:
            return {}
        if FLAGGED[1] in labels.header(self.annotated):
            return dict(labels.read_flags(self.annotated, FLAGGED))
        return dict.fromkeys(labels.read_ids(self.annotated))


def recognise(found: Found) -> bool:
    return bool(_roots(found))


def layout(found: Found, given: Path | None, *, follow_symlinks: bool) -> ImagesMasks:
    """Raises BadInput where there are several such pairs of folders.

    Args:
        given: the folder of masks from the command line.
    """
    roots = _roots(found)
    if given is not None:
        if not given.is_dir():
            raise BadInput(f"--labels: {given} is not a folder of mask images")
        roots = [folder.parent for folder in found.folders_named(IMAGES)]
    root = only(roots, f"folder with {IMAGES} and {' or '.join(MASKS)}", flag="--input")
    masks = [root / name for name in MASKS if found.below(root / name)]
    folder = given or only(masks, "folder of masks", flag="--labels")
    tests = [root / name for name in TEST_MASKS if found.below(root / name)]
    tested = (only(tests, "folder of masks of test images", flag="--input"),) if tests else ()
    annotated = root / ANNOTATED
    return ImagesMasks(
        f"the folders {IMAGES} and {folder.name}",
        root,
        (folder, *tested),
        annotated if annotated in found.tables else None,
        follow_symlinks,
    )


def _roots(found: Found) -> list[Path]:
    """The folders that hold a folder of images and one of masks."""
    with_masks = {folder.parent for folder in found.folders_named(*MASKS)}
    return [folder.parent for folder in found.folders_named(IMAGES) if folder.parent in with_masks]
