"""Stage 03: probability maps of the images that a network has not seen.

Reads   output/runs/<run>/fold<k>/best.pt (stage 02), the manifest, the folds and the cache
Writes  output/runs/<run>/oof/<id>.png    training images, each by the network of its own fold
        output/runs/<run>/test/<id>.png   test images, averaged over the folds' networks
        output/runs/<run>/predictions.csv one row per map
        output/runs/<run>/network.onnx    instead of maps, with --export onnx: the folds' networks in one file to use
                                          elsewhere, compared with PyTorch's maps on the spot

Maps are 8-bit grey PNGs, probability x 255, at the network's size, each the mean over an image and its mirror.
Killed and started again it goes on where it stopped. The network is rebuilt from the checkpoint alone.
--backend onnxruntime computes the maps with the networks of that file, which it exports where it is not up to date.

    python 03_predict.py --run ica_resunet
    python 03_predict.py --run ica_resunet --split oof --fold 0
    torchrun --nproc-per-node 4 -- 03_predict.py --run ica_resunet
    python 03_predict.py --run ica_resunet --export onnx
    python 03_predict.py --run ica_resunet --backend onnxruntime

With --dicom it predicts DICOM files that no stage has prepared, with all the run's networks and the final thresholds
of stage 04, into a folder of their own: overlays/<id>.png, masks/<id>.png, predictions.csv, rejected.csv and, with
--dicom-seg, segmentations/<id>.dcm. These carry the patient's identifiers, as DICOM requires; nothing else does.

    python 03_predict.py --dicom radiographs/ --run ica_resunet --to findings --dicom-seg
"""

import pandas as pd
import torch

import models
from pneumothorax.compute import checkpoint, distributed, runtime
from pneumothorax.data import cache
from pneumothorax.errors import BadInput
from pneumothorax.inference import command
from pneumothorax.pipeline import artifacts, lineage, records, stage
from pneumothorax.prediction import onnx_export, onnx_runtime, probability_maps

SPLITS = (artifacts.OOF, artifacts.TEST)
PRECISIONS = ("auto", "fp32", "bf16")
BACKENDS = PYTORCH, ONNXRUNTIME = "pytorch", "onnxruntime"


def parse_args(argv=None):
    parser = stage.parser(__doc__)
    flag = parser.add_argument
    flag("--run", default="ica_resunet", help="name of the run (default: %(default)s)")
    flag("--split", default="oof,test", help="oof, test or both (default: %(default)s)")
    flag(
        "--fold",
        default="all",
        metavar="K|all",
        help="folds whose networks predict (default: %(default)s)",
    )
    flag("--batch-size", type=int, default=16, help="images at a time (default: %(default)s)")
    flag("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: %(default)s)")
    flag("--precision", choices=PRECISIONS, default="auto",
         help="auto takes bf16 where the device has units for it, else fp32 (default: %(default)s)")  # fmt: skip
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--backend", type=onnx_export.installed, choices=BACKENDS, default=PYTORCH,
                        help="what computes; onnxruntime in fp32 on the CPU (default: %(default)s)")  # fmt: skip
    either.add_argument("--export", type=onnx_export.installed, choices=("onnx",),
                        help="write the networks to one file instead of predicting")  # fmt: skip
    command.add_flags(parser)
    args = parser.parse_args(argv)
    command.check_flags(parser, args)
    stage.check_name(parser, "--run", args.run)
    if args.export or args.backend == ONNXRUNTIME:
        if args.device not in ("auto", "cpu") or args.precision == "bf16":
            parser.error("ONNX is for the CPU and fp32 here: leave --device and --precision out")
        args.device, args.precision = "cpu", "fp32"
    if args.export and args.split != parser.get_default("split"):
        parser.error("--export takes the networks of --fold; --split does not go with it")
    args.split = args.split.split(",")
    if not args.split or not set(args.split) <= set(SPLITS):
        parser.error(f"--split is any of {', '.join(SPLITS)}, with commas between")
    if args.batch_size < 1:
        parser.error("--batch-size must be at least 1")
    return args


