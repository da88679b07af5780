"""Stage 02: train one network per fold, each on all folds but its own.

Reads   output/manifest.csv, folds.csv, labels.csv, cache/    (stages 00 and 01), and a config
Writes  output/runs/<run>/config.yaml                         every setting, resolved
        output/runs/<run>/fold<k>/last.pt                     everything needed to go on
        output/runs/<run>/fold<k>/best.pt                     the weights of the epoch with the best SIIM Dice
        output/runs/<run>/fold<k>/history.csv                 one row per epoch

Killed and started again with the same command it goes on after the last finished epoch. A run keeps its settings:
other ones under the same name are refused, naming the differences, unless --overwrite starts it anew.

    python 02_train.py --config configs/ica_resunet.yaml
    python 02_train.py --config configs/ica_resunet.yaml --run slow --fold 0 --set learning_rate=3e-5
"""

import argparse
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

import models
from pneumothorax import artifacts, cache, config, records, runtime, stage, training
from pneumothorax.config import TrainConfig
from pneumothorax.errors import BadConfig, BadInput


@dataclass(frozen=True)
class Tables:
    """The training images with their folds, their label rows, and the hashes of the files they came from."""

    train: pd.DataFrame
    labels: dict[str, list[str]]
    inputs: dict[str, str]

    @property
    def n_folds(self) -> int:
        return int(self.train["fold"].max()) + 1


def parse_args(argv=None):
    parser = stage.parser(__doc__)
    flag = parser.add_argument
    flag("--config", type=Path, default=Path("configs/ica_resunet.yaml"), help="experiment (default: %(default)s)")
    flag("--run", help="name of the run (default: the config file's name)")
    flag("--fold", default="all", metavar="K|all", help="which fold to hold out (default: %(default)s)")
    flag("--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting; may be repeated")
    flag("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: %(default)s)")
    args = parser.parse_args(argv)
    args.run = args.run or args.config.stem
    stage.check_name(parser, "--run", args.run)
    return args


def main(argv=None):
    args = parse_args(argv)
    settings = config.load(args.config, args.set, seed=args.seed)
    cache_size = cache.size(args.output, settings.image_size)
    tables = read_tables(args.output)
    chosen = stage.chosen_folds(args.fold, tables.n_folds)
    claim_run(args, settings)

    checked = False
    for fold in chosen:
        with stage.lock(args.output, f"02_train-{args.run}-fold{fold}"):
            if is_finished(args, settings, tables, fold):
                print(f"fold {fold} is finished")
                continue
            if not checked:
                cache.verify(args.output, cache_size, tables.train, workers=args.workers)
                checked = True
            train_fold(args, settings, tables, cache_size, fold)
    print(f"wrote {artifacts.run_folder(args.output, args.run)}")
    print(f"next: python 03_predict.py --run {args.run} --output {args.output}")


def read_tables(output: Path) -> Tables:
    records.require(output, artifacts.FOLDED)
    manifest = artifacts.read_table(output, artifacts.MANIFEST)
    folds = artifacts.read_table(output, artifacts.FOLDS)
    train = manifest[manifest["split"] == artifacts.TRAIN].merge(folds[["image_id", "fold"]], on="image_id")
    labels = artifacts.read_table(output, artifacts.LABELS).groupby("image_id")["rle"].agg(list).to_dict()
    inputs = records.hashes(output, [artifacts.MANIFEST.path, artifacts.FOLDS.path, artifacts.LABELS.path])
    return Tables(train, labels, inputs)


def claim_run(args: argparse.Namespace, settings: TrainConfig) -> None:
    """Save the resolved config with the run, or check that the run was made with the same one."""
    folder, path = artifacts.run_folder(args.output, args.run), artifacts.run_config(args.output, args.run)
    if path.exists():
        differences = config.differences(yaml.safe_load(path.read_text("utf-8")) or {}, config.as_dict(settings))
        if differences and not args.overwrite:
            headline = f"run {args.run} has other settings (choose another --run, or --overwrite to start it anew):"
            raise BadInput("\n  ".join([headline, *differences]))
        if differences:
            print(f"starting {folder} anew: its settings change")
            shutil.rmtree(folder)
    if not path.exists():
        config.save(path, settings)


def is_finished(args: argparse.Namespace, settings: TrainConfig, tables: Tables, fold: int) -> bool:
    record = artifacts.trained(args.run, fold)
    same = {"settings": config.as_dict(settings), "inputs": tables.inputs}
    return not args.overwrite and records.is_current(args.output, record, **same)


def train_fold(args: argparse.Namespace, settings: TrainConfig, tables: Tables, cache_size: int, fold: int) -> None:
    folder = artifacts.fold_folder(args.output, args.run, fold)
    if args.overwrite and folder.exists():
        shutil.rmtree(folder)
    device = runtime.device(args.device)
    runtime.seed_everything(settings.seed)
    try:
        network = models.build(settings.model, **settings.model_settings)
    except (ValueError, TypeError) as error:
        raise BadConfig(f"model {settings.model}: {error}") from error
    held_out = tables.train["fold"] == fold
    data = training.FoldData(
        output=args.output,
        cache_size=cache_size,
        train=tables.train[~held_out].reset_index(drop=True),
        validation=tables.train[held_out].reset_index(drop=True),
        labels=tables.labels,
        folds_hash=tables.inputs[artifacts.FOLDS.path],
        fold=fold,
    )
    started = time.perf_counter()
    state = training.Training(network, data, settings, folder=folder, device=device, workers=args.workers)
    state.resume()
    if state.epoch:
        print(f"fold {fold}: going on after epoch {state.epoch}")
    state.run()
    print(f"fold {fold}: best SIIM Dice {state.best_score:.4f} in {(time.perf_counter() - started) / 60:.1f} minutes")
    best, history = (f"runs/{args.run}/fold{fold}/{name}" for name in (training.BEST, training.HISTORY))
    facts = {
        "best_score": state.best_score,
        "parameters": sum(weights.numel() for weights in network.parameters()),
        "seconds": sum(row["seconds"] for row in state.history),
    }
    same = {"settings": config.as_dict(settings), "inputs": tables.inputs}
    records.write(args.output, artifacts.trained(args.run, fold), **same, outputs=[best, history], **facts)


if __name__ == "__main__":
    stage.run(main)
