"""What stage 00 did with each file, and the tables that record it."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pneumothorax import rle
from pneumothorax.data import discovery
from pneumothorax.data.jobs import Job
from pneumothorax.data.one_image import UNLABELLED, Entry, digest
from pneumothorax.pipeline import artifacts, records

FINGERPRINT_COLUMNS = (
    "image_id patient_id height width positive mask_pixels sha256 mask_sha256".split()
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Every file is either a row of the manifest, a copy of one, or rejected."""

    rows: list[Entry]
    labels: dict[str, list[str]]  # of the annotated images among the rows, [] for a negative one
    rejected: list[dict[str, str]]  # source, code, message
    label_errors: list[str]
    missing: list[str]  # listed ids without a file
    orphans: list[str]  # mask files without an image
    ambiguous: list[str]  # ids of several files with different contents: all of them rejected
    colour: int  # images converted to grey
    narrow: list[str]  # sources of images that use less than a tenth of the grey range
    duplicates: int  # files that are copies of another
    repeated_rows: int  # label rows that are listed twice, word for word

    @property
    def train(self) -> list[Entry]:
        """The manifest's training rows."""
        return [row for row in self.rows if row["split"] == artifacts.TRAIN]

    @property
    def test(self) -> list[Entry]:
        """The manifest's test rows."""
        return [row for row in self.rows if row["split"] == artifacts.TEST]

    @property
    def unlabelled(self) -> int:
        """Files that nobody annotated: not used, but not bad either."""
        return len(self.rejected) - len(self.bad)

    @property
    def bad(self) -> list[dict[str, str]]:
        return [entry for entry in self.rejected if entry["code"] != UNLABELLED]


def account(entries: dict[str, Entry], path_of: dict[str, Path], job: Job) -> Outcome:
    """Journal entries by source -> the outcome.

    Args:
        path_of: the files by source. A source is not always a path
            (discovery.source_name).
    """
    by_id: dict[str, list[Entry]] = defaultdict(list)
    rejected, used, ambiguous = [], [], []
    label_errors: list[str] = []
    for source, entry in sorted(entries.items()):
        if "row" in entry:
            by_id[entry["row"]["image_id"]].append(entry)
        else:
            rejected.append({"source": source, "code": entry["code"], "message": entry["message"]})
            label_errors += [entry["message"]] if entry.get("label_error") else []
    clashes = discovery.clashes(
        by_id,
        are_copies=lambda twins: same_contents([path_of[twin["row"]["source"]] for twin in twins]),
    )
    for image_id, twins in by_id.items():
        if image_id not in clashes:
            used.append(twins[0])
            continue
        code, message = clashes[image_id]
        ambiguous += [image_id] if code == "DUPLICATE_ID" else []
        rejected += [
            {"source": twin["row"]["source"], "code": code, "message": message} for twin in twins
        ]
    id_of = job.listed.id_of
    already_listed = {
        id_of.get(path.name, path.stem) for path in (Path(entry["source"]) for entry in rejected)
    }
    return Outcome(
        rows=[entry["row"] for entry in used],
        labels=_labels(used, job),
        rejected=rejected,
        label_errors=label_errors,
        missing=sorted(job.listed.image_ids - set(by_id) - already_listed),
        orphans=list(job.listed.orphans),
        ambiguous=ambiguous,
        colour=sum(entry["colour"] for entry in used),
        narrow=[entry["row"]["source"] for entry in used if entry["narrow"]],
        duplicates=sum(len(by_id[entry["row"]["image_id"]]) - 1 for entry in used),
        repeated_rows=job.listed.repeated,
    )


def _labels(used: list[Entry], job: Job) -> dict[str, list[str]]:
    annotations = job.listed.annotations
    return {
        image_id: [*annotations[image_id].rows, *entry["label"]]
        for image_id, entry in ((entry["row"]["image_id"], entry) for entry in used)
        if image_id in annotations
    }


def same_contents(paths: Sequence[Path]) -> bool:
    """Whether all files hold the same bytes; False if one can no longer be read."""
    try:
        return len({records.sha256(path) for path in paths}) == 1
    except OSError:
        return False


def manifest(outcome: Outcome) -> pd.DataFrame:
    """One row per usable image, training images first, sorted by id."""
    frame = pd.DataFrame(outcome.rows, columns=list(artifacts.MANIFEST.columns))
    return frame.sort_values(["split", "image_id"], ascending=[False, True], ignore_index=True)


def rejections(outcome: Outcome) -> pd.DataFrame:
    """One row per file that is not used."""
    frame = pd.DataFrame(outcome.rejected, columns=list(artifacts.REJECTED.columns))
    return frame.sort_values(["code", "source"], ignore_index=True)


def label_table(outcome: Outcome, *, split: str) -> pd.DataFrame:
    """image_id, rle: the mask rows of a split's annotated images.

    Several rows per image. A negative training image has none, a negative test image "-1",
    since a test image without a row is not annotated.
    """
    negative = [rle.EMPTY] if split == artifacts.TEST else []
    ids = sorted(row["image_id"] for row in outcome.rows if row["split"] == split)
    pairs = [
        (image_id, text)
        for image_id in ids
        if image_id in outcome.labels
        for text in outcome.labels[image_id] or negative
    ]
    return pd.DataFrame(pairs, columns=list(artifacts.LABELS.columns))


def write_tables(output: Path, outcome: Outcome) -> list[str]:
    """Write rejected.csv and, if all labels fit their images, the others.

    Returns the paths of the tables that later stages read, below `output`.
    """
    artifacts.write_table(output, artifacts.REJECTED, rejections(outcome))
    if outcome.label_errors:
        return []
    tables = {
        artifacts.MANIFEST: manifest(outcome),
        artifacts.LABELS: label_table(outcome, split=artifacts.TRAIN),
        artifacts.TEST_LABELS: label_table(outcome, split=artifacts.TEST),
    }
    if tables[artifacts.TEST_LABELS].empty:
        (output / artifacts.TEST_LABELS.path).unlink(missing_ok=True)
        del tables[artifacts.TEST_LABELS]
    for table, frame in tables.items():
        artifacts.write_table(output, table, frame)
    return [table.path for table in tables]


def fingerprints(outcome: Outcome, *, size: int) -> dict[str, str]:
    """Two hashes: of everything that training depends on, and of the test images.

    Separate, because either may change without the other. Labels of test images are in
    neither.

    Args:
        size: height and width of the cached images in pixels.
    """
    table = manifest(outcome)
    text = {
        split: table.loc[table["split"] == split, FINGERPRINT_COLUMNS].to_csv(index=False)
        for split in (artifacts.TRAIN, artifacts.TEST)
    }
    labels = label_table(outcome, split=artifacts.TRAIN).to_csv(index=False)
    training = f"{size}\n{text[artifacts.TRAIN]}\n{labels}"
    test = f"{size}\n{text[artifacts.TEST]}"
    return {
        artifacts.TRAINING_IMAGES: digest(training.encode()),
        artifacts.TEST_IMAGES: digest(test.encode()),
    }
