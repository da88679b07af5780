"""`03_predict.py --dicom`: its flags, the folder it may write to, and what it says at the end."""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from pneumothorax.compute import runtime
from pneumothorax.errors import BadInput, bad_list
from pneumothorax.inference import dicom_seg, predicting, reading
from pneumothorax.pipeline import artifacts, locks, stage
from pneumothorax.prediction.probability_maps import Predictor

NOTICE = "research software, not a medical device: nothing here is a diagnosis"


def add_flags(parser: argparse.ArgumentParser) -> None:
    flag = parser.add_argument
    flag(
        "--dicom",
        type=stage.place,
        metavar="PATH",
        help="predict this DICOM file, or all in this folder at any depth",
    )
    flag("--to", type=stage.place, metavar="FOLDER", help="where the results of --dicom go")
    flag(
        "--dicom-seg",
        action="store_true",
        help="with --dicom, also write DICOM Segmentation objects",
    )


def check_flags(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if bool(args.dicom) != bool(args.to):
        parser.error("--dicom PATH and --to FOLDER go together")
    if args.dicom_seg and not args.dicom:
        parser.error("--dicom-seg goes with --dicom PATH")
    if args.dicom and any(
        getattr(args, name) != parser.get_default(name) for name in ("fold", "split")
    ):
        parser.error("--dicom takes all networks of the run: --fold and --split do not go with it")
    if args.dicom and (args.export or args.backend != parser.get_default("backend")):
        parser.error("--dicom predicts with PyTorch: --export and --backend do not go with it")
    if args.dicom_seg and (problem := dicom_seg.missing()):
        parser.error(f"--dicom-seg {problem}")


def run(args: argparse.Namespace, device: torch.device, load: Callable[[int], Predictor]) -> None:
    """Predict all files, then raise BadInput with the list of those that cannot be used, if there are any.

    Args:
        load: gives the network of a fold.
    """
    check_places(args.dicom, args.to, raw=args.input, output=args.output)
    settled = predicting.settled(args.output, args.run)
    listed = reading.search(args.dicom)
    n_files = len(listed.files) + listed.copies + len(listed.rejected)
    with locks.lock(args.to, "03_predict-dicom"):
        if args.overwrite:
            predicting.forget(args.to)
        bf16 = runtime.predicts_in_bf16(args.precision, device)
        task = predicting.Task(args.to, settled, args.dicom_seg, args.batch_size, device, bf16)
        frame = predicting.predict(listed, task, lambda: [load(fold) for fold in settled.folds])
        path = artifacts.write_table(args.to, artifacts.DICOM_PREDICTIONS, frame)
        artifacts.write_table(args.to, artifacts.REJECTED, listed.rejections())
        others = predicting.of_earlier_calls(args.to, listed)

    print(f"{len(frame)} images, {int((frame['area_px'] > 0).sum())} with a predicted pneumothorax")
    if seen := len(settled.trained_on.intersection(frame["image_id"])):
        print(
            f"note: the networks were trained on {seen} of these images: there they look better than they are"
        )
    if listed.copies:
        print(f"{listed.copies} files are copies of another one: each image predicted once")
    if others:
        print(
            f"{args.to} also holds {others} images of earlier calls, without a row now (--overwrite removes them)"
        )
    print(f"wrote {path}, and overlays and masks beside it")
    print(NOTICE, flush=True)
    if listed.rejected:
        lines = [
            f"{entry['source']}: {entry['code']}: {entry['message']}" for entry in listed.rejected
        ]
        raise bad_list(
            f"{len(lines)} of {n_files} files rejected or not done in full; the others are done",
            lines,
        )


def check_places(path: Path, folder: Path, *, raw: Path, output: Path) -> None:
    """Raises BadInput where results in `folder` would lie among what is only read, or among the stages' own files.

    Args:
        path: the file or folder to predict.
        raw, output: --input and --output, the stages' own.
    """
    if not (path.is_file() or path.is_dir()):
        raise BadInput(f"--dicom {path} does not exist, or is neither a file nor a folder")
    for place in (path, raw):
        if folder.resolve().is_relative_to(place.resolve()):
            raise BadInput(
                f"--to {folder} lies in {place}, which is only read: choose a folder outside it"
            )
    if path.resolve().is_relative_to(folder.resolve()):
        raise BadInput(f"--to {folder} holds {path}, which is only read: choose another folder")
    if folder.resolve().is_relative_to(output.resolve()):
        raise BadInput(
            f"--to {folder} lies in {output}, where the stages keep their own files: choose another folder"
        )
