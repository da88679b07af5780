"""Stage 02: train one network per fold, each on all folds but its own.

Reads   output/manifest.csv, folds.csv, labels.csv, cache/    (stages 00 and 01), and a config
Writes  output/runs/<run>/config.yaml                         every setting, resolved
        output/runs/<run>/network.json                        the network's parts, shapes and cost
        output/runs/<run>/fold<k>/last.pt                     everything needed to go on (previous.pt: the one before)
        output/runs/<run>/fold<k>/best.pt                     the weights of the epoch with the best SIIM Dice
        output/runs/<run>/fold<k>/history.csv                 one row per epoch, drawn in progress.png and tensorboard/
        output/runs/<run>/fold<k>/finished.json               its hashes, once the last epoch is done

Killed and started again with the same command it goes on where it last saved: after every epoch and, within one, every
--save-minutes. (--overwrite starts anew every time: leave it out to go on.) Ctrl-C, SIGTERM and --max-time end the step
and save. A run keeps its settings: other ones under the same name are refused, naming the differences, unless
--overwrite starts it anew.

    python 02_train.py --config configs/ica_resunet.yaml
    python 02_train.py --config configs/ica_resunet.yaml --run slow --fold 0 --set learning_rate=3e-5
    torchrun --nproc-per-node 4 --max-restarts 3 -- 02_train.py --config configs/ica_resunet.yaml
"""

import argparse
import contextlib
import math
import shutil
import time
from pathlib import Path

import pandas as pd
import torch

import models
from pneumothorax.compute import checkpoint, distributed, network_cost, runtime
from pneumothorax.compute.interruption import StopRequest
from pneumothorax.data import cache
from pneumothorax.errors import BadConfig, BadInput
from pneumothorax.pipeline import artifacts, atomic, lineage, locks, records, stage
from pneumothorax.training import config, loop
from pneumothorax.training.config import TrainConfig

DEFAULT_CONFIG = Path("configs/ica_resunet.yaml")
CLAIM_PATIENCE_S, FOLD_PATIENCE_S = 60, 1  # the latter: others look whether a fold is being trained


def parse_args(argv=None):
    parser = stage.parser(__doc__)
    flag = parser.add_argument
    flag(
        "--config",
        type=Path,
        help=f"experiment (default: the one saved with --run, else {DEFAULT_CONFIG})",
    )
    flag("--run", help="name of the run (default: the config file's name)")
    flag(
        "--fold",
        default="all",
        metavar="K|all",
        help="which fold to hold out (default: %(default)s)",
    )
    flag(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one setting; may be repeated",
    )
    flag("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: %(default)s)")
    flag(
        "--save-minutes",
        type=minutes,
        default=10.0,
        metavar="M",
        help="save so often (default: %(default)g)",
    )
    flag(
        "--max-time",
        type=minutes,
        metavar="M",
        help="after so many minutes save and stop, to be gone on with",
    )
    args = parser.parse_args(argv)
    args.run = args.run or (args.config or DEFAULT_CONFIG).stem
    stage.check_name(parser, "--run", args.run)
    if args.config is None:
        saved = args.output / artifacts.Run(args.run).config
        args.config = saved if saved.exists() else DEFAULT_CONFIG
    return args


