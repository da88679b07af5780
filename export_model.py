"""Write a run's networks to one ONNX file, to use without this project.

Reads   output/runs/<run>/fold<k>/best.pt (stage 02), the folds and the cache
Writes  output/runs/<run>/network.onnx    grey images in, probability maps out

The file contains normalisation, and the mean logit over an image and its mirror image and
over the folds. Its metadata describe its input and output. Its probability maps are
compared with PyTorch's on images of the run; if they differ by more than 1/255, the file
is not kept.

    python export_model.py --run ica_resunet
    python export_model.py --run ica_resunet --fold 0
"""

import argparse

from pneumothorax.pipeline import lineage, locks, stage


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = stage.parser(__doc__, ("--output", "--overwrite", "--no-lock"))
    flag = parser.add_argument
    flag("--run", default="ica_resunet", help="name of the run (default: %(default)s)")
    flag("--fold", default="all", metavar="K|all", help="the folds to export (default: all)")
    args = parser.parse_args(argv)
    stage.check_name(parser, "--run", args.run)
    from pneumothorax.prediction import onnx_export

    if problem := onnx_export.missing():
        parser.error(problem)
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    import models
    from pneumothorax.prediction import onnx_export

    n_folds = lineage.folded(args.output)["settings"]["folds"]
    folds = stage.chosen_folds(args.fold, n_folds)
    # Stage 03 may write the same file.
    with locks.lock(args.output, f"03_predict-{args.run}", alone=args.no_lock):
        done = onnx_export.update(
            args.output, args.run, folds, build=models.build_untrained, overwrite=args.overwrite
        )
    print(done)


if __name__ == "__main__":
    stage.run(main)
