"""Stage 03: probability maps of images that the networks have not seen.

Reads   output/runs/<run>/fold<k>/best.pt (stage 02), manifest, folds and cache
Writes  output/runs/<run>/oof/<id>.png    training images, by the network of their fold
        output/runs/<run>/test/<id>.png   test images, averaged over the networks
        output/runs/<run>/predictions.csv one row per probability map
        output/runs/<run>/network.onnx    only with --backend onnxruntime

Probability maps are 8-bit grey PNGs, probability x 255, at the network's size, of the mean
logit over an image and its mirror image. The network is rebuilt from the checkpoint alone;
--backend onnxruntime exports it first, as export_model.py does, if network.onnx is missing
or out of date. Safe to interrupt: run the same command again to resume.

    python 03_predict.py --run ica_resunet
    python 03_predict.py --run ica_resunet --split oof --fold 0
    python 03_predict.py --run ica_resunet --backend onnxruntime
    torchrun --nproc-per-node 4 -- 03_predict.py --run ica_resunet
"""

import argparse
from typing import TYPE_CHECKING

from pneumothorax.pipeline import artifacts, lineage, stage

if TYPE_CHECKING:
    import torch

    from pneumothorax.prediction.probability_maps import Predictor

SPLITS = (artifacts.OOF, artifacts.TEST)
BACKENDS = PYTORCH, ONNXRUNTIME = "pytorch", "onnxruntime"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = stage.parser(__doc__)
    flag = parser.add_argument
    flag("--run", default="ica_resunet", help="name of the run (default: %(default)s)")
    flag("--split", default="oof,test", help="oof, test or oof,test (default: %(default)s)")
    flag("--fold", default="all", metavar="K|all", help="whose networks predict (default: all)")
    stage.add_prediction_flags(parser)
    flag(
        "--backend",
        choices=BACKENDS,
        default=PYTORCH,
        help="library to compute with; onnxruntime: CPU, fp32 (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    stage.check_name(parser, "--run", args.run)
    args.split = args.split.split(",")
    if not set(args.split) <= set(SPLITS):
        parser.error("--split must be oof, test or oof,test")
    if args.batch_size < 1:
        parser.error("--batch-size must be at least 1")
    if args.backend == ONNXRUNTIME:
        use_onnxruntime(parser, args)
    return args


def use_onnxruntime(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Set device and precision. Usage error if ONNX Runtime cannot run."""
    from pneumothorax.prediction import onnx_export

    if problem := onnx_export.missing():
        parser.error(f"--backend {ONNXRUNTIME}: {problem}")
    if args.device not in ("auto", "cpu") or args.precision in ("bf16", "fp16"):
        parser.error("--backend onnxruntime runs on the CPU in fp32: drop --device and --precision")
    args.device, args.precision = "cpu", "fp32"


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    from pneumothorax.compute import distributed, loading, precisions
    from pneumothorax.prediction import probability_maps, splits

    with (
        distributed.processes(args.device) as device,
        distributed.lock(args.output, f"03_predict-{args.run}", alone=args.no_lock),
        probability_maps.memory_for(args.batch_size),
    ):
        # Settled by the main process: machines may differ in what they support.
        precision = distributed.on_main(precisions.resolve, args.precision, device)
        distributed.say(precisions.first_line(device, precision))
        n_folds = lineage.folded(args.output)["settings"]["folds"]
        folds = stage.chosen_folds(args.fold, n_folds)
        images = splits.rows(args.output, folds, args.split)
        inputs = lineage.predict_inputs(args.output, args.run, folds, list(images))
        settings = {
            "splits": list(images),
            "folds": folds,
            "precision": precision,
            "backend": args.backend,
            "averaged": probability_maps.AVERAGED,
        }
        made_from = {"settings": settings, "inputs": inputs}
        after = stage.next_step(args.output, "04_submit.py", "--run", args.run)
        overwrite = args.overwrite and not distributed.is_restart()
        if overwrite:
            distributed.on_main(splits.forget, args.output, args.run)
        elif distributed.on_main(splits.is_current, args.output, args.run, made_from):
            distributed.say(f"the predictions of run {args.run} are up to date\n{after}")
            return

        size = distributed.on_main(splits.checked_cache, args.output, images, workers=args.workers)
        networks = load_networks(args, folds, device, overwrite=overwrite)
        workers = loading.workers_per_process(args.workers)
        task = splits.PredictionTask(
            args.output, args.run, size, args.batch_size, workers, device, precision
        )
        keys = {fold: weights_key(args, inputs, fold) for fold in folds}
        frame = splits.predict(networks, images, task=task, weights=keys)
        distributed.on_main(splits.seal, args.output, args.run, frame, made_from)

        counts = ", ".join(f"{len(rows)} {split}" for split, rows in images.items())
        distributed.say(f"{len(frame)} maps in {precision}: {counts}")
        path = args.output / artifacts.Run(args.run).predictions.path
        distributed.say(f"wrote {path} and {path.parent}/{{{','.join(images)}}}\n{after}")


def load_networks(
    args: argparse.Namespace, folds: list[int], device: "torch.device", *, overwrite: bool
) -> "dict[int, Predictor]":
    """By fold, from checkpoints, or for ONNX Runtime from the run's ONNX file."""
    import models
    from pneumothorax.compute import distributed
    from pneumothorax.prediction import onnx_export, onnx_runtime, probability_maps

    build = models.build_untrained
    if args.backend == PYTORCH:
        return probability_maps.load_folds(args.output, args.run, folds, build=build, device=device)
    done = distributed.on_main(
        onnx_export.update,
        args.output,
        args.run,
        folds,
        build=build,
        or_more=True,
        overwrite=overwrite,
    )
    distributed.say(done)
    return onnx_runtime.load(args.output / artifacts.Run(args.run).onnx, folds)


def weights_key(args: argparse.Namespace, inputs: dict[str, str], fold: int) -> str:
    """Hash of a fold's weights, and the backend: their maps must not be mixed."""
    key = inputs[artifacts.Run(args.run).fold(fold).best_weights]
    return key if args.backend == PYTORCH else f"{key} {ONNXRUNTIME}"


if __name__ == "__main__":
    stage.run(main)
