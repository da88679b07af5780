"""What changed between two submissions of the same images."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pneumothorax import metrics
from pneumothorax.errors import BadInput, bad_list
from pneumothorax.submission import intervals, reading
from pneumothorax.submission.reading import Row

LISTED = 20


@dataclass(frozen=True)
class Difference:
    """Per image, (N,) each, in the first file's order: pixels in the one mask, in the other, in both, and Dice."""

    image_ids: list[str]
    first_px: np.ndarray
    second_px: np.ndarray
    both_px: np.ndarray

    @property
    def dice(self) -> np.ndarray:
        """(N,) in [0, 1]; both masks empty = 1."""
        return metrics.image_dice(self.first_px, self.second_px, self.both_px)

    @property
    def changed_px(self) -> np.ndarray:
        """(N,) pixels that are in one mask only."""
        return self.first_px + self.second_px - 2 * self.both_px


def run(output: Path, first: Path, second: Path) -> None:
    """Compare two files and print; sizes of images from a prepared output folder where there is one. Writes nothing."""
    shape_of = reading.shapes(output)
    files = [reading.read(path, shape_of) for path in (first, second)]
    for submitted in files:
        submitted.refuse()
    rows, others = ({row.image_id: row for row in submitted.rows} for submitted in files)
    problems = [f"{image_id}: only in {first}" for image_id in rows if image_id not in others]
    problems += [f"{image_id}: only in {second}" for image_id in others if image_id not in rows]
    if problems:
        raise bad_list(
            f"{first} and {second} are of different images ({len(problems)} ids)", problems
        )
    if not rows:
        raise BadInput(f"{first} and {second} hold no image: there is nothing to compare")
    for line in describe(difference(rows, others)):
        print(line)


def difference(rows: dict[str, Row], others: dict[str, Row]) -> Difference:
    """Two files' rows by id, of the same ids."""
    pairs = [(row.mask, others[image_id].mask) for image_id, row in rows.items()]
    return Difference(
        list(rows),
        np.array([mask.area_px for mask, _ in pairs]),
        np.array([other.area_px for _, other in pairs]),
        np.array([intervals.overlap(mask.runs, other.runs) for mask, other in pairs]),
    )


def describe(found: Difference) -> list[str]:
    """Lines to print: counts, Dice, area, ids."""
    changed = found.changed_px
    either = (found.first_px > 0) | (found.second_px > 0)
    lines = [f"{np.count_nonzero(changed)} of {len(changed)} images changed"]
    lines.append(
        f"mean Dice between them {found.dice.mean():.4f} (both masks empty = 1, one empty = 0)"
    )
    if either.any():
        lines.append(
            f"over the {either.sum()} images where either has a mask {found.dice[either].mean():.4f}"
        )
    before, after = int(found.first_px.sum()), int(found.second_px.sum())
    relative = f", {after / before - 1:+.1%}" if before else ""
    lines.append(f"area of all masks {before} -> {after} pixels ({after - before:+d}{relative})")
    lines += _ids("positives gained", found, (found.first_px == 0) & (found.second_px > 0))
    lines += _ids("positives lost", found, (found.first_px > 0) & (found.second_px == 0))
    lines += _ids("largest changes", found, changed > 0)
    return lines


def _ids(title: str, found: Difference, chosen: np.ndarray) -> list[str]:
    """A headline and a line for each chosen image, the largest changes first, up to LISTED."""
    order = [
        int(number) for number in np.argsort(-found.changed_px, kind="stable") if chosen[number]
    ]
    lines = [f"{title}: {len(order)}"]
    for number in order[:LISTED]:
        pixels = f"{found.first_px[number]} -> {found.second_px[number]} pixels"
        different = f"{found.changed_px[number]} differ, Dice {found.dice[number]:.4f}"
        lines.append(f"  {found.image_ids[number]}: {pixels}, {different}")
    return lines + ([f"  ... and {len(order) - LISTED} more"] if len(order) > LISTED else [])
