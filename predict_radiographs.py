"""Find and outline pneumothorax on radiographs that no stage has prepared.

Reads   PATH                           a DICOM, PNG or JPEG file, or a folder at any depth
        output/runs/<run>/             the networks (stage 02)
        output/submissions/<run>/      the thresholds (stage 04)
        or a bundle (export_model.py)  both in one file, for machines without PyTorch
Writes  FOLDER/overlays/<id>.png       the radiograph with the predicted outline
        FOLDER/masks/<id>.png          8-bit grey, 0 and 255, at the radiograph's size
        FOLDER/predictions.csv         image_id, p_positive, area_px, not_a_radiograph, rle, ...
        FOLDER/index.html              a page with all of these images, for any browser
        FOLDER/radiographs/<id>.jpg    the radiograph, small, for the page
        FOLDER/rejected.csv            files that were not used, and why
        FOLDER/segmentations/<id>.dcm  with --dicom-seg: DICOM Segmentation objects

Each image is predicted by all networks of the run, or of the runs of a blend; the final
thresholds of stage 04 make the mask. The id of a PNG or JPEG is its name without the
suffix. Segmentation objects refer to DICOM files only; they carry the patient's
identifiers, as DICOM requires, and no other file does. Safe to interrupt: run the same
command again to resume.

    python predict_radiographs.py radiographs/ --to findings --run ica_resunet
    python predict_radiographs.py image.dcm --to findings --run ica_resunet --dicom-seg
    python predict_radiographs.py radiographs/ --to findings --model ica_resunet.zip
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pneumothorax.errors import counted
from pneumothorax.pipeline import locks, stage

if TYPE_CHECKING:
    from pneumothorax.inference.predicting import Source
    from pneumothorax.inference.reading import Listed
    from pneumothorax.inference.settled import Settled

DEFAULT_RUN = "ica_resunet"
NOTICE = "research software, not a medical device: nothing here is a diagnosis"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = stage.parser(__doc__, ("--input", "--output", "--overwrite", "--no-lock"))
    flag = parser.add_argument
    flag(
        "path",
        type=stage.place,
        metavar="PATH",
        help="a DICOM, PNG or JPEG file, or a folder of them",
    )
    flag("--to", type=stage.place, metavar="FOLDER", required=True, help="where the results go")
    flag("--run", help=f"name of the run, or of a blend's submission (default: {DEFAULT_RUN})")
    bundle = "a bundle of export_model.py, instead of a run: needs no PyTorch"
    flag("--model", type=stage.place, metavar="FILE", help=bundle)
    only = "refuse DICOM files whose header shows something else, such as CT slices"
    flag("--only-radiographs", action="store_true", help=only)
    flag("--follow-symlinks", action="store_true", help="also read links and linked folders")
    flag("--dicom-seg", action="store_true", help="also write DICOM Segmentation objects")
    stage.add_prediction_flags(parser)
    args = parser.parse_args(argv)
    if args.model is not None:
        use_bundle(parser, args)
    args.run = args.run or DEFAULT_RUN
    stage.check_name(parser, "--run", args.run)
    if args.batch_size < 1:
        parser.error("--batch-size must be at least 1")
    if args.dicom_seg:
        from pneumothorax.inference import dicom_seg

        if problem := dicom_seg.missing():
            parser.error(f"--dicom-seg {problem}")
    return args


def use_bundle(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Usage errors for what a bundle cannot do."""
    from pneumothorax.prediction import exported

    if args.run is not None:
        parser.error("give --run or --model, not both")
    if args.device not in ("auto", "cpu") or args.precision not in ("auto", "fp32"):
        parser.error("--model runs on the CPU in fp32: drop --device and --precision")
    if problem := exported.missing():
        parser.error(f"--model {problem}")


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    from pneumothorax.inference import bundle, page, predicting, reading, results

    source = networks_of_run(args) if args.model is None else bundle.source(args.model)
    results.check_places(args.path, args.to, raw=args.input, output=args.output)
    listed = reading.search(args.path, follow_symlinks=args.follow_symlinks)
    if args.only_radiographs:
        listed.reject_others()
    for note in listed.notes:
        print(note)
    task = predicting.FolderTask(
        args.to, source.settled, args.dicom_seg, args.batch_size, source.computed_in
    )
    with locks.lock(args.to, "predict_radiographs", alone=args.no_lock), source.memory:
        if args.overwrite:
            results.forget(args.to)
        rows = predicting.predict(listed, task, source.load)
        path = results.write_tables(args.to, rows, listed)
        opened = page.write(args.to, rows, caution=source.settled.warning, notice=NOTICE)
        n_earlier = results.of_earlier_calls(args.to, listed)

    n_positive = sum(row["area_px"] > 0 for row in rows)
    print(f"{counted(len(rows), 'image')}, {n_positive} with a predicted pneumothorax")
    for note in notes(rows, listed, source.settled):
        print(note)
    if n_earlier:
        print(
            f"{args.to} also holds {counted(n_earlier, 'image')} of earlier calls, not in "
            f"{path.name} (--overwrite removes them)"
        )
    print(f"wrote {path}, and overlays and masks next to it; to look at them, open {opened}")
    print(NOTICE, flush=True)
    if listed.rejected:
        raise listed.error()


def networks_of_run(args: argparse.Namespace) -> Source:
    import models
    from pneumothorax.inference import pytorch_run

    return pytorch_run.source(args, build=models.build_untrained)


def notes(rows: Sequence[Mapping[str, Any]], listed: Listed, settled: Settled) -> Iterator[str]:
    """What to know about the images and the networks before the predictions are used."""
    from pneumothorax.data import discovery

    yield from filter(None, (listed.warning, settled.warning))
    if n_seen := len(settled.trained_on.intersection(row["image_id"] for row in rows)):
        yield f"note: the networks were trained on {n_seen} of these images and do better on them"
    if listed.copies:
        copies = counted(listed.copies, "file is a copy", "files are copies")
        yield f"{copies} of another: each image is predicted once"
    if listed.narrow:
        yield discovery.narrow_range(listed.narrow)


if __name__ == "__main__":
    stage.run(main)
