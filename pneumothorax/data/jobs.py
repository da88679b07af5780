"""What preparing an image needs beyond its file: the two tables, size, salt, output."""

import functools
import platform
from dataclasses import dataclass
from pathlib import Path

from pneumothorax.data import labels
from pneumothorax.errors import BadInput, bad_list
from pneumothorax.pipeline import records


@dataclass(frozen=True)
class Listed:
    """The two tables: label rows by training id, test ids, number of repeated rows."""

    rows: dict[str, tuple[str, ...]]
    test_ids: frozenset[str]
    repeated: int

    @property
    def image_ids(self) -> set[str]:
        """Every id that should have an image."""
        return set(self.rows) | self.test_ids


@dataclass(frozen=True)
class Job:
    """One run of stage 00, small enough to send to a worker with every file.

    Args:
        tables_hash: of `labels` and `sample` as the run found them. A worker may
            outlive a run or see another folder: it must not answer from another
            version.
        size: height and width of the cached images in pixels.
        output: None checks everything and writes nothing.
    """

    labels: Path
    sample: Path | None
    tables_hash: str
    size: int
    salt: str
    output: Path | None

    @property
    def listed(self) -> Listed:
        """The tables, read once per process.

        Raises BadInput if they have changed.
        """
        return _read_tables(self.labels, self.sample, self.tables_hash)


def plan(
    labels_csv: Path, sample_csv: Path | None, *, size: int, salt: str, output: Path | None
) -> Job:
    """The job, for the tables with their present contents."""
    tables_hash = _tables_hash(labels_csv, sample_csv)
    return Job(labels_csv, sample_csv, tables_hash, size, salt, output)


def check_tables(listed: Listed) -> None:
    """Raises BadInput when an image is listed for training and for testing."""
    both = sorted(set(listed.rows) & listed.test_ids)
    if both:
        raise bad_list(f"{len(both)} ids are in the label file and in the sample submission", both)


@functools.lru_cache(maxsize=1)
def _read_tables(labels_csv: Path, sample_csv: Path | None, tables_hash: str) -> Listed:
    try:
        unchanged = _tables_hash(labels_csv, sample_csv) == tables_hash
    except OSError:
        unchanged = False
    if not unchanged:
        names = " and ".join(str(path) for path in (labels_csv, sample_csv) if path)
        node = platform.node()
        raise BadInput(f"{names}: missing or changed since the run began, seen from {node}")
    found = labels.read(labels_csv)
    test_ids = labels.read_sample(sample_csv).image_ids if sample_csv else ()
    return Listed(found.rows, frozenset(test_ids), found.repeated)


def _tables_hash(labels_csv: Path, sample_csv: Path | None) -> str:
    return "".join(records.sha256(path) for path in (labels_csv, sample_csv) if path)
