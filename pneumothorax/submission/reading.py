"""Read anybody's submission CSV strictly: every fault with its line, id and kind.

A row is legal if its cell is -1 or run lengths that fit the image, and if nothing shows
that it was written in another convention or at another size (conventions.py).
"""

import bisect
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pneumothorax import rle
from pneumothorax.data import labels
from pneumothorax.data.labels import SUBMISSION_COLUMNS
from pneumothorax.errors import BadInput, bad_list
from pneumothorax.submission import conventions, pixel_runs
from pneumothorax.submission.pixel_runs import Mask, Runs, Shape

LISTED_PER_KIND = 20
ABSOLUTE = "absolute starts"
MALFORMED = "not run lengths"
PAST_THE_END = "past the end"
OTHER_SIZE = "another size"
FIRST_NUMBER = {
    0: "the absolute starts are 0-based: "
    "a run starts at pixel 0, or columns end exactly at the lower edge",
    1: "the absolute starts are 1-based, as in other competitions: "
    "read as 0-based, runs end one pixel past an edge",
    None: "absolute 'start length' pairs are the format of other competitions, 1-based there; "
    "nothing in this file shows whether its starts are 0- or 1-based",
}


@dataclass(frozen=True)
class Problem:
    """A fault on one line; faults of the same `kind` are counted together."""

    line: int
    kind: str
    text: str


@dataclass(frozen=True)
class Row:
    """A legal row; its mask has no runs if the cell is -1."""

    line: int
    image_id: str
    mask: Mask


@dataclass
class Submitted:
    """A file's legal rows, one per id, and everything that is wrong with it.

    Attributes:
        lines: id -> the first line that has it, legal or not.
        odd: remarks on legal rows.
        absolute: (number pairs, (H, W)) of the rows with absolute starts.
    """

    path: Path
    rows: list[Row] = field(default_factory=list)
    lines: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    absolute: list[tuple[np.ndarray, Shape]] = field(default_factory=list)

    @property
    def positives(self) -> list[Row]:
        return [row for row in self.rows if row.mask.area_px]

    def row_on(self, line: int) -> Row | None:
        """The legal row on that line; `rows` are in the order of their lines."""
        at = bisect.bisect_left(self.rows, line, key=lambda row: row.line)
        return self.rows[at] if at < len(self.rows) and self.rows[at].line == line else None

    def add(self, line: int, image_id: str, kind: str, message: str) -> None:
        self.problems.append(Problem(line, kind, f"line {line}, {image_id[:70]!r}: {message}"))

    def refuse(self) -> None:
        """If there are problems, raises BadInput that lists up to 20 of each kind."""
        if not self.problems:
            return
        counts = Counter(problem.kind for problem in self.problems)
        shown: Counter[str] = Counter()
        listed = []
        for problem in sorted(self.problems, key=lambda problem: problem.line):
            shown[problem.kind] += 1
            if shown[problem.kind] <= LISTED_PER_KIND:
                listed.append(problem.text)
        for kind, count in counts.items():
            if count > LISTED_PER_KIND:
                listed.append(f"... and {count - LISTED_PER_KIND} more: {kind}")
        if self.absolute:
            listed.append(FIRST_NUMBER[conventions.first_number(self.absolute)])
        kinds = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
        raise bad_list(f"{self.path} is not a valid submission: {kinds}", listed, limit=len(listed))


