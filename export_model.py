"""Write a run's networks to one ONNX file, or a model bundle that predicts without PyTorch.

Reads   output/runs/<run>/fold<k>/best.pt (stage 02), the folds and the cache
        output/submissions/<run>/ (stage 04), for a bundle
Writes  output/runs/<run>/network.onnx    grey images in, probability maps out
        FILE                              with --bundle: networks, thresholds, calibration, card

The ONNX file contains normalisation, and the mean logit over an image and its mirror image
and over the folds. Its metadata describe its input and output. Its probability maps are
compared with PyTorch's on images of the run; if they differ by more than 1/255, the file
is not kept.

A bundle is all that predict_radiographs.py --model needs, on machines without PyTorch and
without this output folder. It holds no radiograph and no image id. It uses the folds that
stage 03 predicted with; of a blend, give the submission's name. With --weights int8 it
takes a quarter to a half of the space, and its probability maps change a little: by how
much, on images of the run, is printed and written on its card.

    python export_model.py --run ica_resunet
    python export_model.py --run ica_resunet --fold 0
    python export_model.py --run ica_resunet --bundle ica_resunet.zip
    python export_model.py --run ica_resunet --bundle small.zip --weights int8
"""

import argparse
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from pneumothorax.pipeline import artifacts, lineage, locks, records, stage


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = stage.parser(__doc__, ("--output", "--overwrite", "--no-lock"))
    flag = parser.add_argument
    name = "name of the run, or with --bundle of a blend's submission (default: %(default)s)"
    flag("--run", default="ica_resunet", help=name)
    flag("--fold", default="all", metavar="K|all", help="the folds to export (default: all)")
    flag("--bundle", type=stage.place, metavar="FILE", help="also write a model bundle, a zip file")
    weights = "how a bundle stores them (default: %(default)s)"
    flag("--weights", choices=("fp32", "int8"), default="fp32", help=weights)
    args = parser.parse_args(argv)
    stage.check_name(parser, "--run", args.run)
    if args.bundle and args.fold != "all":
        parser.error("a bundle holds the folds that stage 03 predicted with: drop --fold")
    if args.weights == "int8" and not args.bundle:
        parser.error("--weights int8 is for bundles: add --bundle FILE")
    from pneumothorax.prediction import onnx_export

    if problem := onnx_export.missing():
        parser.error(problem)
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.bundle:
        write_bundle(args)
        return
    n_folds = lineage.folded(args.output)["settings"]["folds"]
    folds = stage.chosen_folds(args.fold, n_folds)
    with lock(args, args.run):
        export(args, args.run, folds)


def write_bundle(args: argparse.Namespace) -> None:
    from pneumothorax.inference import bundle, card, settled

    found = settled.read(args.output, args.run)
    facts = card.facts(args.output, args.run)
    with ExitStack() as held:
        graphs = {}
        for run in found.runs:
            held.enter_context(lock(args, run.name))
            export(args, run.name, list(run.folds))
            graphs[run.name] = (args.output / artifacts.Run(run.name).onnx).read_bytes()
        if args.weights == "int8":
            found = found.of_int8_weights()
            store_as_int8(args.output, graphs, facts)
        bundle.write(args.bundle, found, graphs, facts=facts, card=card.as_markdown(facts))
    size = args.bundle.stat().st_size / 2**20
    if found.warning:
        print(found.warning)
    print(f"wrote {args.bundle}: {size:.1f} MiB, SHA-256 {records.sha256(args.bundle)}")
    command = stage.quoted("predict_radiographs.py", "PATH", "--to", "FOLDER", "--model")
    print(f"to predict: python {command} {stage.quoted(args.bundle)}")


def store_as_int8(output: Path, graphs: dict[str, bytes], facts: dict[str, Any]) -> None:
    """Store the weights of each run as int8; what that changes goes to the card."""
    from pneumothorax.prediction import onnx_export, small_weights

    images = onnx_export.cached_images(output)
    for run, graph in graphs.items():
        graphs[run] = small_weights.as_int8(graph)
        difference = small_weights.difference(graph, graphs[run], images)
        facts["networks"][run]["int8"] = difference._asdict()
        print(f"{run} with int8 weights: {difference.in_words}")


def lock(args: argparse.Namespace, run: str) -> AbstractContextManager[Path]:
    """Stage 03 may write the same file."""
    return locks.lock(args.output, f"03_predict-{run}", alone=args.no_lock)


def export(args: argparse.Namespace, run: str, folds: list[int]) -> None:
    """Write the run's ONNX file unless it is up to date."""
    import models
    from pneumothorax.prediction import onnx_export

    print(
        onnx_export.update(
            args.output, run, folds, build=models.build_untrained, overwrite=args.overwrite
        )
    )


if __name__ == "__main__":
    stage.run(main)
