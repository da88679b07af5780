"""Stage 04: from probability maps to a submission, with scores you can trust.

Reads   predictions.csv and the probability maps of each run (stage 03), labels.csv, folds.csv,
        the sample submission; if test images are labelled, test_labels.csv and test_patients.csv
Writes  below output/submissions/<name>/
        postprocess.json   what was fitted, and how it scores
        cv.csv             scores of each fold and of all images, and of the all-empty baseline
        steps.csv          what each step of the post-processing adds
        oof.csv            the out-of-fold mask, Dice and probability of every training image
        surface.csv        SIIM Dice of every triplet of thresholds
        submission.csv     the sample's ids in their order, if there are test images
        test.csv           scores of the labelled test images, if there are any
        test_images.csv    the mask, Dice and probability of each of them

Several runs are blended, with given weights or with weights fitted out of fold. The weights,
the calibration and the thresholds that score fold k are fitted on the other folds; those for
the test images are fitted on all folds. Labels of test images only score the finished masks,
and show what thresholds fitted on them would claim. Every row of the submission is decoded
again and compared with its mask. Nothing is uploaded.

    python 04_submit.py --run ica_resunet
    python 04_submit.py --runs ica_resunet=0.6,albunet=0.4 --name blend
    python 04_submit.py --runs ica_resunet,albunet --name blend --fill-holes --no-image-threshold
    python 04_submit.py --name blend                   # again, with the same flags as last time
"""

import argparse
from contextlib import ExitStack
from pathlib import Path

from pneumothorax.data import labels
from pneumothorax.errors import BadInput
from pneumothorax.masks import evaluation, predicted, results, settings, testing
from pneumothorax.masks.predicted import Predicted
from pneumothorax.masks.settings import Settings
from pneumothorax.pipeline import artifacts, lineage, locks, records, stage
from pneumothorax.pipeline.engine import Engine
from pneumothorax.submission import writing


def parse_args(argv: list[str] | None = None) -> tuple[argparse.Namespace, Settings]:
    parser = stage.parser(__doc__)
    settings.add_flags(parser)
    stage.add_scheduler_flag(parser)
    args = stage.parse(parser, argv)
    settings.check(parser, args)
    chosen = settings.from_flags(args)
    args.name = args.name or next(iter(chosen.runs))
    return args, chosen


def main(argv: list[str] | None = None) -> None:
    args, chosen = parse_args(argv)
    record = artifacts.Submission(args.name).record
    with ExitStack() as held:
        lock = held.enter_context(
            locks.lock(args.output, f"04_submit-{args.name}", alone=args.no_lock)
        )
        for run in chosen.runs:
            held.enter_context(locks.lock(args.output, f"03_predict-{run}", alone=args.no_lock))
        inputs = hash_inputs(args.output, chosen)
        chosen = settings.settled(chosen, args.output)
        if not args.overwrite and records.is_current(
            args.output, record, settings=chosen.recorded(), inputs=inputs
        ):
            print(f"{args.output / record.path} is up to date")
        else:
            engine = Engine(args.workers, args.scheduler, shared=lock)
            make(args.output, args.name, chosen, inputs=inputs, engine=engine)
    print(*results.closing_lines(args.output, args.name, chosen.grid), sep="\n")


def make(
    output: Path, name: str, chosen: Settings, *, inputs: lineage.Hashes, engine: Engine
) -> None:
    """Read, fit and score, write the tables and the submission, seal them."""
    oof, tested = read(output, chosen)
    blend, single_runs = evaluation.evaluate(
        oof, chosen.grid, engine=engine, weights=chosen.weights
    )
    tables = results.tables(name, blend, chosen.grid)
    tables |= testing.tables(
        output, name, tested, blend.fits, grid=chosen.grid, seed=chosen.seed, engine=engine
    )
    submission = artifacts.Submission(name)
    for path in (submission.csv, submission.test_scores.path, submission.test_images.path):
        (output / path).unlink(missing_ok=True)  # an earlier one is out of date now
    for table, frame in tables.items():
        artifacts.write_table(output, table, frame)
    outputs = [table.path for table in tables]
    masks = evaluation.mask_rows(tested, blend.fits, engine) if tested.images else {}
    if tested.images:
        sample = read_sample(output, chosen)
        rows = {image_id: masks[image_id] for image_id in sample.image_ids}
        writing.write(output / submission.csv, sample, rows)
        outputs.append(submission.csv)
        for warning in writing.warnings(rows, float((blend.images["true_px"] > 0).mean())):
            print(warning)
    facts = results.facts(blend) | results.called_positive(blend, masks)
    alone = dict(zip(chosen.runs, single_runs, strict=False))
    facts |= results.gains(output, name, blend, alone, seed=chosen.seed)
    records.write(
        output,
        submission.record,
        settings=chosen.recorded(),
        inputs=inputs,
        outputs=outputs,
        **facts,
    )


def hash_inputs(output: Path, chosen: Settings) -> lineage.Hashes:
    """What the submission is made from; a sample submission that is given is checked first."""
    hashes = lineage.submit_inputs(output, chosen.runs)
    if chosen.sample_submission:
        read_sample(output, chosen)
        hashes["given sample submission"] = records.sha256(Path(chosen.sample_submission))
    return hashes


def read_sample(output: Path, chosen: Settings) -> labels.SampleSubmission:
    return labels.read_sample(
        Path(chosen.sample_submission or output / artifacts.SAMPLE_SUBMISSION)
    )


def read(output: Path, chosen: Settings) -> tuple[Predicted, Predicted]:
    """The out-of-fold images and the test images, with the probability maps of every run."""
    runs = list(chosen.runs)
    oof = predicted.read(output, runs, artifacts.OOF)
    if len(set(oof.fold.tolist())) < 2:
        again = " and ".join(f"python 03_predict.py --run {run}" for run in runs)
        raise BadInput(
            f"{' and '.join(runs)}: out-of-fold maps of fewer than two folds cannot be scored: "
            f"run {again}"
        )
    tested = predicted.read(output, runs, artifacts.TEST)
    if tested.images:
        ids, labelled = [one.image_id for one in tested.images], testing.label_rows(output)
        writing.check_ids(read_sample(output, chosen), ids, beyond=labelled)
    return oof, tested


if __name__ == "__main__":
    stage.run(main)
