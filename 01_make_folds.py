"""Stage 01: give every training image a cross-validation fold.

Reads   output/manifest.csv   one row per image (stage 00); optionally --patients CSV
Writes  output/folds.csv      image_id, patient_id (salted hash), fold 0..n-1, stratum
        output/test_patients.csv   if there are test images: image_id, patient_id, in_training
        output/folds.json     leak report, counts, seed, and the hashes that later stages check

All images of a patient share a fold, and so do images with identical pixels. Folds are
balanced by "negative" and the quartiles of the mask's area. The same manifest and seed
always give the same folds.csv, which lists training images only. Test images change
nothing in it; the leak report says how many of them show a patient of the training images.

PatientID in the SIIM-ACR files does not identify patients: every image has a different
one. Without --patients (ImageId,PatientId, or Kaggle_ID,NIH_ID as published), images of
one person end up in several folds and the scores come out too high.

    python 01_make_folds.py --folds 5 --patients nih_patients.csv
"""

import argparse
from pathlib import Path
from typing import Any

import pandas as pd

from pneumothorax.data import folds, labels
from pneumothorax.pipeline import artifacts, lineage, locks, records, stage

PATIENTS_PAGE = "https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation/discussion/100941"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = stage.parser(__doc__)
    flag = parser.add_argument
    flag("--folds", type=int, default=5, help="number of folds (default: %(default)s)")
    columns = "ImageId,PatientId, or Kaggle_ID,NIH_ID as published"
    flag("--patients", type=Path, metavar="CSV", help=f"each image's patient: {columns}")
    flag("--salt", default="pneumothorax", help="salt of the patient hashes, as in stage 00")
    args = parser.parse_args(argv)
    if args.folds < 2:
        parser.error(f"--folds must be at least 2, got {args.folds}")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with locks.lock(args.output, "01_make_folds", alone=args.no_lock):
        patients = read_patients(args)
        after = stage.next_step(args.output, "02_train.py", "--config", "configs/ica_resunet.yaml")
        settings, inputs = made_from(args)
        if not args.overwrite and records.is_current(
            args.output, artifacts.FOLDED, settings=settings, inputs=inputs
        ):
            print(f"{args.output / artifacts.FOLDS.path} is up to date\n{after}")
            return
        train, test = read_rows(args.output, patients)
        table = folds.assign(train, n_folds=args.folds, seed=settings["seed"])
        leaks = folds.require_no_leaks(train, table)
        doubtful = not args.patients and folds.are_doubtful(train)
        tested = folds.seen_in_training(train, test, doubtful=doubtful)
        outputs = write_tables(args.output, table, tested)
        records.write(
            args.output,
            artifacts.FOLDED,
            settings=settings,
            inputs=inputs,
            outputs=outputs,
            leaks=leaks,
            test_leaks=folds.count_seen(tested),
            counts={str(fold): row for fold, row in folds.summary(table).to_dict("index").items()},
        )
    report(train, table, leaks, doubtful=doubtful)
    if not tested.empty:
        print(folds.seen_in_words(folds.count_seen(tested), training_images=len(train)))
    print(f"wrote {args.output / artifacts.FOLDS.path}")
    print(after)


def read_patients(args: argparse.Namespace) -> dict[str, str] | None:
    """{image id: patient hash} from --patients; None without the flag."""
    if not args.patients:
        return None
    patients = labels.read_patients(args.patients)
    return {
        image_id: labels.patient_hash(patient, args.salt) for image_id, patient in patients.items()
    }


def made_from(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, str]]:
    """(settings, inputs) of the record; the folds are up to date until one changes."""
    settings = {
        "folds": args.folds,
        "seed": 42 if args.seed is None else args.seed,
        "patients": "file" if args.patients else "PatientID",
    }
    inputs = lineage.fold_inputs(args.output)
    if args.patients:
        file_hash = records.sha256(args.patients)
        inputs["patients file"] = labels.patient_hash(file_hash, args.salt)
    return settings, inputs


def read_rows(output: Path, patients: dict[str, str] | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The manifest's training and test rows, with the patients of the file if one was given.

    The file must have all training images; a test image that it lacks has patient "".
    """
    manifest = artifacts.read_table(output, artifacts.MANIFEST)
    train, test = (
        manifest[manifest["split"] == split].reset_index(drop=True)
        for split in (artifacts.TRAIN, artifacts.TEST)
    )
    if patients is None:
        return train, test
    test = test.assign(patient_id=[patients.get(image_id, "") for image_id in test["image_id"]])
    return folds.with_patients(train, patients), test


def write_tables(output: Path, table: pd.DataFrame, tested: pd.DataFrame) -> list[str]:
    """Write folds.csv and, if there are test images, test_patients.csv -> their paths."""
    artifacts.write_table(output, artifacts.FOLDS, table)
    if tested.empty:
        (output / artifacts.TEST_PATIENTS.path).unlink(missing_ok=True)
        return [artifacts.FOLDS.path]
    artifacts.write_table(output, artifacts.TEST_PATIENTS, tested)
    return [artifacts.FOLDS.path, artifacts.TEST_PATIENTS.path]


def report(
    train: pd.DataFrame, table: pd.DataFrame, leaks: dict[str, int], *, doubtful: bool
) -> None:
    """Print the numbers to check."""
    print(folds.summary(table).to_string())
    print("(negative, area 1 to area 4: percent of the fold's images)")
    n_groups, unknown = len(set(folds.groups(train))), int((table["patient_id"] == "").sum())
    spread, twins = leaks["patients_in_several_folds"], leaks["identical_images_in_several_folds"]
    print(f"patients in more than one fold: {spread} of {n_groups}; identical images: {twins}")
    if doubtful:
        print(
            f"warning: {n_groups} patients for {len(table)} images, {unknown} of them without a "
            "PatientID: if it is missing or anonymised, pass --patients, or the scores come out "
            "too high. SIIM-ACR's patients are published as nih_id.csv (columns Kaggle_ID,NIH_ID): "
            f"{PATIENTS_PAGE}"
        )


if __name__ == "__main__":
    stage.run(main)
