"""Stage 01: give every training image a cross-validation fold.

Reads   output/manifest.csv   one row per image (stage 00), and optionally --patients CSV (ImageId,PatientId)
Writes  output/folds.csv      image_id, patient_id (salted hash), fold 0..n-1, stratum; training images only
        output/folds.json     leak report, counts, seed, and the hash that later stages check

All images of a patient share a fold, and so do images with identical pixels; folds are balanced on "negative" and
the quartiles of the mask's area. The same manifest and seed always give the same file.

PatientID in the SIIM-ACR files does not identify patients (each image has its own): without --patients, images of
one person end up in several folds and the scores come out too high.

    python 01_make_folds.py --folds 5 --patients nih_patients.csv
"""

from pathlib import Path

from pneumothorax.data import folds, labels, prepare
from pneumothorax.errors import BadInput
from pneumothorax.pipeline import artifacts, lineage, locks, records, stage


def parse_args(argv=None):
    parser = stage.parser(__doc__)
    parser.add_argument(
        "--folds", type=int, default=5, help="number of folds (default: %(default)s)"
    )
    parser.add_argument(
        "--patients", type=Path, metavar="CSV", help="who is on which image: ImageId,PatientId"
    )
    parser.add_argument(
        "--salt", default="pneumothorax", help="salt of the patient hashes, as for stage 00"
    )
    args = parser.parse_args(argv)
    if args.folds < 2:
        parser.error(f"--folds must be at least 2, got {args.folds}")
    return args


def main(argv=None):
    args = parse_args(argv)
    with locks.lock(args.output, "01_make_folds"):
        inputs = lineage.fold_inputs(args.output)
        settings = {
            "folds": args.folds,
            "seed": 42 if args.seed is None else args.seed,
            "patients": "PatientID",
        }
        if args.patients:
            patients = labels.read_patients(args.patients)
            settings["patients"] = "file"
            inputs["patients file"] = prepare.patient_hash(records.sha256(args.patients), args.salt)
        if not args.overwrite and records.is_current(
            args.output, artifacts.FOLDED, settings=settings, inputs=inputs
        ):
            print(f"{args.output / artifacts.FOLDS.path} is up to date")
            return

        manifest = artifacts.read_table(args.output, artifacts.MANIFEST)
        train = manifest[manifest["split"] == artifacts.TRAIN].reset_index(drop=True)
        if args.patients:
            hashed = {
                image_id: prepare.patient_hash(patient, args.salt)
                for image_id, patient in patients.items()
            }
            train = folds.with_patients(train, hashed)
        table = folds.assign(train, n_folds=args.folds, seed=settings["seed"])

        leaks = folds.leaks(train, table)
        if any(leaks.values()):
            raise BadInput(f"the folds leak: {leaks}")
        path = artifacts.write_table(args.output, artifacts.FOLDS, table)
        summary = folds.summary(table)
        facts = {
            "leaks": leaks,
            "counts": {str(k): row for k, row in summary.to_dict("index").items()},
        }
        outputs = [artifacts.FOLDS.path]
        records.write(
            args.output,
            artifacts.FOLDED,
            settings=settings,
            inputs=inputs,
            outputs=outputs,
            **facts,
        )

    print(
        f"{summary.to_string()}\n(negative and the quarters of the masks' area in percent of the fold's images)"
    )
    n_groups = len(set(folds.groups(train)))
    print(f"patients in more than one fold: 0 of {n_groups}; identical images: 0")
    if not args.patients and n_groups > 0.9 * len(table):
        print(
            f"warning: {n_groups} patients for {len(table)} images: if PatientID is anonymised, pass --patients"
        )
    print(f"wrote {path}")
    print(f"next: python 02_train.py --config configs/ica_resunet.yaml --output {args.output}")


if __name__ == "__main__":
    stage.run(main)
