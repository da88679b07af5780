"""Layouts siim-dicom and images-rle: images named by their id, and a run-length CSV.

siim-dicom    *.dcm, *.dicom and *.dicm at any depth
images-rle    PNG, JPEG and DICOM files at any depth

The label file is train-rle.csv or stage_2_train.csv, test images are those in the
sample submission. test-rle.csv holds the labels of test images, if anybody has them.
`train.csv` with ImageId,target, which some sets of PNG files bring, must agree.
"""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pneumothorax.data import discovery, labels
from pneumothorax.data.discovery import Found
from pneumothorax.data.layouts import images_masks, nnunet, siim_png
from pneumothorax.data.layouts.listed import Annotation, Listed, only
from pneumothorax.errors import BadInput, bad_list, counted

SIIM_DICOM, IMAGES_RLE = "siim-dicom", "images-rle"
LABEL_NAMES = ("train-rle.csv", "stage_2_train.csv")
TEST_LABEL_NAMES = ("test-rle.csv",)
TARGET_NAMES = ("train.csv",)
TARGET_COLUMNS = ("ImageId", "target")
MASK_FOLDERS = frozenset(
    name.casefold()
    for names in (
        (siim_png.MASKS, nnunet.MASKS, nnunet.TEST_MASKS, "mask"),
        (*images_masks.MASKS, *images_masks.TEST_MASKS),
    )
    for name in names
)


@dataclass(frozen=True)
class RunLengths:
    """Both layouts; they differ in the files that are images."""

    name: str
    reason: str
    root: Path  # the input folder
    labels: Path
    sample: Path | None = None
    test_labels: Path | None = None
    targets: Path | None = None

    @property
    def tables(self) -> dict[str, Path]:
        named = {
            "label file": self.labels,
            "sample submission": self.sample,
            "labels of test images": self.test_labels,
            "table of targets": self.targets,
        }
        return {name: path for name, path in named.items() if path is not None}

    @property
    def mask_folders(self) -> tuple[Path, ...]:
        return ()

    def images(self, paths: Iterable[Path]) -> tuple[Path, ...]:
        if self.name == IMAGES_RLE:
            return tuple(path for path in paths if not _is_mask(path, self.root))
        return tuple(path for path in paths if not discovery.is_raster(path))

    def read(self) -> Listed:
        found = labels.read(self.labels)
        rows, repeated = found.rows, found.repeated
        test_rows: dict[str, tuple[str, ...]] = {}
        if self.test_labels:
            tested = labels.read(self.test_labels)
            test_rows, repeated = tested.rows, repeated + tested.repeated
        twice = sorted(rows.keys() & test_rows)
        if twice:
            are = counted(len(twice), "id is", "ids are")
            raise bad_list(f"{are} in {self.labels} and {self.test_labels}", twice)
        sample = labels.read_sample(self.sample) if self.sample else None
        targets = labels.read_flags(self.targets, TARGET_COLUMNS) if self.targets else {}
        sampled = sample.image_ids if sample else ()
        return Listed(
            annotations={
                image_id: Annotation(rows=texts, positive=targets.get(image_id))
                for image_id, texts in {**dict.fromkeys(targets, ()), **rows, **test_rows}.items()
            },
            test_ids=tuple(dict.fromkeys((*sampled, *test_rows))),
            sample=sample,
            repeated=repeated,
            in_both=tuple(sorted((rows.keys() | targets.keys()) & set(sampled))),
        )


def recognise(found: Found, given: Path | None) -> str:
    """The layout's name; "" if there is no label CSV, or if it lists no image of the folder.

    Args:
        given: the label CSV from the command line.
    """
    tables = [given] if given else found.tables_named(*LABEL_NAMES)
    if not tables:
        return ""
    further = found.tables_named(*labels.SAMPLE_NAMES, *TEST_LABEL_NAMES)
    listed = labels.first_column(*tables, *further)
    rasters = filter(discovery.is_raster, found.images)
    if any(path.stem in listed and not _is_mask(path, found.root) for path in rasters):
        return IMAGES_RLE
    return SIIM_DICOM if found.dicoms else ""


def layout(name: str, found: Found, given: Path | None, sample: Path | None) -> RunLengths:
    """Raises BadInput for no label CSV, or for several tables of one kind.

    Args:
        given, sample: the label CSV and the sample submission from the command line.
    """
    label_file = _given_or_only(found, given, LABEL_NAMES, "--labels")
    if label_file is None:
        names = " or ".join(LABEL_NAMES)
        raise BadInput(f"no label CSV ({names}) below the input folder: pass --labels")
    tests = found.tables_named(*TEST_LABEL_NAMES)
    kinds = "DICOM" if name == SIIM_DICOM else "PNG, JPEG and DICOM"
    return RunLengths(
        name,
        f"{kinds} files with the run lengths of {label_file.name}",
        found.root,
        labels=label_file,
        sample=_given_or_only(found, sample, labels.SAMPLE_NAMES, "--sample-submission"),
        test_labels=only(tests, TEST_LABEL_NAMES[0], flag="--input") if tests else None,
        targets=_targets(found),
    )


def _targets(found: Found) -> Path | None:
    """A train.csv with the columns TARGET_COLUMNS; other files of that name are ignored."""
    fitting = []
    for path in found.tables_named(*TARGET_NAMES):
        with contextlib.suppress(BadInput):  # not even CSV text
            if set(TARGET_COLUMNS) <= set(labels.header(path)):
                fitting.append(path)
    return only(fitting, f"table with {TARGET_COLUMNS[1]}", flag="--input") if fitting else None


def _is_mask(path: Path, root: Path) -> bool:
    """Whether the file lies in a folder of masks, below the input folder."""
    return any(name.casefold() in MASK_FOLDERS for name in path.parent.relative_to(root).parts)


def _given_or_only(
    found: Found, given: Path | None, names: tuple[str, ...], flag: str
) -> Path | None:
    if given is not None:
        return given
    paths = found.tables_named(*names)
    return only(paths, f"of {' and '.join(names)}", flag=flag) if paths else None
