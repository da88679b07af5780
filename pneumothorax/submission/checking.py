"""Is this a valid submission, and does it look like one? For a file that anybody made, before it is handed in.

Errors: other ids than the sample's, another header, rows that are no legal run lengths of their image, rows written by
another convention or at another size (run_conventions says when that is clear), masks that are transposed or upside
down as a whole (orientation says when), masks that are one pixel too low as a whole. Warnings: what is legal and odd.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pneumothorax import rle
from pneumothorax.data import labels
from pneumothorax.data.labels import Sample
from pneumothorax.errors import BadInput
from pneumothorax.pipeline import artifacts, lineage
from pneumothorax.submission import conventions, orientation, writing
from pneumothorax.submission import reading as file
from pneumothorax.submission.intervals import Mask
from pneumothorax.submission.reading import Row, Submitted
from pneumothorax.submission.submission_row import Shape

NAMED_LINES = 10
FEWEST_AREAS, ODD_AREA = 20, 4.0  # masks; factor between their median area and training's
ODD_SHARE, ODD_SHARE_SD = (
    2.0,
    4.0,
)  # factor between the shares of positives, and standard deviations: both
LARGE = 0.5  # of the image: larger than both lungs


@dataclass(frozen=True)
class Training:
    """The training images: how many, the share with a mask (0 to 1), and masks (up to MOST_TRAINING of them)."""

    images: int
    share: float
    masks: list[Mask]


@dataclass
class Report:
    """What there is to print; errors are in `submitted`."""

    submitted: Submitted
    summary: list[str]
    warnings: list[str]


def run(output: Path, path: Path, sample_path: Path | None) -> None:
    """Check `path` against a prepared output folder, and print. Raises BadInput with all errors; writes nothing."""
    lineage.prepared(output)
    known = output / artifacts.SAMPLE_SUBMISSION
    if sample_path is None and not known.is_file():
        raise BadInput(
            f"{output} was prepared without a sample submission: give --sample-submission"
        )
    report = check(
        path, labels.read_sample(sample_path or known), file.shapes(output), read_training(output)
    )
    for line in [*report.summary, *(f"warning: {warning}" for warning in report.warnings)]:
        print(line, flush=True)
    report.submitted.refuse()
    print(f"{path} is a valid submission{'; see the warnings' if report.warnings else ''}")


def read_training(output: Path) -> Training:
    manifest = artifacts.read_table(output, artifacts.MANIFEST)
    train = manifest[manifest["split"] == artifacts.TRAIN]
    rows, shape_of = artifacts.label_rows(output), file.shapes(output)
    step = max(1, -(-len(rows) // orientation.MOST_TRAINING))
    masks = []
    for image_id in sorted(rows)[::step]:
        shape = shape_of(image_id)
        whole = (
            rows[image_id][0]
            if len(rows[image_id]) == 1
            else rle.encode(rle.union(rows[image_id], shape))
        )
        masks.append(Mask(rle.runs(whole, shape[0] * shape[1]), shape))
    return Training(len(train), float(train["positive"].mean()), masks)


def check(
    path: Path, sample: Sample, shape_of: Callable[[str], Shape], training: Training
) -> Report:
    """Everything that can be said about a file."""
    submitted = file.read(path, shape_of, sample.columns)
    _check_ids(submitted, sample)
    masks = [row.mask for row in submitted.positives]
    report = Report(submitted, [_share_line(submitted, training)], list(submitted.odd))
    report.warnings += [
        *_order(submitted, sample),
        *_odd_share(submitted, training),
        *_large(submitted),
    ]
    _compare_areas(report, masks, training)
    _judge_orientation(report, masks, training)
    _judge_lower_edge(report)
    return report


def _check_ids(submitted: Submitted, sample: Sample) -> None:
    before = ""  # the last id of the sample, up to here, that the file has
    for image_id in sample.image_ids:
        if image_id in submitted.lines:
            before = image_id
            continue
        line, where = (
            (submitted.lines[before], f"after {before!r} on line") if before else (1, "after line")
        )
        submitted.add(line + 1, image_id, "missing id", f"missing, it belongs {where} {line}")
    known = set(sample.image_ids)
    for image_id, line in submitted.lines.items():
        if image_id not in known:
            submitted.add(line, image_id, "extra id", "not in the sample submission")


def _order(submitted: Submitted, sample: Sample) -> list[str]:
    known = set(sample.image_ids)
    wanted = [image_id for image_id in sample.image_ids if image_id in submitted.lines]
    there = [image_id for image_id in submitted.lines if image_id in known]
    pairs = zip(there, wanted, strict=True)
    first = next((image_id for image_id, other in pairs if image_id != other), None)
    if first is None:
        return []
    return [
        f"the ids stand in another order than the sample's from line {submitted.lines[first]}, {first!r}, on"
    ]


def _share_line(submitted: Submitted, training: Training) -> str:
    rows, positive = len(submitted.rows), len(submitted.positives)
    share = f"{positive / rows:.1%}" if rows else "none"
    return (
        f"{submitted.path}: {rows} of {len(submitted.lines)} ids have a legal row, {positive} of them a mask "
        f"({share}; of {training.images} training images {training.share:.1%})"
    )


def _odd_share(submitted: Submitted, training: Training) -> list[str]:
    """The share of positives beside training's, where every row counts."""
    rows = submitted.rows
    if not rows or len(rows) < len(submitted.lines):
        return []
    share, lines = len(submitted.positives) / len(rows), _all_lines(rows)
    alike = writing.all_alike(share, training.share)
    if alike:
        return [f"{lines}: {alike}"]
    deviation = (
        training.share * (1 - training.share) * (1 / len(rows) + 1 / training.images)
    ) ** 0.5
    far = abs(share - training.share) > ODD_SHARE_SD * deviation
    if far and not 1 / ODD_SHARE <= share / max(training.share, 1e-9) <= ODD_SHARE:
        return [
            f"{lines}: {share:.1%} of the images have a mask; {training.share:.1%} of the training images have one"
        ]
    return []