def minutes(text: str) -> float:
    """argparse type: a number above 0."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def main(argv=None):
    args = parse_args(argv)
    settings = config.load(args.config, args.set, seed=args.seed)
    network = build(settings, fetch=False)  # refuse impossible settings before anything is written
    max_seconds = None if args.max_time is None else 60 * args.max_time
    with distributed.processes(args.device) as device, StopRequest(max_seconds) as stop:
        cache_size = cache.size(args.output, settings.image_size)
        inputs = lineage.train_inputs(args.output)
        rows = artifacts.training_rows(args.output)
        n_folds = int(rows["fold"].max()) + 1
        chosen = stage.chosen_folds(args.fold, n_folds)
        distributed.on_main(claim_run, args, settings, n_folds=n_folds)
        if (
            args.overwrite and not distributed.is_restart()
        ):  # started again, processes go on with what they began anew
            distributed.on_main(clear_folds, args, chosen)

        verified = False
        for fold in chosen:
            with distributed.lock(
                args.output, lock_name(args.run, fold), patience_s=FOLD_PATIENCE_S
            ):
                record = artifacts.Run(args.run).fold(fold).trained
                same = {
                    "settings": config.as_dict(settings),
                    "inputs": {**inputs, **start_inputs(args, settings, fold)},
                }
                if distributed.on_main(records.is_current, args.output, record, **same):
                    distributed.say(f"fold {fold} is finished")
                    continue
                if not verified:
                    distributed.on_main(
                        cache.verify, args.output, cache_size, rows, workers=args.workers
                    )
                    verified = True
                distributed.on_main(describe, args, network, settings)
                data = fold_data(args.output, rows, cache_size, fold, same["inputs"])
                facts = train_fold(args, settings, data, device=device, stop=stop)
                outputs = [
                    artifacts.Run(args.run).fold(fold).best_weights,
                    artifacts.Run(args.run).fold(fold).history.path,
                ]
                outputs.append(artifacts.Run(args.run).network_facts)
                distributed.on_main(
                    records.write, args.output, record, **same, outputs=outputs, **facts
                )
        distributed.say(f"wrote {args.output / artifacts.Run(args.run).folder}")
        distributed.say(f"next: python 03_predict.py --run {args.run} --output {args.output}")


def start_inputs(args: argparse.Namespace, settings: TrainConfig, fold: int) -> dict[str, str]:
    """The hash of the weights that the fold starts from, where the config names another run."""
    if settings.init_from is None:
        return {}
    run = settings.init_from.removeprefix("runs/")
    if run == args.run:
        raise BadConfig(f"init_from: run {run} cannot start from itself")
    path = artifacts.Run(run).fold(fold).best_weights
    record = artifacts.Run(args.run).fold(fold).trained
    if not (args.output / path).is_file() and (args.output / record.path).is_file():
        known = records.read(args.output, record)[
            "inputs"
        ]  # finished; what it started from may be gone
        return {path: known[path]} if path in known else {}
    return {path: lineage.trained(args.output, run, fold)["outputs"][path]}


def lock_name(run: str, fold: int) -> str:
    return f"02_train-{run}-fold{fold}"


def build(settings: TrainConfig, *, fetch: bool):
    """The network; fetch=False leaves out pretrained weights. Raises BadConfig for settings it does not know."""
    make = models.build if fetch else models.build_untrained
    try:
        network = make(settings.model, **settings.model_settings)
    except (ValueError, TypeError) as error:
        raise BadConfig(f"model {settings.model}: {error}") from error
    if settings.frozen_encoder_epochs and not network.encoder_parameters():
        raise BadConfig(
            f"frozen_encoder_epochs: {settings.model} has no encoder that could be frozen"
        )
    return network


def claim_run(args: argparse.Namespace, settings: TrainConfig, *, n_folds: int) -> None:
    """Save the resolved config with the run, or check that the run was made with the same one."""
    folder, path = (
        args.output / artifacts.Run(args.run).folder,
        args.output / artifacts.Run(args.run).config,
    )
    with run_lock(args):
        started = any(folder.glob("fold*/last.pt"))
        busy = any(locks.is_held(args.output, lock_name(args.run, fold)) for fold in range(n_folds))
        if started or (busy and path.exists()):  # before the first save nothing is bound
            differences = config.differences(config.saved(path), config.as_dict(settings))
            if not differences:
                return
            if args.overwrite and args.fold != "all":
                raise BadConfig(
                    "other settings would start every fold of the run anew: --overwrite them with --fold all"
                )
            if not args.overwrite:
                headline = f"run {args.run} has other settings (choose another --run, or --overwrite to start it anew):"
                raise BadInput("\n  ".join([headline, *differences]))
            with contextlib.ExitStack() as held:  # nobody is training any of its folds
                for fold in range(n_folds):
                    held.enter_context(locks.lock(args.output, lock_name(args.run, fold)))
                print(f"starting {folder} anew: its settings change")
                shutil.rmtree(folder)
        config.save(path, settings)


def describe(args: argparse.Namespace, network, settings: TrainConfig) -> None:
    """Save what the network is made of and costs, for the report: the same bytes for every fold."""
    with run_lock(args):
        atomic.write_json(
            args.output / artifacts.Run(args.run).network_facts,
            network_cost.trace(network, settings.image_size),
        )


def run_lock(args: argparse.Namespace):
    """On what the folds of a run share; they may be started at the same moment, on several machines."""
    return locks.lock(args.output, f"02_train-{args.run}", patience_s=CLAIM_PATIENCE_S)


def clear_folds(args: argparse.Namespace, chosen: list[int]) -> None:
    """Start them anew."""
    for fold in chosen:
        with locks.lock(args.output, lock_name(args.run, fold)):
            folder = args.output / artifacts.Run(args.run).fold(fold).folder
            if folder.exists():
                shutil.rmtree(folder)


def fold_data(
    output: Path, rows: pd.DataFrame, cache_size: int, fold: int, inputs: dict[str, str]
) -> loop.FoldData:
    """Train on all folds but one, validate on that one."""
    held_out = rows["fold"] == fold
    return loop.FoldData(
        output=output,
        cache_size=cache_size,
        train=rows[~held_out].reset_index(drop=True),
        validation=rows[held_out].reset_index(drop=True),
        labels=artifacts.label_rows(output),
        inputs=inputs,
        fold=fold,
    )


def train_fold(
    args, settings: TrainConfig, data: loop.FoldData, *, device: torch.device, stop: StopRequest
) -> dict[str, float | str | None]:
    """Train to the last epoch from wherever the fold is; returns what the record says about it."""
    runtime.seed_everything(settings.seed)
    network = starting_network(args, settings, data.fold)
    if distributed.rank():  # the same weights on every process, but random numbers of its own
        runtime.seed_everything(settings.seed + distributed.rank())
    started = time.perf_counter()
    state = loop.Training(
        network,
        data,
        settings,
        run=args.run,
        device=device,
        workers=args.workers,
        stop=stop,
        save_seconds=60 * args.save_minutes,
    )
    locks.check_room(args.output, state.bytes_needed())
    state.resume()
    now = state.progress
    if now.epoch or now.step:
        distributed.say(
            f"fold {data.fold}: going on after epoch {now.epoch}"
            + (f" and {now.step} batches" if now.step else "")
        )
    try:
        state.run()
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
            raise out_of_memory(settings) from error
        raise
    now = state.progress
    if not math.isfinite(now.best_score):
        raise BadInput(
            f"fold {data.fold}: no epoch gave finite weights and scores: lower learning_rate"
        )
    spent = (time.perf_counter() - started) / 60
    best = f"best SIIM Dice {now.best_score:.4f}, epoch {now.best_epoch}"
    distributed.say(f"fold {data.fold}: {best}, in {spent:.1f} minutes")
    return {
        "best_score": now.best_score,
        "seconds": sum(row["seconds"] for row in now.history),
        "device": runtime.device_name(device),
        "processes": distributed.size(),
        "peak_memory_mib": runtime.peak_memory_mib(device),
    }


def starting_network(args, settings: TrainConfig, fold: int):
    """With the encoder weights of the config, or with all weights of the same fold of another run."""
    if settings.init_from is None:
        return build(settings, fetch=True)
    network = build(settings, fetch=False)
    path = (
        args.output
        / artifacts.Run(settings.init_from.removeprefix("runs/")).fold(fold).best_weights
    )
    checkpoint.load_weights(network, checkpoint.load(path)["network"], path)
    return network


def out_of_memory(settings: TrainConfig) -> BadInput:
    """What to try, of what the config allows."""
    batch, parts = settings.batch_size, settings.accumulation_steps
    advice = []
    smaller = [more for more in range(parts + 1, batch // 2 + 1) if batch % more == 0]
    if smaller:
        advice.append(f"--set accumulation_steps={smaller[0]} (the same batch in smaller parts)")
    else:
        advice.append(f"a smaller --set image_size than {settings.image_size}")
    if batch // parts > 2:
        advice.append(f"--set batch_size={parts * (batch // parts // 2)}")
    if not settings.mixed_precision:
        advice.append("--set mixed_precision=true")
    return BadInput(
        f"out of memory with {batch // parts} images at a time at {settings.image_size} x {settings.image_size}; "
        f"what was saved is whole. Try, under another --run or with --overwrite: {', or '.join(advice)}"
    )


if __name__ == "__main__":
    stage.run(main)
