"""Check the image cache before hours of work depend on it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from pneumothorax.errors import BadInput, bad_list, counted
from pneumothorax.pipeline import artifacts, lineage, records

if TYPE_CHECKING:
    import pandas as pd


def size(output: Path, *, at_least: int = 0) -> int:
    """Height and width of the cached images, in pixels.

    Raises BadInput when smaller than `at_least`.
    """
    found = int(lineage.prepared(output)["settings"]["size"])
    if found < at_least:
        needed = f"{at_least} are needed: run 00_prepare_data.py --size {at_least}"
        raise BadInput(f"the cache holds {found} x {found} images, {needed}")
    return found


def verify(output: Path, cache_size: int, rows: pd.DataFrame, *, workers: int) -> None:
    """Compare the cached images and masks of manifest rows with the recorded hashes.

    Raises BadInput that lists damaged and missing files.
    """

    def problem(path: Path, expected: str) -> str:
        try:
            return "" if records.sha256(path) == expected else f"{path}: damaged"
        except OSError as error:
            return f"{path}: {error.strerror}"

    cache = artifacts.Cache(cache_size)
    masked = rows[rows["mask_sha256"] != ""]
    paths = [output / cache.image(image_id) for image_id in rows["image_id"]]
    paths += [output / cache.mask(image_id) for image_id in masked["image_id"]]
    expected = [*rows["sha256"], *masked["mask_sha256"]]
    with ThreadPoolExecutor(max(1, workers)) as pool:
        problems = [text for text in pool.map(problem, paths, expected) if text]
    if problems:
        differ = counted(len(problems), "cached file differs", "cached files differ")
        headline = f"{differ} from the manifest"
        raise bad_list(f"{headline}: run 00_prepare_data.py again", problems)