def read(
    path: Path, shapes: Mapping[str, Shape], columns: tuple[str, str] | None = None
) -> Submitted:
    """Read a submission and judge each row by itself.

    Args:
        shapes: image id -> (H, W) of the image; other images are 1024 x 1024.
        columns: the exact header; without it, spaces around the usual names are
            allowed.

    Raises BadInput if the file is not a CSV of two columns; everything else goes to
    `problems`.
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
        found.lines.setdefault(image_id, line)
        if len(cells) != 2:
            found.add(line, image_id, "wrong number of cells", f"{len(cells)} cells instead of 2")
            continue
        if cells[0] != image_id:
            message = f"spaces around the id, {cells[0][:70]!r}"
            found.add(line, image_id, "spaces around an id", message)
        _add_row(found, line, image_id, cells[1].strip(), shapes.get(image_id, rle.KAGGLE_SHAPE))
    if not found.lines:
        found.problems.append(Problem(line, "empty file", "no rows below the header"))
    return found


def _add_row(found: Submitted, line: int, image_id: str, text: str, shape: Shape) -> None:
    """Judge a row and add it to the legal rows or to the problems."""
    judged = judge(image_id, text, shape)
    first = found.lines[image_id]
    if first != line:
        message = f"is already on line {first}{_in_common(found.row_on(first), judged)}"
        found.add(line, image_id, "repeated id", message)
    if judged.fault:
        found.add(line, image_id, judged.fault, judged.message)
        if judged.fault == ABSOLUTE:
            found.absolute.append((rle.numbers(text), shape))
    elif first == line:
        found.rows.append(Row(line, image_id, Mask(judged.runs, shape)))
        if judged.message:
            found.odd.append(f"line {line}, {image_id!r}: {judged.message}")


@dataclass(frozen=True)
class Judged:
    """One row: its pixel runs on the image's grid, none for -1, or its `fault`.

    A message without a fault is a remark: the row is legal but odd.
    """

    runs: Runs = pixel_runs.EMPTY
    fault: str = ""
    message: str = ""


def _in_common(earlier: Row | None, later: Judged) -> str:
    """What two legal rows of the same id have in common."""
    if earlier is None or later.fault:
        return ""
    areas = earlier.mask.area_px, pixel_runs.area(later.runs)
    if all(areas):
        overlap = pixel_runs.overlap(earlier.mask.runs, later.runs)
        return f", and the two masks overlap in {overlap} pixels"
    return ", once with -1 and once with a mask" if any(areas) else ""


def judge(image_id: str, text: str, shape: Shape) -> Judged:
    """One row, stripped of spaces, of an image of (H, W)."""
    problem = labels.cell_problem(image_id, text) if text else "an empty cell: -1 means no mask"
    if problem:
        return Judged(fault=MALFORMED, message=problem)
    if text == rle.EMPTY:
        return Judged()
    try:
        pairs = rle.numbers(text)
    except BadInput as error:
        return Judged(fault=MALFORMED, message=str(error))
    absolute = conventions.are_absolute(pairs, shape)
    if absolute:
        return Judged(fault=ABSOLUTE, message=_absolute_message(pairs))
    runs = conventions.gaps(pairs)
    size = conventions.encoded_height(runs, shape)
    if runs[1][-1] > shape[0] * shape[1]:
        return Judged(fault=PAST_THE_END, message=_past_the_end_message(runs, shape, size))
    if size:
        return Judged(fault=OTHER_SIZE, message=_other_size_message(runs, shape, size))
    if absolute is None:
        remark = "may be absolute starts: its pairs also fit the image as 'start length'"
        return Judged(runs, message=remark)
    return Judged(runs)


def _absolute_message(pairs: np.ndarray) -> str:
    starts, ends = conventions.absolute(pairs)
    overlapping = int((starts[1:] < ends[:-1]).sum())
    also = f", and {overlapping} of its runs overlap the previous one" if overlapping else ""
    return (
        "absolute starts: 'start length' pairs instead of gaps counted from the end of the "
        f"previous run{also}"
    )


def _past_the_end_message(runs: Runs, shape: Shape, size: int | None) -> str:
    n_pixels = shape[0] * shape[1]
    last = int(runs[1][-1])
    if size:
        guess = f"; {_looks_encoded(shape, size)}"
    else:
        guess = "; counted from 1 instead of 0?" if last == n_pixels + 1 else ""
    return f"a run ends at pixel {last}, past the image's {n_pixels} pixels{guess}"


def _other_size_message(runs: Runs, shape: Shape, size: int) -> str:
    own, other = pixel_runs.column_agreement(runs, [shape[0], size])
    return (
        f"{_looks_encoded(shape, size)}: {other:.0%} of its pixels have a neighbour {size} pixels "
        f"further, {own:.0%} one column of this image ({shape[0]}) further"
    )


def _looks_encoded(shape: Shape, size: int) -> str:
    height, width = shape
    row_major = " or row by row" if size == width else ""
    return f"looks encoded at {size} x {size}{row_major}, the image is {height} x {width}"
