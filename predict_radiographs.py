"""Find and outline pneumothorax on radiographs that no stage has prepared.

Reads   PATH                           a DICOM, PNG or JPEG file, or a folder at any depth
        output/runs/<run>/             the networks (stage 02)
        output/submissions/<run>/      the thresholds (stage 04)
Writes  FOLDER/overlays/<id>.png       the radiograph with the predicted outline
        FOLDER/masks/<id>.png          8-bit grey, 0 and 255, at the radiograph's size
        FOLDER/predictions.csv         image_id, p_positive, area_px, not_a_radiograph, rle, ...
        FOLDER/index.html              a page with all of these images, for any browser
        FOLDER/radiographs/<id>.jpg    the radiograph, small, for the page
        FOLDER/rejected.csv            files that were not used, and why
        FOLDER/segmentations/<id>.dcm  with --dicom-seg: DICOM Segmentation objects

Each image is predicted by all networks of the run; the final thresholds of stage 04 make
the mask. The id of a PNG or JPEG is its name without the suffix. Segmentation objects refer
to DICOM files only; they carry the patient's identifiers, as DICOM requires, and no other
file does. Safe to interrupt: run the same command again to resume.

    python predict_radiographs.py radiographs/ --to findings --run ica_resunet
    python predict_radiographs.py image.dcm --to findings --run ica_resunet --dicom-seg
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pneumothorax.pipeline import locks, stage

if TYPE_CHECKING:
    import pandas as pd

    from pneumothorax.inference.reading import Listed
    from pneumothorax.inference.settled import Settled

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
    flag("--run", default="ica_resunet", help="name of the run (default: %(default)s)")
    only = "refuse DICOM files whose header shows something else, such as CT slices"
    flag("--only-radiographs", action="store_true", help=only)
    flag("--follow-symlinks", action="store_true", help="also read links and linked folders")
    flag("--dicom-seg", action="store_true", help="also write DICOM Segmentation objects")
    stage.add_prediction_flags(parser)
    args = parser.parse_args(argv)
    stage.check_name(parser, "--run", args.run)
    if args.batch_size < 1:
        parser.error("--batch-size must be at least 1")
    if args.dicom_seg:
        from pneumothorax.inference import dicom_seg

        if problem := dicom_seg.missing():
            parser.error(f"--dicom-seg {problem}")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    import models
    from pneumothorax.compute import devices, precisions, runtime
    from pneumothorax.inference import page, predicting, reading, results, settled
    from pneumothorax.prediction import probability_maps

    runtime.keep_freed_memory()
    device = devices.choose(args.device)
    precision = precisions.resolve(args.precision, device)
    print(precisions.first_line(device, precision), flush=True)
    results.check_places(args.path, args.to, raw=args.input, output=args.output)
    run = settled.read(args.output, args.run)
    listed = reading.search(args.path, follow_symlinks=args.follow_symlinks)
    if args.only_radiographs:
        listed.reject_others()
    for note in listed.notes:
        print(note)
    task = predicting.FolderTask(args.to, run, args.dicom_seg, args.batch_size, device, precision)
    load = functools.partial(
        probability_maps.load_folds,
        args.output,
        args.run,
        run.folds,
        build=models.build_untrained,
        device=device,
    )
    with (
        locks.lock(args.to, "predict_radiographs", alone=args.no_lock),
        probability_maps.memory_for(args.batch_size),
    ):
        if args.overwrite:
            results.forget(args.to)
        frame = predicting.predict(listed, task, load)
        path = results.write_tables(args.to, frame, listed)
        rows: Any = frame.to_dict("records")
        opened = page.write(args.to, rows, caution=run.warning, notice=NOTICE)
        n_earlier = results.of_earlier_calls(args.to, listed)

    print(f"{len(frame)} images, {int((frame['area_px'] > 0).sum())} with a predicted pneumothorax")
    for note in notes(frame, listed, run):
        print(note)
    if n_earlier:
        print(
            f"{args.to} also holds {n_earlier} images of earlier calls, which are not in "
            f"{path.name} (--overwrite removes them)"
        )
    print(f"wrote {path}, and overlays and masks next to it; to look at them, open {opened}")
    print(NOTICE, flush=True)
    if listed.rejected:
        raise listed.error()


def notes(frame: pd.DataFrame, listed: Listed, run: Settled) -> Iterator[str]:
    """What to know about the images and the networks before the predictions are used."""
    from pneumothorax.data import doctor

    yield from filter(None, (listed.warning, run.warning))
    if n_seen := len(run.trained_on.intersection(frame["image_id"])):
        yield f"note: the networks were trained on {n_seen} of these images and do better on them"
    if listed.copies:
        yield f"{listed.copies} files are copies of others: each image is predicted once"
    if listed.narrow:
        yield f"{len(listed.narrow)} {doctor.narrow_range(listed.narrow)}"


if __name__ == "__main__":
    stage.run(main)
