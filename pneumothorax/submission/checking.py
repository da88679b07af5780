"""Is this a valid submission, and does it look like one? Checks a file made by anybody.

Errors: wrong ids or header, rows that are not legal run lengths of their image, rows
written in another convention or at another size (conventions.py), masks that are all
transposed or upside down (orientation.py), masks that are one pixel too low. Warnings:
what is legal but odd.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pneumothorax import rle
from pneumothorax.data import labels
from pneumothorax.data.labels import SampleSubmission
from pneumothorax.errors import counted
from pneumothorax.pipeline import artifacts, lineage
from pneumothorax.submission import conventions, orientation, reading, writing
from pneumothorax.submission.pixel_runs import Mask, Shape
from pneumothorax.submission.reading import Row, Submitted

NAMED_LINES = 10
FEWEST_AREAS = 20  # masks, to compare median areas
ODD_AREA = 4.0  # factor between the median areas in the file and in training
ODD_SHARE = 2.0  # factor between the shares of positives ...
ODD_SHARE_SD = 4.0  # ... which must also differ by this many standard deviations
LARGE = 0.5  # share of the image: larger than both lungs


@dataclass(frozen=True)
class TrainingMasks:
    """The training images.

    Attributes:
        images: their number.
        share: the share of them with a mask, 0 to 1.
        masks: up to MOST_TRAINING of the masks.
    """

    images: int
    share: float
    masks: list[Mask]


@dataclass(frozen=True)
class Reference:
    """What a file is compared with, as far as it is known."""

    sample: SampleSubmission | None = None
    shapes: Mapping[str, Shape] = field(default_factory=dict)  # image id -> (H, W)
    training: TrainingMasks | None = None


@dataclass
class Report:
    """What to print, apart from the errors, which are in `submitted`."""

    submitted: Submitted
    summary: list[str]
    warnings: list[str]

    def lines(self) -> list[str]:
        return [*self.summary, *(f"warning: {warning}" for warning in self.warnings)]


def read_reference(output: Path | None, sample_path: Path | None) -> Reference:
    """Read a prepared output folder and a sample submission (default: the folder's)."""
    if output is None:
        return Reference(labels.read_sample(sample_path) if sample_path else None)
    lineage.prepared(output)
    prepared_sample = output / artifacts.SAMPLE_SUBMISSION
    if sample_path is None and prepared_sample.is_file():
        sample_path = prepared_sample
    manifest = artifacts.read_table(output, artifacts.MANIFEST)
    shapes = artifacts.image_shapes(manifest)
    train = manifest[manifest["split"] == artifacts.TRAIN]
    training = TrainingMasks(
        len(train), float(train["positive"].mean()), _training_masks(output, shapes)
    )
    return Reference(labels.read_sample(sample_path) if sample_path else None, shapes, training)


def _training_masks(output: Path, shapes: Mapping[str, Shape]) -> list[Mask]:
    """Up to MOST_TRAINING, evenly spread over the sorted ids."""
    rows = artifacts.label_rows(output)
    step = max(1, -(-len(rows) // orientation.MOST_TRAINING))
    masks = []
    for image_id in sorted(rows)[::step]:
        own, shape = rows[image_id], shapes[image_id]
        text = own[0] if len(own) == 1 else rle.encode(rle.union(own, shape))
        masks.append(Mask(rle.runs(text, shape[0] * shape[1]), shape))
    return masks


def check(path: Path, known: Reference) -> Report:
    """Check a file as far as `known` allows."""
    columns = known.sample.columns if known.sample else None
    submitted = reading.read(path, known.shapes, columns)
    report = Report(submitted, [_shares(submitted, known.training)], list(submitted.odd))
    if known.sample:
        _check_ids(submitted, known.sample)
        report.warnings += _order(submitted, known.sample)
    else:
        report.summary.append(
            "ids not checked: pass the competition's sample as --sample-submission CSV"
        )
    report.warnings += _odd_share(submitted, known.training)
    report.warnings += _large(submitted)
    _compare_areas(report, known.training)
    if known.training:
        _judge_orientation(report, known.training)
    else:
        report.summary.append(
            "sizes and training masks not compared, every image is assumed to be 1024 x 1024: "
            "pass --output DIR, a folder where 00_prepare_data.py has run"
        )
    _judge_lower_edge(report)
    return report


def _check_ids(submitted: Submitted, sample: SampleSubmission) -> None:
    before = ""  # the last id of the sample, so far, that the file has
    for image_id in sample.image_ids:
        if image_id in submitted.lines:
            before = image_id
            continue
        line = submitted.lines[before] if before else 1
        where = f"{before!r} on line {line}" if before else "line 1"
        submitted.add(line + 1, image_id, "missing id", f"missing; it belongs after {where}")
    known = set(sample.image_ids)
    for image_id, line in submitted.lines.items():
        if image_id not in known:
            submitted.add(line, image_id, "extra id", "not in the sample submission")


def _order(submitted: Submitted, sample: SampleSubmission) -> list[str]:
    known = set(sample.image_ids)
    wanted = [image_id for image_id in sample.image_ids if image_id in submitted.lines]
    found = [image_id for image_id in submitted.lines if image_id in known]
    pairs = zip(found, wanted, strict=True)
    first = next((image_id for image_id, other in pairs if image_id != other), None)
    if first is None:
        return []
    where = f"line {submitted.lines[first]}, {first!r}"
    return [f"the order of the ids differs from the sample's, starting at {where}"]


def _shares(submitted: Submitted, training: TrainingMasks | None) -> str:
    rows, positive = len(submitted.rows), len(submitted.positives)
    share = f"{positive / rows:.1%}" if rows else "none"
    if training:
        share += f"; of {training.images} training images {training.share:.1%}"
    return (
        f"{submitted.path}: {rows} of {len(submitted.lines)} ids have a legal row, "
        f"{positive} of them a mask ({share})"
    )


def _odd_share(submitted: Submitted, training: TrainingMasks | None) -> list[str]:
    """A remark on the share of positives, if every row is legal."""
    rows = submitted.rows
    if not rows or len(rows) < len(submitted.lines):
        return []
    share, lines = len(submitted.positives) / len(rows), _all_lines(rows)
    alike = writing.all_alike(share, training.share if training else None)
    if alike:
        return [f"{lines}: {alike}"]
    if not training:
        return []
    variance = training.share * (1 - training.share) * (1 / len(rows) + 1 / training.images)
    far = abs(share - training.share) > ODD_SHARE_SD * variance**0.5
    if far and not 1 / ODD_SHARE <= share / max(training.share, 1e-9) <= ODD_SHARE:
        return [
            f"{lines}: {share:.1%} of the images have a mask; "
            f"{training.share:.1%} of the training images have one"
        ]
    return []


def _large(submitted: Submitted) -> list[str]:
    large = [row for row in submitted.positives if row.mask.share > LARGE]
    if not large:
        return []
    return [f"{_masks(large)} more than half of the image: {_named(large)}"]


def _compare_areas(report: Report, training: TrainingMasks | None) -> None:
    masks = [row.mask for row in report.submitted.positives]
    trained = training.masks if training else []
    if not masks:
        return
    area_px = np.array([mask.area_px for mask in masks])
    line = (
        f"area of a mask in pixels: mean {area_px.mean():.0f}, median {np.median(area_px):.0f}, "
        f"{area_px.min()} to {area_px.max()}"
    )
    if trained:
        trained_px = np.array([mask.area_px for mask in trained])
        line += f"; in training mean {trained_px.mean():.0f}, median {np.median(trained_px):.0f}"
    report.summary.append(line)
    if min(len(masks), len(trained)) < FEWEST_AREAS:
        return
    medians = [float(np.median([mask.share for mask in group])) for group in (masks, trained)]
    factor = medians[0] / medians[1]
    if not 1 / ODD_AREA <= factor <= ODD_AREA:
        lines = _all_lines(report.submitted.positives)
        report.warnings.append(
            f"{lines}: the median mask is {factor:.2g} times as large as in training"
        )


def _judge_orientation(report: Report, training: TrainingMasks) -> None:
    """A line with what was measured, and an error or a warning if it is wrong."""
    rows = report.submitted.positives
    verdict = orientation.judge([row.mask for row in rows], training.masks)
    if verdict is None:
        report.summary.append(
            f"orientation not judged: it takes {orientation.FEWEST_SUSPECT} masks and "
            f"{orientation.FEWEST_TRAINING} training masks, "
            f"found {len(rows)} and {len(training.masks)}"
        )
        return
    measured = f"{verdict.nats:+.2f} nats per mask on {len(rows)} masks, fit {verdict.fit:+.2f}"
    report.summary.append(f"orientation: {verdict.reading} against as read {measured}")
    if not verdict.suspect:
        return
    clearest = [rows[number] for number in np.argsort(-verdict.by_mask, kind="stable")]
    text = (
        f"{_all_lines(rows)}: the masks look {verdict.reading}: {measured}; "
        f"most clearly {_named(clearest)}"
    )
    _error_or_warning(report, rows[0].line, "orientation", text, clear=verdict.clear)


def _judge_lower_edge(report: Report) -> None:
    """Masks whose columns continue past the lower edge: first gap counted from 1."""
    rows = report.submitted.positives
    found, clear = conventions.too_low([row.mask for row in rows])
    if not found:
        return
    low = [rows[number] for number in found]
    text = (
        f"{_masks(low, 'look')} one pixel too low, as if the first gap were counted from 1: "
        "columns that reach the lower edge continue for a pixel at the top of the next one: "
        f"{_named(low)}"
    )
    _error_or_warning(report, low[0].line, "counted from 1", text, clear=clear)


def _error_or_warning(report: Report, line: int, kind: str, text: str, *, clear: bool) -> None:
    if clear:
        report.submitted.problems.append(reading.Problem(line, kind, text))
    else:
        report.warnings.append(text)


def _masks(rows: Sequence[Row], verb: str = "cover") -> str:
    return counted(len(rows), f"mask {verb}s", f"masks {verb}")


def _all_lines(rows: Sequence[Row]) -> str:
    return f"lines {rows[0].line} to {rows[-1].line}"


def _named(rows: Sequence[Row]) -> str:
    """Line and id of the first few rows."""
    named = ", ".join(f"line {row.line} {row.image_id!r}" for row in rows[:NAMED_LINES])
    return named + (f" and {len(rows) - NAMED_LINES} more" if len(rows) > NAMED_LINES else "")
