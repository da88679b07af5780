"""The results folder of predict_radiographs.py: its files and where it may be."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pneumothorax.errors import BadInput
from pneumothorax.inference.reading import Listed
from pneumothorax.pipeline import artifacts
from pneumothorax.pipeline.artifacts import file_name
from pneumothorax.pipeline.journal import Journal

# Every path is relative to the folder, as those of `artifacts` to the output folder.
PREDICTIONS = artifacts.Table(
    "predictions.csv",
    tuple(
        "image_id source height width p_positive area_px area_mm2 spacing "
        "not_a_radiograph trained_on rle".split()
    ),
    "predict_radiographs.py",
    integers=("height", "width", "area_px"),
    numbers=("p_positive", "area_mm2"),
)
JOURNAL = artifacts.RADIOGRAPHS_JOURNAL
PAGE = "index.html"


def overlay(image_id: str) -> str:
    """8-bit colour PNG (H, W)."""
    return f"overlays/{file_name(image_id, '.png')}"


def mask(image_id: str) -> str:
    """8-bit grey PNG (H, W) of 0 and 255."""
    return f"masks/{file_name(image_id, '.png')}"


def radiograph(image_id: str) -> str:
    """8-bit grey JPEG, small: what the page shows below the mask."""
    return f"radiographs/{file_name(image_id, '.jpg')}"


def segmentation(image_id: str) -> str:
    """DICOM Segmentation object."""
    return f"segmentations/{file_name(image_id, '.dcm')}"


def check_places(path: Path, folder: Path, *, raw: Path, output: Path) -> None:
    """Raises BadInput if `folder` is inside input data or inside the output of stages.

    Args:
        path: the file or folder to predict.
        raw, output: --input and --output.
    """
    if not (path.is_file() or path.is_dir()):
        raise BadInput(f"{path} does not exist, or is neither a file nor a folder")
    for place in (path, raw):
        if folder.resolve().is_relative_to(place.resolve()):
            raise BadInput(
                f"--to {folder} lies in {place}, which is only read: choose a folder outside it"
            )
    if path.resolve().is_relative_to(folder.resolve()):
        raise BadInput(f"--to {folder} holds {path}, which is only read: choose another folder")
    if folder.resolve().is_relative_to(output.resolve()):
        raise BadInput(
            f"--to {folder} lies in {output}, where the stages keep their own files: "
            "choose another folder"
        )


def write_tables(folder: Path, rows: Sequence[Mapping[str, Any]], listed: Listed) -> Path:
    """Write both tables; returns the path of the predictions."""
    path = artifacts.write_rows(folder, PREDICTIONS, rows)
    artifacts.write_rows(folder, artifacts.REJECTED, listed.rejections())
    return path


def forget(folder: Path) -> None:
    """Remove the results that earlier calls wrote to the folder, and nothing else."""
    with Journal(folder / JOURNAL) as journal:
        for entry in journal.entries.values():
            remove(folder, entry.get("files", ()))
    (folder / JOURNAL).unlink()


def remove(folder: Path, names: Iterable[str]) -> None:
    """Remove files by their names in the journal, but none outside the folder."""
    for name in names:
        if (folder / name).resolve().is_relative_to(folder.resolve()):
            (folder / name).unlink(missing_ok=True)


def of_earlier_calls(folder: Path, listed: Listed) -> int:
    """The number of images with results in the folder that are not in this call."""
    with Journal(folder / JOURNAL) as journal:
        return len(set(journal.entries) - {file.image_id for file in listed.files})
