"""Stage 02: train one network per fold, each on all folds but its own.

Reads   output/manifest.csv, folds.csv, labels.csv, cache/    (stages 00 and 01), and a config
Writes  output/runs/<run>/config.yaml                         every setting, resolved
        output/runs/<run>/network.json                        the network's parts, shapes and cost
        output/runs/<run>/fold<k>/last.pt                     everything needed to go on (previous.pt: the one before)
        output/runs/<run>/fold<k>/best.pt                     the weights of the epoch with the best SIIM Dice
        output/runs/<run>/fold<k>/history.csv                 one row per epoch, drawn in progress.png and tensorboard/
        output/runs/<run>/fold<k>/finished.json               its hashes, once the last epoch is done

Killed and started again with the same command it goes on where it last saved: after every epoch and, within one, every
--save-minutes. Ctrl-C, SIGTERM and --max-time end the step and save. A run keeps its settings: other ones under the
same name are refused, naming the differences, unless --overwrite starts it anew.

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
from pneumothorax import (
    artifacts,
    atomic,
    cache,
    checkpoint,
    config,
    distributed,
    lineage,
    network_trace,
    records,
    runtime,
    stage,
    training,
)
from pneumothorax.config import TrainConfig
from pneumothorax.errors import BadConfig, BadInput
from pneumothorax.interruption import StopRequest

DEFAULT_CONFIG = Path("configs/ica_resunet.yaml")


def parse_args(argv=None):
    parser = stage.parser(__doc__)
    flag = parser.add_argument
    flag("--config", type=Path, help=f"experiment (default: the one saved with --run, else {DEFAULT_CONFIG})")
    flag("--run", help="name of the run (default: the config file's name)")
    flag("--fold", default="all", metavar="K|all", help="which fold to hold out (default: %(default)s)")
    flag("--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting; may be repeated")
    flag("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: %(default)s)")
    flag("--save-minutes", type=minutes, default=10.0, metavar="M", help="save so often (default: %(default)g)")
    flag("--max-time", type=minutes, metavar="M", help="after so many minutes save and stop, to be gone on with")
    args = parser.parse_args(argv)
    args.run = args.run or (args.config or DEFAULT_CONFIG).stem
    stage.check_name(parser, "--run", args.run)
    if args.config is None:
        saved = artifacts.run_config(args.output, args.run)
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
        if args.overwrite and distributed.is_restart():
            args.overwrite = False  # the processes before these have begun anew
        cache_size = cache.size(args.output, settings.image_size)
        inputs = lineage.train_inputs(args.output)
        rows = artifacts.training_rows(args.output)
        n_folds = int(rows["fold"].max()) + 1
        chosen = stage.chosen_folds(args.fold, n_folds)
        distributed.on_main(claim_run, args, settings, n_folds=n_folds)

        verified = False
        for fold in chosen:
            with distributed.lock(args.output, lock_name(args.run, fold)):
                same = {
                    "settings": config.as_dict(settings),
                    "inputs": {**inputs, **start_inputs(args, settings, fold)},
                }
                record = artifacts.trained(args.run, fold)
                current = distributed.on_main(records.is_current, args.output, record, **same)
                if current and not args.overwrite:
                    distributed.say(f"fold {fold} is finished")
                    continue
                if not verified:
                    distributed.on_main(cache.verify, args.output, cache_size, rows, workers=args.workers)
                    verified = True
                distributed.on_main(start_fold, args, network, settings, fold)
                data = fold_data(args.output, rows, cache_size, fold, same["inputs"])
                facts = train_fold(args, settings, data, device=device, stop=stop)
                outputs = [artifacts.best_weights(args.run, fold), artifacts.history(args.run, fold)]
                outputs.append(artifacts.network_facts(args.run))
                distributed.on_main(records.write, args.output, record, **same, outputs=outputs, **facts)
        distributed.say(f"wrote {artifacts.run_folder(args.output, args.run)}")
        distributed.say(f"next: python 03_predict.py --run {args.run} --output {args.output}")


def start_inputs(args: argparse.Namespace, settings: TrainConfig, fold: int) -> dict[str, str]:
    """The hash of the weights that the fold starts from, where the config names another run."""
    if settings.init_from is None:
        return {}
    run = settings.init_from.removeprefix("runs/")
    if run == args.run:
        raise BadConfig(f"init_from: run {run} cannot start from itself")
    path = artifacts.best_weights(run, fold)
    return {path: lineage.trained(args.output, run, fold)["outputs"][path]}


def lock_name(run: str, fold: int) -> str:
    return f"02_train-{run}-fold{fold}"


def build(settings: TrainConfig, *, fetch: bool):
    """The network; fetch=False leaves out pretrained weights. Raises BadConfig for settings it does not know."""
    make = models.build if fetch else models.build_untrained
    try:
        return make(settings.model, **settings.model_settings)
    except (ValueError, TypeError) as error:
        raise BadConfig(f"model {settings.model}: {error}") from error


def claim_run(args: argparse.Namespace, settings: TrainConfig, *, n_folds: int) -> None:
    """Save the resolved config with the run, or check that the run was made with the same one."""
    folder, path = artifacts.run_folder(args.output, args.run), artifacts.run_config(args.output, args.run)
    with stage.lock(args.output, f"02_train-{args.run}"):
        if any(folder.glob(f"fold*/{artifacts.LAST_CHECKPOINT}")):  # before the first epoch nothing is bound
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
            with contextlib.ExitStack() as locks:  # nobody is training any of its folds
                for fold in range(n_folds):
                    locks.enter_context(stage.lock(args.output, lock_name(args.run, fold)))
                print(f"starting {folder} anew: its settings change")
                shutil.rmtree(folder)
        config.save(path, settings)


def start_fold(args: argparse.Namespace, network, settings: TrainConfig, fold: int) -> None:
    """Clear the fold where that was asked for, and save what the network is made of and costs, for the report."""
    folder = artifacts.fold_folder(args.output, args.run, fold)
    if args.overwrite and folder.exists():
        shutil.rmtree(folder)
    path = args.output / artifacts.network_facts(args.run)
    atomic.write_json(path, network_trace.trace(network, settings.image_size))  # the same bytes for every fold


def fold_data(
    output: Path, rows: pd.DataFrame, cache_size: int, fold: int, inputs: dict[str, str]
) -> training.FoldData:
    """Train on all folds but one, validate on that one."""
    held_out = rows["fold"] == fold
    return training.FoldData(
        output=output,
        cache_size=cache_size,
        train=rows[~held_out].reset_index(drop=True),
        validation=rows[held_out].reset_index(drop=True),
        labels=artifacts.label_rows(output),
        inputs=inputs,
        fold=fold,
    )


def train_fold(
    args, settings: TrainConfig, data: training.FoldData, *, device: torch.device, stop: StopRequest
) -> dict[str, float | str | None]:
    """Train to the last epoch from wherever the fold is; returns what the record says about it."""
    runtime.seed_everything(settings.seed)
    network = starting_network(args, settings, data.fold)
    if distributed.rank():  # the same weights on every process, but random numbers of its own
        runtime.seed_everything(settings.seed + distributed.rank())
    started = time.perf_counter()
    state = training.Training(
        network,
        data,
        settings,
        folder=artifacts.fold_folder(args.output, args.run, data.fold),
        device=device,
        workers=args.workers,
        stop=stop,
        save_seconds=60 * args.save_minutes,
    )
    state.resume()
    now = state.progress
    if now.epoch or now.step:
        distributed.say(
            f"fold {data.fold}: going on after epoch {now.epoch}" + (f" and {now.step} batches" if now.step else "")
        )
    try:
        state.run()
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
            raise out_of_memory(settings) from error
        raise
    if not math.isfinite(state.progress.best_score):
        raise BadInput(f"fold {data.fold}: no epoch gave finite weights and scores: lower learning_rate")
    spent = (time.perf_counter() - started) / 60
    distributed.say(f"fold {data.fold}: best SIIM Dice {state.progress.best_score:.4f} in {spent:.1f} minutes")
    return {
        "best_score": state.progress.best_score,
        "seconds": sum(row["seconds"] for row in state.progress.history),
        "device": runtime.device_name(device),
        "processes": distributed.size(),
        "peak_memory_mib": runtime.peak_memory_mib(device),
    }


def starting_network(args, settings: TrainConfig, fold: int):
    """With the encoder weights of the config, or with all weights of the same fold of another run."""
    if settings.init_from is None:
        return build(settings, fetch=True)
    network = build(settings, fetch=False)
    path = args.output / artifacts.best_weights(settings.init_from.removeprefix("runs/"), fold)
    checkpoint.load_weights(network, checkpoint.load(path)["network"], path)
    return network


def out_of_memory(settings: TrainConfig) -> BadInput:
    """What to try."""
    parts = 2 * settings.accumulation_steps
    return BadInput(
        f"out of memory with {settings.batch_size // settings.accumulation_steps} images at a time at "
        f"{settings.image_size} x {settings.image_size}; what was saved is whole. Try, under another --run or with "
        f"--overwrite: --set accumulation_steps={parts} (the same batch in smaller parts), "
        f"--set batch_size={max(2, settings.batch_size // 2)}, or --set mixed_precision=true"
    )


if __name__ == "__main__":
    stage.run(main)
