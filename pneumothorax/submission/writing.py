"""Write the submission CSV: the sample submission's columns, its ids, its order."""

import csv
import io
from collections.abc import Collection
from pathlib import Path

from pneumothorax import rle
from pneumothorax.data.labels import SampleSubmission
from pneumothorax.errors import bad_list, counted
from pneumothorax.pipeline import atomic


def check_ids(
    sample: SampleSubmission, predicted: Collection[str], *, beyond: Collection[str] = ()
) -> None:
    """Raises BadInput with the ids that the sample and the predictions do not share.

    Args:
        beyond: ids that may be predicted without being in the sample.
    """
    known = set(predicted)
    missing = [image_id for image_id in sample.image_ids if image_id not in known]
    extra = sorted(known - set(sample.image_ids) - set(beyond))
    if missing or extra:
        problems = [f"{image_id}: no prediction" for image_id in missing]
        problems += [f"{image_id}: not in the sample submission" for image_id in extra]
        ids = counted(len(problems), "id")
        raise bad_list(f"the predictions do not fit the sample submission ({ids})", problems)


def write(path: Path, sample: SampleSubmission, rows: dict[str, str]) -> None:
    """Write one row per id of the sample; LF line ends, no index column.

    The text is read back before the file gets its name. Raises BadInput for missing or
    extra ids.
    """
    check_ids(sample, rows)
    table = [[*sample.columns], *([image_id, rows[image_id]] for image_id in sample.image_ids)]
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(table)
    text.seek(0)
    if list(csv.reader(text)) != table:
        raise RuntimeError(f"{path}: the rows do not read back as they were written")
    atomic.write_text(path, text.getvalue())


def warnings(rows: dict[str, str], share_in_training: float) -> list[str]:
    """What to look at before submitting the file."""
    positives = sum(text != rle.EMPTY for text in rows.values())
    alike = all_alike(positives / len(rows), share_in_training)
    return [f"warning: {alike}"] if alike else []


def all_alike(share: float, share_in_training: float | None) -> str:
    """A remark if all images or none have a mask, else "".

    Shares of images with a mask, 0 to 1; None if no training images are known.
    """
    if share not in (0.0, 1.0):
        return ""
    remark = f"{'no' if share == 0 else 'every'} image has a predicted pneumothorax"
    if share_in_training is None:
        return remark
    return f"{remark}; {share_in_training:.1%} of the training images have one"
