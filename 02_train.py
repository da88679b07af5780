"""Stage 02: train one network per fold, each on all folds but its own.

Reads   output/manifest.csv, folds.csv, labels.csv, cache/    (stages 00 and 01), and a config
Writes  output/runs/<run>/config.yaml                         every setting, resolved
        output/runs/<run>/network.json                        the network's parts, shapes and cost
        output/runs/<run>/fold<k>/last.pt                     everything needed to go on (previous.pt: one epoch older)
        output/runs/<run>/fold<k>/best.pt                     the weights of the epoch with the best SIIM Dice
        output/runs/<run>/fold<k>/history.csv                 one row per epoch
        output/runs/<run>/fold<k>/finished.json               its hashes, once the last epoch is done

Killed and started again with the same command it goes on after the last finished epoch. A run keeps its settings:
other ones under the same name are refused, naming the differences, unless --overwrite starts it anew.

    python 02_train.py --config configs/ica_resunet.yaml
    python 02_train.py --config configs/ica_resunet.yaml --run slow --fold 0 --set learning_rate=3e-5
"""

import argparse
import contextlib
import shutil
import time
from pathlib import Path

import pandas as pd

import models
from pneumothorax import artifacts, atomic, cache, config, lineage, network_trace, records, runtime, stage, training
from pneumothorax.config import TrainConfig
from pneumothorax.errors import BadConfig, BadInput

DEFAULT_CONFIG = Path("configs/ica_resunet.yaml")


def parse_args(argv=None):
    parser = stage.parser(__doc__)
    flag = parser.add_argument
    flag("--config", type=Path, help=f"experiment (default: the one saved with --run, else {DEFAULT_CONFIG})")
    flag("--run", help="name of the run (default: the config file's name)")
    flag("--fold", default="all", metavar="K|all", help="which fold to hold out (default: %(default)s)")
    flag("--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting; may be repeated")
    flag("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: %(default)s)")
    args = parser.parse_args(argv)
    args.run = args.run or (args.config or DEFAULT_CONFIG).stem
    stage.check_name(parser, "--run", args.run)
    if args.config is None:
        saved = artifacts.run_config(args.output, args.run)
        args.config = saved if saved.exists() else DEFAULT_CONFIG
    return args


def main(argv=None):
    args = parse_args(argv)
    settings = config.load(args.config, args.set, seed=args.seed)
    network = build(settings, fetch=False)  # refuse impossible settings before anything is written
    device = runtime.device(args.device)
    cache_size = cache.size(args.output, settings.image_size)
    inputs = lineage.train_inputs(args.output)
    rows = artifacts.training_rows(args.output)
    chosen = stage.chosen_folds(args.fold, int(rows["fold"].max()) + 1)
    claim_run(args, settings, n_folds=int(rows["fold"].max()) + 1)

    same = {"settings": config.as_dict(settings), "inputs": inputs}
    verified = False
    for fold in chosen:
        with stage.lock(args.output, lock_name(args.run, fold)):
            if not args.overwrite and records.is_current(args.output, artifacts.trained(args.run, fold), **same):
                print(f"fold {fold} is finished")
                continue
            if not verified:
                cache.verify(args.output, cache_size, rows, workers=args.workers)
                verified = True
            folder = artifacts.fold_folder(args.output, args.run, fold)
            if args.overwrite and folder.exists():
                shutil.rmtree(folder)
            data = fold_data(args.output, rows, cache_size, fold, inputs)
            describe(args, network, settings)
            facts = train_fold(args, settings, data, folder, device)
            outputs = [artifacts.best_weights(args.run, fold), artifacts.history(args.run, fold)]
            outputs.append(artifacts.network_facts(args.run))
            records.write(args.output, artifacts.trained(args.run, fold), **same, outputs=outputs, **facts)
    print(f"wrote {artifacts.run_folder(args.output, args.run)}")
    print(f"next: python 03_predict.py --run {args.run} --output {args.output}")


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


def describe(args: argparse.Namespace, network, settings: TrainConfig) -> None:
    """Save what the network is made of and costs, for the report: the same bytes for every fold."""
    path = args.output / artifacts.network_facts(args.run)
    atomic.write_json(path, network_trace.trace(network, settings.image_size))


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
    args, settings: TrainConfig, data: training.FoldData, folder: Path, device
) -> dict[str, float | str | None]:
    """Train to the last epoch from wherever the fold is; returns what the record says about it."""
    runtime.seed_everything(settings.seed)
    network = build(settings, fetch=True)
    started = time.perf_counter()
    state = training.Training(network, data, settings, folder=folder, device=device, workers=args.workers)
    state.resume()
    if state.epoch:
        print(f"fold {data.fold}: going on after epoch {state.epoch}")
    state.run()
    if not state.best_path.exists():
        raise BadInput(f"fold {data.fold}: no epoch gave finite weights and scores: lower learning_rate")
    minutes = (time.perf_counter() - started) / 60
    print(f"fold {data.fold}: best SIIM Dice {state.best_score:.4f} in {minutes:.1f} minutes")
    return {
        "best_score": state.best_score,
        "seconds": sum(row["seconds"] for row in state.history),
        "device": runtime.device_name(device),
        "peak_memory_mib": runtime.peak_memory_mib(device),
    }


if __name__ == "__main__":
    stage.run(main)
