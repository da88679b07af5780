"""What differs between two submissions of the same images."""

from dataclasses import dataclass

import numpy as np

from pneumothorax import metrics
from pneumothorax.errors import bad_list, counted
from pneumothorax.submission import pixel_runs
from pneumothorax.submission.reading import Submitted

LISTED = 20


@dataclass(frozen=True)
class Difference:
    """Per image, (N,) each, in the first file's order.

    Attributes:
        first_px, second_px: pixels in the first and in the second mask.
        both_px: pixels in both.
    """

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
        """(N,) pixels in one mask only."""
        return self.first_px + self.second_px - 2 * self.both_px


def compare(first: Submitted, second: Submitted) -> Difference:
    """Raises BadInput if a file has faults, or if the two hold different images."""
    for submitted in (first, second):
        submitted.refuse()
    rows, others = ({row.image_id: row.mask for row in file.rows} for file in (first, second))
    problems = [f"{image_id}: only in {first.path}" for image_id in rows if image_id not in others]
    problems += [
        f"{image_id}: only in {second.path}" for image_id in others if image_id not in rows
    ]
    if problems:
        headline = (
            f"{first.path} and {second.path} hold different images ({counted(len(problems), 'id')})"
        )
        raise bad_list(headline, problems)
    pairs = [(mask, others[image_id]) for image_id, mask in rows.items()]
    return Difference(
        list(rows),
        np.array([mask.area_px for mask, _ in pairs]),
        np.array([other.area_px for _, other in pairs]),
        np.array([pixel_runs.overlap(mask.runs, other.runs) for mask, other in pairs]),
    )


def describe(found: Difference) -> list[str]:
    """Lines to print: counts, Dice, area, and the images that changed most."""
    changed = found.changed_px
    either = (found.first_px > 0) | (found.second_px > 0)
    before, after = int(found.first_px.sum()), int(found.second_px.sum())
    relative = f", {after / before - 1:+.1%}" if before else ""
    lines = [
        f"{np.count_nonzero(changed)} of {len(changed)} images changed",
        f"mean Dice between them {found.dice.mean():.4f} (both masks empty = 1, one empty = 0)",
    ]
    if either.any():
        dice = found.dice[either].mean()
        images = counted(int(either.sum()), "image")
        lines.append(f"over the {images} where either has a mask {dice:.4f}")
    lines.append(f"area of all masks {before} -> {after} pixels ({after - before:+d}{relative})")
    lines += _images("positives gained", found, (found.first_px == 0) & (found.second_px > 0))
    lines += _images("positives lost", found, (found.first_px > 0) & (found.second_px == 0))
    lines += _images("largest changes", found, changed > 0)
    return lines


def _images(title: str, found: Difference, chosen: np.ndarray) -> list[str]:
    """A headline, and a line per chosen image: the LISTED largest changes."""
    order = np.argsort(-found.changed_px, kind="stable")
    order = order[chosen[order]]
    lines = [f"{title}: {len(order)}"]
    for number in order[:LISTED]:
        pixels = f"{found.first_px[number]} -> {found.second_px[number]} pixels"
        different = f"{found.changed_px[number]} differ, Dice {found.dice[number]:.4f}"
        lines.append(f"  {found.image_ids[number]}: {pixels}, {different}")
    return lines + ([f"  ... and {len(order) - LISTED} more"] if len(order) > LISTED else [])
