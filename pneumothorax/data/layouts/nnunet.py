"""Layout nnunet: the raw folder of nnU-Net, with PNG files of one channel.

    imagesTr/<case>_0000.png, labelsTr/<case>.png      training images and their masks
    imagesTs/<case>_0000.png, labelsTs/<case>.png      test images; masks are optional

The case is the image id. A case without a mask is not annotated.
nnU-Net v2, documentation/dataset_format.md.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pneumothorax.data import discovery
from pneumothorax.data.discovery import Found
from pneumothorax.data.layouts.listed import Annotation, Listed, only
from pneumothorax.errors import BadInput, bad_list, counted

NAME = "nnunet"
IMAGES, MASKS = "imagesTr", "labelsTr"
TEST_IMAGES, TEST_MASKS = "imagesTs", "labelsTs"


@dataclass(frozen=True)
class NnUnet:
    """The folder `root` that holds imagesTr, labelsTr and maybe imagesTs, labelsTs."""

    reason: str
    root: Path
    follow_symlinks: bool = False
    name: str = NAME

    @property
    def tables(self) -> dict[str, Path]:
        return {}

    @property
    def mask_folders(self) -> tuple[Path, ...]:
        return self.root / MASKS, self.root / TEST_MASKS

    def images(self, paths: Iterable[Path]) -> tuple[Path, ...]:
        folders = {self.root / IMAGES, self.root / TEST_IMAGES}
        return tuple(path for path in paths if not folders.isdisjoint(path.parents))

    def read(self) -> Listed:
        cases = {folder: self._cases(folder) for folder in (IMAGES, TEST_IMAGES)}
        annotations: dict[str, Annotation] = {}
        orphans: list[str] = []
        for image_folder, mask_folder in ((IMAGES, MASKS), (TEST_IMAGES, TEST_MASKS)):
            known = set(cases[image_folder].values())
            for path in self._files(mask_folder, suffixes=discovery.MASK_SUFFIXES):
                if path.stem in known:
                    masks = annotations.get(path.stem, Annotation()).masks
                    annotations[path.stem] = Annotation(masks=(*masks, path))
                else:
                    orphans.append(discovery.printable(str(path)))
        test_ids = tuple(cases[TEST_IMAGES].values())
        return Listed(
            annotations=annotations,
            test_ids=test_ids,
            id_of={**cases[IMAGES], **cases[TEST_IMAGES]},
            orphans=tuple(orphans),
        )

    def _files(
        self, name: str, *, suffixes: tuple[str, ...] = discovery.IMAGE_SUFFIXES
    ) -> tuple[Path, ...]:
        return discovery.images_below(
            self.root / name, follow_symlinks=self.follow_symlinks, suffixes=suffixes
        )

    def _cases(self, name: str) -> dict[str, str]:
        """File name -> case. Raises BadInput for images of several channels."""
        cases, channels = {}, []
        for path in self._files(name):
            parts = re.fullmatch(r"(.+)_(\d{4})", path.stem)
            if parts and parts[2] == "0000":
                cases[path.name] = parts[1]
            else:
                channels.append(path.name)
        if channels:
            are = counted(len(channels), "file is", "files are")
            raise bad_list(f"{self.root / name}: {are} not <case>_0000.png", channels)
        return cases


def recognise(found: Found) -> bool:
    return bool(found.folders_named(IMAGES) and found.folders_named(MASKS))


def layout(found: Found, *, follow_symlinks: bool) -> NnUnet:
    """Raises BadInput where a folder is missing or found several times."""
    root = only(found.folders_named(IMAGES), f"folder {IMAGES}", flag="--input").parent
    if not found.below(root / MASKS):
        raise BadInput(f"{root / IMAGES} has no masks: no PNG file in {root / MASKS}")
    return NnUnet(f"the folders {IMAGES} and {MASKS}", root, follow_symlinks)
