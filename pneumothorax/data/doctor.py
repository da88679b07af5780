"""What stage 00 says about a data set: numbers, oddities, reasons to refuse it."""

from collections import Counter, defaultdict

from pydicom.pixels import get_decoder
from pydicom.uid import AllTransferSyntaxes

from pneumothorax.data.discovery import narrow_range
from pneumothorax.data.one_image import Entry
from pneumothorax.data.outcome import Outcome
from pneumothorax.errors import MAX_LISTED, BadInput, bad_list, counted
from pneumothorax.frames import INSTALL
from pneumothorax.pipeline import artifacts

SHARE_POSITIVE = 2669 / 12047  # in SIIM-ACR, stage_2_train.csv


def summary(outcome: Outcome) -> list[str]:
    """The numbers to check, one per line."""
    rows, train = outcome.rows, outcome.train
    positives = sum(row["positive"] for row in train)
    share = f"{positives / len(train):.1%}" if train else "none"
    lines = [
        f"{counted(len(train), 'training image')}, {positives} with pneumothorax "
        f"({share}; SIIM-ACR has {SHARE_POSITIVE:.1%})",
        _test_images(outcome),
        _counts("views", [row["view"] or "unknown" for row in rows]),
    ]
    if outcome.bad:
        codes = sorted(Counter(entry["code"] for entry in outcome.bad).items())
        lines.append(f"rejected: {', '.join(f'{n} {code}' for code, n in codes)}")
    hashes = Counter(row["sha256"] for row in train)
    twins = sum(count for count in hashes.values() if count > 1)
    in_both = sum(row["sha256"] in hashes for row in outcome.test)
    remarks = [
        (outcome.unlabelled, "image is", "images are", "not annotated: not used, not negative"),
        (outcome.colour, "colour image", "colour images", "converted to grey"),
        (
            outcome.duplicates,
            "file is a copy",
            "files are copies",
            "of another: each image is kept once",
        ),
        (
            outcome.repeated_rows,
            "label row is",
            "label rows are",
            "listed twice (warning): each is used once",
        ),
    ]
    lines += [f"{counted(n, one, many)} {rest}" for n, one, many, rest in remarks if n]
    lines += [narrow_range(outcome.narrow)] if outcome.narrow else []
    if twins:
        lines.append(f"{twins} images share their pixels with another: they will share a fold")
    if in_both:
        have = counted(in_both, "test image has", "test images have")
        lines.append(f"warning: {have} the pixels of a training image")
    return lines


def _test_images(outcome: Outcome) -> str:
    """The number of test images and, if some have labels, of those and of positives."""
    labels = [
        outcome.labels[row["image_id"]] for row in outcome.test if row["image_id"] in outcome.labels
    ]
    line = counted(len(outcome.test), "test image")
    if not labels:
        return line
    positives = sum(bool(rows) for rows in labels)
    return f"{line}, {len(labels)} of them labelled ({positives} with pneumothorax): only scored"


def require_usable(
    outcome: Outcome, n_sources: int, *, max_bad: str, allow_missing: bool, need_positives: bool
) -> None:
    """Raise one BadInput with everything that makes training on these images wrong.

    Args:
        n_sources: files that stage 00 had to account for.
        max_bad: rejected files to accept, as a number ("3") or a percentage ("1.5%").
    """
    problems = []
    if outcome.label_errors:
        do = counted(len(outcome.label_errors), "label does", "labels do")
        headline = f"{do} not fit the image"
        problems.append(bad_list(headline, outcome.label_errors))
    if outcome.missing and not allow_missing:
        have = counted(len(outcome.missing), "listed id has", "listed ids have")
        headline = f"{have} no image (--allow-missing accepts this)"
        problems.append(bad_list(headline, outcome.missing))
    if outcome.orphans and not allow_missing:
        have = counted(len(outcome.orphans), "mask has", "masks have")
        headline = f"{have} no image (--allow-missing accepts this)"
        problems.append(bad_list(headline, outcome.orphans))
    limit = float(max_bad.removesuffix("%"))
    if len(outcome.bad) > (limit / 100 * n_sources if max_bad.endswith("%") else limit):
        headline = f"{len(outcome.bad)} of {n_sources} files rejected (--max-bad accepts this)"
        problems.append(bad_list(headline, _as_lines(outcome.bad)))
    if not outcome.train:
        problems.append(BadInput(f"no training image has a label: {_why_no_training(outcome)}"))
    elif need_positives and not any(row["positive"] for row in outcome.rows):
        problems.append(BadInput("no training image is positive: there is nothing to learn"))
    if problems:
        raise BadInput("\n".join(map(str, problems)))


