"""The submission file: the sample's columns, and its ids in its order."""

import csv
import io
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from pneumothorax import rle
from pneumothorax.data.labels import Sample
from pneumothorax.errors import bad_list
from pneumothorax.pipeline import atomic


def check_ids(sample: Sample, predicted: Collection[str]) -> None:
    """Raises BadInput listing every id of the sample without a prediction, and the other way round."""
    known = set(predicted)
    missing = [image_id for image_id in sample.image_ids if image_id not in known]
    extra = sorted(known - set(sample.image_ids))
    if missing or extra:
        problems = [f"{image_id}: no prediction" for image_id in missing]
        problems += [f"{image_id}: not in the sample submission" for image_id in extra]
        raise bad_list(
            f"the predictions do not fit the sample submission ({len(problems)} ids)", problems
        )


def write(path: Path, sample: Sample, rows: dict[str, str]) -> None:
    """Write one row per id of the sample: its columns and order, LF, no index.

    The text is read back before it gets its name. Raises BadInput for missing or extra ids.
    """
    check_ids(sample, rows)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(sample.columns)
    writer.writerows((image_id, rows[image_id]) for image_id in sample.image_ids)
    text.seek(0)
    if list(csv.reader(text)) != [
        [*sample.columns],
        *([image_id, rows[image_id]] for image_id in sample.image_ids),
    ]:
        raise RuntimeError(f"{path}: the rows do not read back as they were written")
    atomic.write_text(path, text.getvalue())


def warnings(rows: dict[str, str], share_in_training: float) -> list[str]:
    """What a person should look at before handing the file in."""
    empty = Counter(text == rle.EMPTY for text in rows.values())[True]
    alike = all_alike(1 - empty / len(rows), share_in_training)
    return [f"warning: {alike}"] if alike else []


def all_alike(share: float, share_in_training: float) -> str:
    """What to say where all images or none have a mask, "" otherwise; both are shares of images, 0 to 1."""
    if share not in (0.0, 1.0):
        return ""
    what = "no image has" if share == 0 else "every image has"
    return (
        f"{what} a predicted pneumothorax; {share_in_training:.1%} of the training images have one"
    )
