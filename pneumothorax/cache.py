"""Checks on the image cache before hours are spent on it."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from pneumothorax import artifacts, records
from pneumothorax.errors import BadInput, bad_list


def size(output: Path, image_size: int) -> int:
    """The size the cache was made at. Raises BadInput when it is smaller than `image_size`."""
    found = int(records.require(output, artifacts.PREPARED)["settings"]["size"])
    if found < image_size:
        raise BadInput(
            f"the cache holds {found} x {found} images, {image_size} are needed: 00_prepare_data.py --size {image_size}"
        )
    return found


def verify(output: Path, cache_size: int, rows: pd.DataFrame, *, workers: int) -> None:
    """Compare every cached image of `rows` with its hash in the manifest. Raises BadInput listing the wrong ones."""

    def problem(image_id: str, expected: str) -> str:
        path = artifacts.cached_image(output, cache_size, image_id)
        try:
            return "" if records.sha256(path) == expected else f"{path}: damaged"
        except OSError as error:
            return f"{path}: {error.strerror}"

    with ThreadPoolExecutor(max(1, workers)) as pool:
        problems = [text for text in pool.map(problem, rows["image_id"], rows["sha256"]) if text]
    if problems:
        raise bad_list(
            f"{len(problems)} cached images are not what the manifest says: run 00_prepare_data.py again", problems
        )
