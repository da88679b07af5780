"""Train another pipeline on our images and folds, in the same minutes, for stage 04 to score.

smp       segmentation_models_pytorch, as its own introductory example uses it
nnunet    nnU-Net v2, 2D, its defaults with fewer and shorter epochs; not on Windows

Reads   output/manifest.csv, folds.csv, cache/    (stages 00 and 01)
Writes  output/runs/<run>/    weights, history, out-of-fold probability maps, records
        output/peers/<run>/   nnU-Net's own folders and log; made from scratch

Each fold gets the same share of the minutes, which count training alone. The number of
epochs follows from the time they take, so that the peer's learning rate falls to its end.
Prints the versions, the minutes, the largest memory of a process, and the scores by the
peer's own rule (masks at a probability of 0.5). Stage 04 scores the run with nested
thresholds, as it does ours. Safe to interrupt: the same command skips finished folds.

    python -m benchmarks.peers --output output --peer smp --minutes 30
    python -m benchmarks.peers --output output --peer nnunet --minutes 90
    python 04_submit.py --output output --run nnunet
    python 05_report.py --output output --names smp,nnunet
"""

import argparse
import time
from pathlib import Path

from benchmarks import timing
from benchmarks.peers import nnunet, peer_run, smp_example
from benchmarks.peers.peer_run import PeerRun, Radiographs
from pneumothorax.pipeline import artifacts, locks, stage

SMP, NNUNET = "smp", "nnunet"
DEFAULT_SEED = 42


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = stage.parser(__doc__, ("--output", "--seed", "--overwrite"))
    flag = parser.add_argument
    flag("--peer", choices=(SMP, NNUNET), required=True)
    flag("--minutes", type=float, required=True, help="of training, all folds together")
    flag("--run", help="name of the run (default: the peer's)")
    size_help = "height and width of the peer's images (default: %(default)s)"
    flag("--size", type=int, default=256, metavar="PX", help=size_help)
    weights_help = "of smp's encoder (default: %(default)s)"
    flag("--encoder-weights", default="package:efficientnet_lite0", help=weights_help)
    environment_help = "where nnU-Net is installed if it is not there yet (default: %(default)s)"
    flag("--environment", type=Path, default=Path(".venv-peers"), help=environment_help)
    args = parser.parse_args(argv)
    args.run = args.run or args.peer
    args.seed = DEFAULT_SEED if args.seed is None else args.seed
    stage.check_name(parser, "--run", args.run)
    if not args.minutes > 0:
        parser.error("--minutes must be above 0")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    timing.machine("numpy", "torch")
    with locks.lock(args.output, f"03_predict-{args.run}"):
        radiographs = peer_run.load_radiographs(args.output, args.size)
        peer = make_peer(args, radiographs)
        settings = {"peer": args.peer, "minutes": args.minutes, "size": args.size}
        run = PeerRun(args.output, args.run, settings | {"seed": args.seed} | peer.facts())
        run.claim()
        print(run.settings)
        for fold in radiographs.folds:
            if run.is_finished(fold) and not args.overwrite:
                print(f"fold {fold} is up to date")
                continue
            seconds = 60 * args.minutes / len(radiographs.folds)
            started = time.monotonic()
            run.add(fold, peer.train(fold, seconds=seconds, weights=run.weights(fold)))
            print_fold(run, fold, time.monotonic() - started)
        run.seal(radiographs.folds)
    print_scores(run, radiographs, args.seed)
    print(f"next: python 04_submit.py --run {args.run} --output {args.output}")


def make_peer(
    args: argparse.Namespace, radiographs: Radiographs
) -> smp_example.SmpExample | nnunet.NnUNet:
    if args.peer == SMP:
        return smp_example.SmpExample(
            radiographs, encoder_weights=args.encoder_weights, seed=args.seed
        )
    folder = args.output / "peers" / args.run
    return nnunet.NnUNet(radiographs, folder=folder, environment=args.environment)


def print_fold(run: PeerRun, fold: int, seconds: float) -> None:
    record = run.record(fold)
    history = artifacts.read_table(run.output, artifacts.Run(run.name).fold(fold).history)
    print(
        f"fold {fold}: {len(history)} epochs in {record['seconds'] / 60:.1f} minutes, "
        f"{seconds / 60:.1f} with everything, at most {record['peak_memory_mib']:.0f} MiB",
        flush=True,
    )


def print_scores(run: PeerRun, radiographs: Radiographs, seed: int) -> None:
    seconds = sum(run.record(fold)["seconds"] for fold in radiographs.folds)
    print(f"{run.name}: {seconds / 60:.1f} minutes of training, {len(radiographs.rows)} images")
    print("by its own rule, masks at a probability of 0.5, out of fold (95 % intervals):")
    print(run.scores_by_own_rule(seed).to_string(index=False, float_format="{:.4f}".format))


if __name__ == "__main__":
    stage.run(main)
