"""Stage 02: train one network per fold, each on all the other folds.

Reads   output/manifest.csv, folds.csv, labels.csv, cache/    (stages 00 and 01), and a config
Writes  output/runs/<run>/config.yaml                         every setting, resolved
        output/runs/<run>/network.json                        the network's parts, shapes and cost
        output/runs/<run>/fold<k>/last.pt, previous.pt        the last two states, to resume from
        output/runs/<run>/fold<k>/best.pt                     the weights with the best SIIM Dice
        output/runs/<run>/fold<k>/history.csv                 one row per epoch; see progress.png
        output/runs/<run>/fold<k>/tensorboard/                the same for TensorBoard
        output/runs/<run>/fold<k>/finished.json               hashes, after the last epoch

Safe to interrupt: run the same command again to resume from the last save. State is saved
after every epoch and, within one, every --save-minutes. Ctrl-C, SIGTERM and --max-time
finish the current step and save. A run keeps its settings: other settings under the same
name are refused, and the differences listed. --overwrite accepts them and starts from
scratch every time: leave it out to resume.

    python 02_train.py --config configs/ica_resunet.yaml
    python 02_train.py --config configs/ica_resunet.yaml --run slow --set learning_rate=3e-5
    python 02_train.py --config configs/unet.yaml --device cuda:0,cuda:1     # a fold on each
    torchrun --nproc-per-node 4 --max-restarts 3 -- 02_train.py --config configs/unet.yaml
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pneumothorax.errors import BadConfig
from pneumothorax.pipeline import artifacts, stage

if TYPE_CHECKING:
    import torch

    from models.network import SegmentationNetwork
    from pneumothorax.compute.interruption import StopRequest
    from pneumothorax.training.config import TrainConfig
    from pneumothorax.training.run import TrainingRun

DEFAULT_CONFIG = Path("configs/ica_resunet.yaml")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = stage.parser(__doc__)
    flag = parser.add_argument
    config_help = f"experiment (default: the one saved with --run, else {DEFAULT_CONFIG})"
    flag("--config", type=Path, metavar="YAML", help=config_help)
    flag("--run", help="name of the run (default: the config file's name)")
    fold_help = "the fold to hold out (default: %(default)s, one after the other)"
    flag("--fold", default="all", metavar="K|all", help=fold_help)
    set_help = "change one setting; may be repeated"
    flag("--set", action="append", default=[], metavar="KEY=VALUE", help=set_help)
    stage.add_device_flag(parser, "; cuda:0,cuda:1 trains a fold on each")
    save_help = "minutes between saves within an epoch (default: %(default)g)"
    flag("--save-minutes", type=stage.minutes, default=10.0, metavar="M", help=save_help)
    max_help = "save and stop after this number of minutes; the same command resumes"
    flag("--max-time", type=stage.minutes, metavar="M", help=max_help)
    args = parser.parse_args(argv)
    args.run = args.run or (args.config or DEFAULT_CONFIG).stem
    stage.check_name(parser, "--run", args.run)
    if args.config is None:
        saved = args.output / artifacts.Run(args.run).config
        args.config = saved if saved.exists() else DEFAULT_CONFIG
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    from pneumothorax.compute import distributed, per_device
    from pneumothorax.compute.interruption import StopRequest
    from pneumothorax.training import config
    from pneumothorax.training.run import TrainingRun, memory_for_network

    settings = config.load(args.config, args.set, seed=args.seed)
    network = build(settings, fetch=False)  # refuses impossible settings before anything is written
    max_seconds = None if args.max_time is None else 60 * args.max_time
    names = args.device.split(",")
    own = names[0] if len(names) == 1 else "cpu"  # of several, each has a separate process
    with distributed.processes(own) as device, StopRequest(max_seconds) as stop:
        distributed.say(per_device.first_lines(names, device, settings.precision))
        run = TrainingRun(args.output, args.run, settings, alone=args.no_lock)
        folds = stage.chosen_folds(args.fold, run.n_folds)
        run.claim(folds, network, overwrite=args.overwrite)
        if len(names) > 1:
            left = run.unfinished(folds)
            if code := per_device.train(left, names, workers=args.workers, stop=stop):
                sys.exit(code)
            folds = []
        for place, fold in enumerate(folds, start=1):
            with run.lock(fold), memory_for_network(device):
                if run.is_finished(fold):
                    distributed.say(f"fold {fold} is up to date")
                    continue
                run.prepare(network, workers=args.workers)
                later = len(run.unfinished(folds[place:]))
                facts = train_fold(args, run, fold, device=device, stop=stop, folds_left=later)
                run.seal(fold, facts)
        distributed.say("\n".join(run.closing_lines()))


def build(settings: "TrainConfig", *, fetch: bool) -> "SegmentationNetwork":
    """The network, with pretrained weights if `fetch`. Raises BadConfig for unknown settings."""
    import models

    make = models.build if fetch else models.build_untrained
    try:
        network = make(settings.model, **settings.model_settings)
    except (ValueError, TypeError) as error:
        raise BadConfig(f"model {settings.model}: {error}") from error
    if settings.frozen_encoder_epochs and not network.encoder_parameters():
        raise BadConfig(f"frozen_encoder_epochs: {settings.model} has no encoder to freeze")
    return network


def train_fold(
    args: argparse.Namespace,
    run: "TrainingRun",
    fold: int,
    *,
    device: "torch.device",
    stop: "StopRequest",
    folds_left: int,
) -> dict[str, Any]:
    """Train the fold to its last epoch, resuming if it can -> facts for its record."""
    from pneumothorax.compute import distributed, loading, runtime
    from pneumothorax.training import loop
    from pneumothorax.training.run import finish

    seed = run.settings.seed
    runtime.seed_everything(seed)
    network = build(run.settings, fetch=run.settings.init_from is None)
    run.load_start(network, fold)
    if distributed.rank():  # all processes have the same weights but other random numbers
        runtime.seed_everything(seed + distributed.rank())
    training = loop.Training(
        network,
        run.fold_data(fold),
        run.settings,
        run=run.name,
        device=device,
        workers=loading.workers_per_process(args.workers),
        stop=stop,
        save_seconds=60 * args.save_minutes,
        folds_left=folds_left,
    )
    return finish(training)


if __name__ == "__main__":
    stage.run(main)