def main(argv=None):
    args = parse_args(argv)
    if args.dicom:
        device = runtime.device(args.device)
        command.run(args, device, lambda fold: load(args, fold, device))
        return
    with (
        distributed.processes(args.device) as device,
        distributed.lock(args.output, f"03_predict-{args.run}"),
    ):
        lineage.folded(args.output)
        train = artifacts.training_rows(args.output)
        folds = stage.chosen_folds(args.fold, int(train["fold"].max()) + 1)
        if args.export:
            distributed.on_main(export, args, folds, train)
            return
        manifest = artifacts.read_table(args.output, artifacts.MANIFEST)
        rows = {
            artifacts.OOF: train[train["fold"].isin(folds)],
            artifacts.TEST: manifest[manifest["split"] == artifacts.TEST],
        }
        splits = [split for split in SPLITS if split in args.split and not rows[split].empty]
        if not splits:
            raise BadInput(
                f"no images to predict: the manifest has no {' or '.join(args.split)} images"
            )

        inputs = lineage.predict_inputs(args.output, args.run, folds, splits)
        bf16 = distributed.on_main(
            runtime.predicts_in_bf16, args.precision, device
        )  # the same on all machines
        settings = {"splits": splits, "folds": folds, "bf16": bf16, "backend": args.backend}
        same = {"settings": settings, "inputs": inputs}
        if distributed.on_main(is_up_to_date, args, same):
            distributed.say(f"the predictions of run {args.run} are up to date")
            return
        cache_size = cache.size(args.output, 32)
        used = pd.concat([rows[split] for split in splits])
        distributed.on_main(cache.verify, args.output, cache_size, used, workers=args.workers)
        source = probability_maps.Source(
            args.output, args.run, cache_size, args.batch_size, args.workers, device, bf16
        )
        keys = [inputs[artifacts.Run(args.run).fold(fold).best_weights] for fold in folds]
        if args.backend == ONNXRUNTIME:
            distributed.on_main(export, args, folds, train, or_more=True)
            networks = onnx_runtime.load(args.output / artifacts.Run(args.run).onnx, folds)
            keys = [f"{key} {ONNXRUNTIME}" for key in keys]
        else:
            networks = [load(args, fold, device) for fold in folds]
        frame = probability_maps.predict_splits(
            networks, folds, rows, splits, source=source, keys=keys
        )
        distributed.on_main(seal, args, frame, same)
        counts = ", ".join(f"{len(rows[split])} {split}" for split in splits)
        distributed.say(f"{len(frame)} maps in {'bf16' if bf16 else 'fp32'}: {counts}")
        path = args.output / artifacts.Run(args.run).predictions.path
        distributed.say(f"wrote {path} and {path.parent}/{{{','.join(splits)}}}")
        distributed.say(f"next: python 04_submit.py --run {args.run} --output {args.output}")


def is_up_to_date(args, same: dict) -> bool:
    """Whether there is nothing to do; --overwrite forgets what was done."""
    if args.overwrite and not distributed.is_restart():
        for path in artifacts.Run(args.run).prediction_journals(args.output):
            path.unlink()
        return False
    current = records.is_current(args.output, artifacts.Run(args.run).predicted, **same)
    return current and probability_maps.maps_are_whole(args.output, args.run)


def seal(args, frame: pd.DataFrame, same: dict) -> None:
    """Write the table of maps, and the record that it was made from these networks and images."""
    table = artifacts.Run(args.run).predictions
    artifacts.write_table(args.output, table, frame)
    records.write(args.output, artifacts.Run(args.run).predicted, **same, outputs=[table.path])


def export(args, folds: list[int], train: pd.DataFrame, *, or_more: bool = False) -> None:
    """Write the networks of these folds to the run's ONNX file, unless it holds them (`or_more`: and others)."""
    weights = lineage.weights(args.output, args.run, folds)
    path = args.output / artifacts.Run(args.run).onnx
    again = args.overwrite and not distributed.is_restart()
    if not again and onnx_export.is_current(args.output, args.run, folds, weights, or_more=or_more):
        distributed.say(f"{path} is up to date")
        return
    networks = {fold: load(args, fold, torch.device("cpu")) for fold in folds}
    cache_size = cache.size(args.output, 32)
    images = [
        args.output / artifacts.Cache(cache_size).image(image_id) for image_id in train["image_id"]
    ]
    difference = onnx_export.write(args.output, args.run, networks, weights=weights, images=images)
    held = (
        f"{len(folds)} networks in one file"
        if len(folds) > 1
        else f"the network of fold {folds[0]}"
    )
    distributed.say(
        f"wrote {path}: {held}, maps differ from PyTorch's by at most {difference} of 255"
    )


def load(args, fold: int, device):
    """The network of a fold's best checkpoint, from the checkpoint alone, and the size of its images."""
    path = args.output / artifacts.Run(args.run).fold(fold).best_weights
    state = checkpoint.load(path)
    network = models.build_untrained(state["config"]["model"], **state["config"]["model_settings"])
    checkpoint.load_weights(network, state["network"], path)
    return probability_maps.Predictor(
        probability_maps.ready(network, device), state["config"]["image_size"]
    )


if __name__ == "__main__":
    stage.run(main)
