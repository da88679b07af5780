"""Anybody's submission CSV, read strictly: every row that is not legal, with its line, its id and the kind of fault."""

import bisect
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pneumothorax import rle
from pneumothorax.data import labels
from pneumothorax.data.labels import SUBMISSION_COLUMNS
from pneumothorax.errors import BadInput, bad_list
from pneumothorax.pipeline import artifacts
from pneumothorax.submission import conventions, intervals, submission_row
from pneumothorax.submission.intervals import Mask
from pneumothorax.submission.submission_row import Judged, Shape

KAGGLE_SHAPE: Shape = (1024, 1024)  # of every SIIM-ACR image
LISTED_PER_KIND = 20
COUNTED_FROM = {
    0: "the absolute starts are 0-based: a run starts at pixel 0 or columns end exactly at the lower edge",
    1: "the absolute starts are 1-based, as in other competitions: read from 0, runs go one pixel past an edge",
    None: "absolute 'start length' pairs are the format of other competitions, 1-based there; nothing in this file "
    "tells whether its own are 0- or 1-based",
}


@dataclass(frozen=True)
class Problem:
    """A fault of one line; faults of a `kind` are counted together."""

    line: int
    kind: str
    text: str


@dataclass(frozen=True)
class Row:
    """A legal row: its mask on the image's own grid, of no runs where it says -1."""

    line: int
    image_id: str
    mask: Mask


@dataclass
class Submitted:
    """A file's legal rows, one per id, and what is wrong with the others."""

    path: Path
    rows: list[Row] = field(default_factory=list)
    lines: dict[str, int] = field(
        default_factory=dict
    )  # id -> the first line it stands on, legal or not
    problems: list[Problem] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)  # remarks on legal rows
    absolute: list[tuple[np.ndarray, Shape]] = field(
        default_factory=list
    )  # number pairs of absolute starts

    @property
    def positives(self) -> list[Row]:
        return [row for row in self.rows if row.mask.area_px]

    def row_on(self, line: int) -> Row | None:
        """The legal row of that line; `rows` stand in the order of their lines."""
        at = bisect.bisect_left(self.rows, line, key=lambda row: row.line)
        return self.rows[at] if at < len(self.rows) and self.rows[at].line == line else None

    def add(self, line: int, image_id: str, kind: str, message: str) -> None:
        self.problems.append(Problem(line, kind, f"line {line}, {image_id[:70]!r}: {message}"))

    def refuse(self) -> None:
        """Raises BadInput that lists the problems, LISTED_PER_KIND of a kind, if there are any."""
        if not self.problems:
            return
        counts = Counter(problem.kind for problem in self.problems)
        shown: Counter[str] = Counter()
        listed = []
        for problem in sorted(self.problems, key=lambda problem: problem.line):
            shown[problem.kind] += 1
            if shown[problem.kind] <= LISTED_PER_KIND:
                listed.append(problem.text)
        more = {
            kind: count - LISTED_PER_KIND
            for kind, count in counts.items()
            if count > LISTED_PER_KIND
        }
        listed += [f"... and {count} more: {kind}" for kind, count in more.items()]
        if self.absolute:
            listed.append(COUNTED_FROM[conventions.first_number(self.absolute)])
        kinds = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
        raise bad_list(f"{self.path} is no valid submission: {kinds}", listed, limit=len(listed))


def shapes(output: Path) -> Callable[[str], Shape]:
    """image id -> (H, W): the manifest's where there is one that knows the image, else Kaggle's."""
    known: dict[str, Shape] = {}
    if (output / artifacts.MANIFEST.path).is_file():
        manifest = artifacts.read_table(output, artifacts.MANIFEST)
        sizes = zip(manifest["height"].tolist(), manifest["width"].tolist(), strict=True)
        known = dict(zip(manifest["image_id"], sizes, strict=True))
    return lambda image_id: known.get(image_id, KAGGLE_SHAPE)


def read(
    path: Path, shape_of: Callable[[str], Shape], columns: tuple[str, str] | None = None
) -> Submitted:
    """Read a submission and judge every row by itself.

    Args:
        shape_of: image id -> (H, W) of the image.
        columns: the header as it must stand there, to the letter; by default spaces around its names do not matter.

    Raises BadInput where the file is no CSV of two columns; everything else is in `problems`.
    """
    records = labels.records(path)
    line, header = next(records, (1, []))
    wanted = columns or SUBMISSION_COLUMNS
    wrong = (
        f"line {line}: wrong header {','.join(header[:10])[:90]!r}, expected {','.join(wanted)!r}"
    )
    if len(header) != 2:
        raise BadInput(f"{path}, {wrong}")
    found = Submitted(path)
    if tuple(name if columns else name.strip() for name in header) != wanted:
        found.problems.append(Problem(line, "wrong header", wrong))
    for line, cells in records:
        image_id = cells[0].strip()
        first = found.lines.setdefault(image_id, line)
        if len(cells) != 2:
            found.add(line, image_id, "wrong number of cells", f"{len(cells)} cells instead of 2")
            continue
        if cells[0] != image_id:
            found.add(
                line, image_id, "spaces around an id", f"spaces around the id, {cells[0][:70]!r}"
            )
        _add_row(found, line, image_id, cells[1].strip(), shape=shape_of(image_id), first=first)
    return found


def _add_row(
    found: Submitted, line: int, image_id: str, text: str, *, shape: Shape, first: int
) -> None:
    """Judge a row and put it where it belongs; `first` is the first line with that id."""
    judged = submission_row.judge(image_id, text, shape)
    if first != line:
        found.add(
            line,
            image_id,
            "repeated id",
            f"stands on line {first} already{_together(found.row_on(first), judged)}",
        )
    if judged.fault:
        found.add(line, image_id, judged.fault, judged.message)
        if judged.fault == submission_row.ABSOLUTE:
            found.absolute.append((rle.numbers(text), shape))
    elif first == line:
        found.rows.append(Row(line, image_id, Mask(judged.runs, shape)))
        if judged.message:
            found.odd.append(f"line {line}, {image_id!r}: {judged.message}")


def _together(earlier: Row | None, later: Judged) -> str:
    """What two legal rows of one id have in common."""
    if earlier is None or later.fault:
        return ""
    areas = earlier.mask.area_px, intervals.area(later.runs)
    if all(areas):
        return f", and the two masks overlap in {intervals.overlap(earlier.mask.runs, later.runs)} pixels"
    return ", once with -1 and once with a mask" if any(areas) else ""