def _large(submitted: Submitted) -> list[str]:
    large = [row for row in submitted.positives if row.mask.share > LARGE]
    return (
        [f"{len(large)} masks cover more than half of their image: {_named(large)}"]
        if large
        else []
    )


def _compare_areas(report: Report, masks: list[Mask], training: Training) -> None:
    if not masks:
        return
    area_px = np.array([mask.area_px for mask in masks])
    trained_px = np.array([mask.area_px for mask in training.masks])
    beside = (
        f"; in training mean {trained_px.mean():.0f}, median {np.median(trained_px):.0f}"
        if training.masks
        else ""
    )
    report.summary.append(
        f"area of a mask in pixels: mean {area_px.mean():.0f}, median {np.median(area_px):.0f}, "
        f"{area_px.min()} to {area_px.max()}{beside}"
    )
    if min(len(masks), len(training.masks)) < FEWEST_AREAS:
        return
    factor = float(
        np.median([mask.share for mask in masks])
        / np.median([mask.share for mask in training.masks])
    )
    if not 1 / ODD_AREA <= factor <= ODD_AREA:
        lines = _all_lines(report.submitted.positives)
        report.warnings.append(
            f"{lines}: the median mask is {factor:.2g} times as large as in training"
        )


def _judge_orientation(report: Report, masks: list[Mask], training: Training) -> None:
    """The line with what was measured, and an error or a warning."""
    verdict = orientation.judge(masks, training.masks)
    if verdict is None:
        needed = f"needs {orientation.FEWEST_SUSPECT} masks and {orientation.FEWEST_TRAINING} of training"
        report.summary.append(
            f"orientation not judged: {needed}, there are {len(masks)} and {len(training.masks)}"
        )
        return
    measured = f"{verdict.nats:+.2f} nats per mask on {len(masks)} masks, fit {verdict.fit:+.2f}"
    report.summary.append(f"orientation: {verdict.reading} against as read {measured}")
    if not verdict.suspect:
        return
    rows = report.submitted.positives
    clearest = [rows[number] for number in np.argsort(-verdict.by_mask, kind="stable")]
    text = f"{_all_lines(rows)}: the masks look {verdict.reading}: {measured}; most clearly {_named(clearest)}"
    if verdict.clear:
        report.submitted.problems.append(file.Problem(rows[0].line, "orientation", text))
    else:
        report.warnings.append(text)


def _judge_lower_edge(report: Report) -> None:
    """Masks whose columns go on for one pixel past the lower edge: as if the first gap were counted from 1."""
    rows = report.submitted.positives
    found, clear = conventions.too_low([row.mask for row in rows])
    if not found:
        return
    low = [rows[number] for number in found]
    text = (
        f"{len(low)} masks look one pixel too low, as if the first gap were counted from 1: columns that reach the "
        f"lower edge go on at the top of the next: {_named(low)}"
    )
    if clear:
        report.submitted.problems.append(file.Problem(low[0].line, "counted from 1", text))
    else:
        report.warnings.append(text)


def _all_lines(rows: Sequence[Row]) -> str:
    return f"lines {rows[0].line} to {rows[-1].line}"


def _named(rows: Sequence[Row]) -> str:
    """Line and id of the first few."""
    named = ", ".join(f"line {row.line} {row.image_id!r}" for row in rows[:NAMED_LINES])
    return named + (f" and {len(rows) - NAMED_LINES} more" if len(rows) > NAMED_LINES else "")