def _why_no_training(outcome: Outcome) -> str:
    if outcome.test and not outcome.rejected:
        return "all images are test images"
    return "do the images and the labels belong together?"


def report(outcome: Outcome) -> list[str]:
    """What --verify adds to the summary, starting with the files that are not used."""
    rows = outcome.rows
    return [
        *missing_decoders(),
        *_listed("file is not used", "files are not used", _as_lines(outcome.rejected)),
        *share_of_positives(outcome.train),
        *same_radiographs(rows),
        _counts("sizes", [f"{row['height']} x {row['width']}" for row in rows]),
        _counts("sexes", [row["sex"] or "unknown" for row in rows]),
        _counts("decoders", [row["decoder"] for row in rows]),
    ]


def missing_decoders() -> list[str]:
    """The image transfer syntaxes that no installed decoder reads, in one line."""
    missing = []
    for syntax in AllTransferSyntaxes:
        try:
            if not get_decoder(syntax).is_available:
                missing.append(syntax.name)
        except NotImplementedError:  # not a syntax of images
            continue
    return [f"no decoder for {', '.join(missing)}; to read such files: {INSTALL}"] * bool(missing)


def share_of_positives(train: list[Entry]) -> list[str]:
    """A warning if chance does not explain the distance from SIIM-ACR's share."""
    from scipy.stats import binomtest

    if not train:
        return []
    positives = sum(row["positive"] for row in train)
    interval = binomtest(positives, len(train)).proportion_ci(0.999, method="wilson")
    if interval.low <= SHARE_POSITIVE <= interval.high:
        return []
    share = f"{positives / len(train):.1%} of the training images are positive"
    return [
        f"warning: {share}, but {SHARE_POSITIVE:.1%} of SIIM-ACR's: another selection of images, "
        "or missing labels"
    ]


def same_radiographs(rows: list[Entry]) -> list[str]:
    """Ids whose images have the same pixels, and whether their labels agree."""
    twins = defaultdict(list)
    for row in rows:
        twins[row["sha256"]].append(row)
    same: list[str] = []
    contradictory: list[str] = []
    for group in twins.values():
        if len(group) > 1:
            masks = {row["mask_sha256"] for row in group if row["split"] == artifacts.TRAIN}
            names = ", ".join(sorted(row["image_id"] for row in group))
            (contradictory if len(masks) > 1 else same).append(names)
    one, many = "group of ids shares a radiograph", "groups of ids share a radiograph"
    differ = "but not the label (warning)"
    return [
        *_listed(one, many, sorted(same)),
        *_listed(f"{one} {differ}", f"{many} {differ}", sorted(contradictory)),
    ]


def _as_lines(rejected: list[dict[str, str]]) -> list[str]:
    return [f"{one['source']}: {one['code']}: {one['message']}" for one in rejected]


def _listed(one: str, many: str, items: list[str]) -> list[str]:
    if not items:
        return []
    rest = [f"  ... and {len(items) - MAX_LISTED} more"] if len(items) > MAX_LISTED else []
    shown = [f"  {item}" for item in items[:MAX_LISTED]]
    return [f"{counted(len(items), one, many)}:", *shown, *rest]


def _counts(name: str, values: list[str]) -> str:
    common = Counter(values).most_common(10)
    return f"{name}: " + ", ".join(f"{count} {value}" for value, count in common)
