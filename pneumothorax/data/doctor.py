"""What `00_prepare_data.py --verify` says beyond the summary: all that is odd about a data set."""

from collections import Counter, defaultdict
from typing import Any

from pydicom.pixels import get_decoder
from pydicom.uid import AllTransferSyntaxes
from scipy.stats import binomtest

from pneumothorax.errors import MAX_LISTED
from pneumothorax.pipeline import artifacts
from pneumothorax.pixels import INSTALL

SHARE_POSITIVE = 0.2215  # of SIIM-ACR's images (stage_2_train.csv: 2,669 of 12,047)

Row = dict[str, Any]  # of the manifest


def report(rows: list[Row], rejected: list[dict[str, str]]) -> list[str]:
    """Lines for a person, of the images that can be used and of the files that cannot.

    Args:
        rows: manifest rows.
        rejected: source, code and message.
    """
    train = [row for row in rows if row["split"] == artifacts.TRAIN]
    return [
        *missing_decoders(),
        *_listed(
            "files that are not used",
            [f"{one['source']}: {one['code']}: {one['message']}" for one in rejected],
        ),
        *share_of_positives(train),
        *same_radiographs(rows),
        *_counts("sizes", [f"{row['height']} x {row['width']}" for row in rows]),
        *_counts("sexes", [row["sex"] or "unknown" for row in rows]),
        *_counts("decoders", [row["decoder"] for row in rows]),
    ]


def missing_decoders() -> list[str]:
    """Transfer syntaxes of images that nothing installed here decodes."""
    missing = []
    for syntax in AllTransferSyntaxes:
        try:
            if not get_decoder(syntax).is_available:
                missing.append(syntax.name)
        except NotImplementedError:  # no image's
            continue
    return (
        [f"no decoder for {', '.join(missing)}; should there be such files: {INSTALL}"]
        if missing
        else []
    )


def share_of_positives(train: list[Row]) -> list[str]:
    """A warning where the share of positives cannot be chance around SIIM-ACR's."""
    positives = sum(row["positive"] for row in train)
    if not train:
        return []
    interval = binomtest(positives, len(train)).proportion_ci(0.999, method="wilson")
    if interval.low <= SHARE_POSITIVE <= interval.high:
        return []
    other = f"{positives / len(train):.1%} of the training images are positive, {SHARE_POSITIVE:.1%} of SIIM-ACR's"
    return [f"warning: {other}: another selection, or labels that are missing"]


def same_radiographs(rows: list[Row]) -> list[str]:
    """Images with the same pixels under several ids, and whether their labels agree."""
    twins = defaultdict(list)
    for row in rows:
        twins[row["sha256"]].append(row)
    groups = [group for group in twins.values() if len(group) > 1]
    same: list[str] = []
    contradictory: list[str] = []
    for group in groups:
        names = ", ".join(sorted(row["image_id"] for row in group))
        labels = {row["mask_sha256"] for row in group if row["split"] == artifacts.TRAIN}
        (contradictory if len(labels) > 1 else same).append(names)
    return [
        *_listed("groups of ids of the same radiograph", sorted(same)),
        *_listed(
            "groups of ids of the same radiograph with contradictory labels (warning)",
            sorted(contradictory),
        ),
    ]


def _listed(what: str, items: list[str]) -> list[str]:
    if not items:
        return []
    rest = [f"  ... and {len(items) - MAX_LISTED} more"] if len(items) > MAX_LISTED else []
    return [f"{len(items)} {what}:", *(f"  {item}" for item in items[:MAX_LISTED]), *rest]


def _counts(what: str, values: list[str]) -> list[str]:
    return [
        f"{what}: "
        + ", ".join(f"{count} {value}" for value, count in Counter(values).most_common(10))
    ]
