"""What each setting of a recipe is worth: one row per change, trained, predicted and scored.

Reads   the output of stages 00 and 01
Writes  output/runs/<run>/, output/submissions/<run>/ as stages 02 to 04 do

A row differs from the config in the settings shown, and nothing else. Prints, as a table in
Markdown, the nested SIIM Dice; its difference to all-empty masks and to the first row, with
95 % intervals over patients; the naive score; the AUC; positives-only Dice; and the minutes
of training. With several seeds a row is the mean over them. Finished
stages are skipped: the same command continues an interrupted one.

    python -m benchmarks.recipe --output output --config configs/small/unet_256.yaml
    python -m benchmarks.recipe --output output --config configs/small/unet_256.yaml \\
        --rows "as configured,published attention,improved attention" --seeds 1,2,3
    python -m benchmarks.recipe --output output --config configs/small/unet_256.yaml \\
        --set image_size=192 --at-once 4        # four runs beside each other, on a large GPU
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import timing
from pneumothorax.errors import BadInput
from pneumothorax.pipeline import artifacts, stage
from pneumothorax.scores import bootstrap, per_image

ROOT = Path(__file__).parents[1]
SCORES = ("siim_dice", "auc", "positive_dice")
FIRST = "as configured"
ROWS: dict[str, tuple[str, ...]] = {
    FIRST: (),
    "loss combo": ("loss=combo",),
    "loss bce_dice": ("loss=bce_dice",),
    "weaker augmentation": ("strong_augmentation=false", "shift_scale_rotate=0.5"),
    "no shift or scale or rotation": ("shift_scale_rotate=0",),
    "negatives distorted less often": ("augment_negative=0.3",),
    "sampling of the paper": ("sampling=paper",),
    "no classification head": ("model_settings.classification_weight=0",),
    "classification weight 1": ("model_settings.classification_weight=1.0",),
    "no moving average": ("ema_decay=null",),
    "no warm-up and no clipping": ("warmup_steps=0", "clip_gradient_norm=null"),
    "learning rate 3e-4": ("learning_rate=3.0e-4",),
    "14 epochs": ("epochs=14", "validate_every=14"),
    "56 epochs": ("epochs=56", "validate_every=56"),
    "320 x 320 pixels": ("image_size=320",),
    "384 x 384 pixels": ("image_size=384",),
    "published attention": ("model_settings.attention=published",),
    "improved attention": ("model_settings.attention=improved",),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = stage.parser(__doc__, ("--output",))
    flag = parser.add_argument
    flag("--config", type=Path, required=True, help="the recipe that every row starts from")
    flag("--set", action="append", default=[], metavar="KEY=VALUE", help="for every row")
    flag("--rows", type=names, default=list(ROWS), help="comma-separated (default: all)")
    flag("--seeds", type=numbers, default=[42], help="comma-separated (default: 42)")
    at_once_help = "runs beside each other, one process each (default: %(default)s)"
    flag("--at-once", type=int, default=1, metavar="N", help=at_once_help)
    flag("--name", help="start of the runs' names (default: that of the config)")
    args = parser.parse_args(argv)
    args.name = args.name or args.config.stem
    return args


def names(text: str) -> list[str]:
    rows = text.split(",")
    unknown = [row for row in rows if row not in ROWS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no row {unknown[0]!r}; rows: {', '.join(ROWS)}")
    return [FIRST, *(row for row in rows if row != FIRST)]


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    timing.machine("torch", "segmentation_models_pytorch")
    runs = [(row, seed) for seed in args.seeds for row in args.rows]
    with ThreadPoolExecutor(args.at_once) as pool:
        list(pool.map(lambda run: make(args, *run), runs))
    print_table(args)


def run_name(start: str, row: str, seed: int) -> str:
    """Letters, digits and hyphens."""
    return f"{start}-{re.sub('[^a-z0-9]+', '-', row)}-{seed}"


def make(args: argparse.Namespace, row: str, seed: int) -> None:
    """Stages 02 to 04 of one run; their output goes to a log next to its submission."""
    name = run_name(args.name, row, seed)
    where = ["--run", name, "--output", str(args.output)]
    if args.at_once > 1:
        where += ["--workers", "0"]
    sets = [*args.set, *ROWS[row], f"seed={seed}"]
    train = ["--config", str(args.config), *(part for one in sets for part in ("--set", one))]
    log = args.output / "recipe" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as lines:
        for script, flags in (("02_train", train), ("03_predict", []), ("04_submit", [])):
            command = [sys.executable, str(ROOT / f"{script}.py"), *where, *flags]
            if subprocess.run(command, check=False, stdout=lines, stderr=lines).returncode:
                raise BadInput(f"{script}.py failed for {row!r}: see {log}")
    print(f"{name} is done", flush=True)


class Measured(NamedTuple):
    """The runs of one row, each score as the mean over them.

    Args:
        value: by score; also "all_empty", "naive" and "minutes" of training.
        replicates: {score: (repeats,)}, paired between rows.
    """

    value: dict[str, float]
    replicates: dict[str, np.ndarray]


def measured(output: Path, runs: Sequence[str]) -> Measured:
    """Read what stages 02 and 04 wrote."""
    values, replicates = [], []
    tables = (artifacts.MANIFEST, artifacts.FOLDS)
    manifest, folds = (artifacts.read_table(output, table) for table in tables)
    for run in runs:
        submission = artifacts.Submission(run)
        images = artifacts.read_table(output, submission.out_of_fold)
        frame = per_image.table(images, manifest, folds, run)
        replicates.append(bootstrap.replicates(frame, SCORES))
        replicates[-1]["all_empty"] = bootstrap.replicates(
            per_image.all_empty(frame), ["siim_dice"]
        )["siim_dice"]
        scores = artifacts.read_table(output, submission.cross_validation).set_index("row")
        histories = (
            artifacts.read_table(output, artifacts.Run(run).fold(fold).history)
            for fold in sorted(set(images["fold"].tolist()))
        )
        values.append(
            bootstrap.measured(frame)
            | {
                "all_empty": scores.at[artifacts.ALL_EMPTY, "siim_dice"],
                "naive": scores.at["all", "naive_siim_dice"],
                "minutes": sum(history["seconds"].sum() for history in histories) / 60,
            }
        )
    return Measured(_mean(values), _mean(replicates))


def _mean(several: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: sum(one[name] for one in several) / len(several) for name in several[0]}


def print_table(args: argparse.Namespace) -> None:
    columns = "setting, SIIM Dice, above all-empty, above the first row, naive, AUC, positives-only"
    header = [*columns.split(", "), "minutes"]
    print(f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}", sep="\n")
    first = None
    for row in args.rows:
        found = measured(args.output, [run_name(args.name, row, seed) for seed in args.seeds])
        first = first or found
        value = found.value
        cells = [
            row,
            f"{value['siim_dice']:.4f}",
            difference(found, found, "all_empty"),
            "" if found is first else difference(found, first, "siim_dice"),
            *(f"{value[name]:.4f}" for name in ("naive", "auc", "positive_dice")),
            f"{value['minutes']:.0f}",
        ]
        print(f"| {' | '.join(cells)} |")


def difference(one: Measured, other: Measured, score: str) -> str:
    """SIIM Dice of `one` minus a score of `other`, with its 95 % interval."""
    low, high = bootstrap.interval(one.replicates["siim_dice"] - other.replicates[score]).values()
    by = one.value["siim_dice"] - other.value[score]
    return f"{by:+.4f} ({low:+.4f} to {high:+.4f})"


if __name__ == "__main__":
    stage.run(main)
