"""The submission file: the sample's ids in the sample's order, every row decoded again before it is believed."""

import csv
import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pneumothorax import atomic, rle
from pneumothorax.errors import BadInput, bad_list
from pneumothorax.labels import Sample


def write(path: Path, sample: Sample, rows: dict[str, str]) -> None:
    """Write one row per id of the sample: its columns and order, LF, no index. Raises BadInput for other ids."""
    missing = [image_id for image_id in sample.image_ids if image_id not in rows]
    extra = sorted(set(rows) - set(sample.image_ids))
    if missing or extra:
        problems = [f"{image_id}: no prediction" for image_id in missing]
        problems += [f"{image_id}: not in the sample submission" for image_id in extra]
        raise bad_list(f"the predictions do not fit the sample submission ({len(problems)} ids)", problems)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(sample.columns)
    writer.writerows((image_id, rows[image_id]) for image_id in sample.image_ids)
    atomic.write_text(path, text.getvalue())


def check(
    path: Path, sample: Sample, shape_of: dict[str, tuple[int, int]], mask_of: Callable[[str], np.ndarray]
) -> None:
    """Read the file back: the sample's ids, and every row decodes to the mask it came from. Raises BadInput."""
    with open(path, encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    if tuple(header) != sample.columns or tuple(row[0] for row in rows) != sample.image_ids:
        raise BadInput(f"{path}: columns, ids or order differ from the sample submission")
    wrong = [
        image_id
        for image_id, text in rows
        if not np.array_equal(rle.decode(text, shape_of[image_id]), mask_of(image_id))
    ]
    if wrong:
        raise bad_list(f"{path}: {len(wrong)} rows do not decode to their mask", wrong)


def warnings(rows: dict[str, str], share_in_training: float) -> list[str]:
    """What a person should look at before handing the file in."""
    empty = Counter(text == rle.EMPTY for text in rows.values())[True]
    share = 1 - empty / len(rows)
    if share in (0.0, 1.0):
        what = "no image has" if share == 0 else "every image has"
        return [f"warning: {what} a predicted pneumothorax; {share_in_training:.1%} of the training images have one"]
    return []
