"""Stage 03: probability maps of the images that a network has not seen.

Reads   output/runs/<run>/fold<k>/best.pt (stage 02), the manifest, the folds and the cache
Writes  output/runs/<run>/oof/<id>.png    training images, each by the network of its own fold
        output/runs/<run>/test/<id>.png   test images, averaged over the folds' networks
        output/runs/<run>/predictions.csv one row per map

Maps are 8-bit grey PNGs, probability x 255, at the network's size, each the mean over an image and its mirror.
Killed and started again it goes on where it stopped. The network is rebuilt from the checkpoint alone.

    python 03_predict.py --run ica_resunet
    python 03_predict.py --run ica_resunet --split oof --fold 0
"""

from pathlib import Path

import pandas as pd

import models
from pneumothorax import artifacts, cache, checkpoint, prediction, records, runtime, stage
from pneumothorax.journal import Journal

SPLITS = (artifacts.OOF, artifacts.TEST)


def parse_args(argv=None):
    parser = stage.parser(__doc__)
    flag = parser.add_argument
    flag("--run", default="ica_resunet", help="name of the run (default: %(default)s)")
    flag("--split", default="oof,test", help="oof, test or both (default: %(default)s)")
    flag("--fold", default="all", metavar="K|all", help="folds whose networks predict (default: %(default)s)")
    flag("--batch-size", type=int, default=16, help="images at a time (default: %(default)s)")
    flag("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: %(default)s)")
    args = parser.parse_args(argv)
    stage.check_name(parser, "--run", args.run)
    args.split = args.split.split(",")
    if not args.split or not set(args.split) <= set(SPLITS):
        parser.error(f"--split is any of {', '.join(SPLITS)}, with commas between")
    if args.batch_size < 1:
        parser.error("--batch-size must be at least 1")
    return args


def main(argv=None):
    args = parse_args(argv)
    with stage.lock(args.output, f"03_predict-{args.run}"):
        records.require(args.output, artifacts.FOLDED)
        manifest = artifacts.read_table(args.output, artifacts.MANIFEST)
        folds = artifacts.read_table(args.output, artifacts.FOLDS)
        train = manifest[manifest["split"] == artifacts.TRAIN].merge(folds[["image_id", "fold"]], on="image_id")
        test = manifest[manifest["split"] == artifacts.TEST]
        if test.empty and artifacts.TEST in args.split:
            print("no test images: predicting out of fold only")

        chosen = stage.chosen_folds(args.fold, int(train["fold"].max()) + 1)
        train = train[train["fold"].isin(chosen)]
        rows = {artifacts.OOF: train, artifacts.TEST: test}
        splits = [split for split in SPLITS if split in args.split and not rows[split].empty]

        trained = [records.require(args.output, artifacts.trained(args.run, fold)) for fold in chosen]
        weights = {
            path: digest for record in trained for path, digest in record["outputs"].items() if path.endswith(".pt")
        }
        settings = {"split": splits, "fold": chosen}
        inputs = {**records.hashes(args.output, [artifacts.MANIFEST.path, artifacts.FOLDS.path]), **weights}
        record = artifacts.predicted(args.run)
        if (
            not args.overwrite
            and records.is_current(args.output, record, settings=settings, inputs=inputs)
            and maps_present(args)
        ):
            print(f"the predictions of run {args.run} are up to date")
            return

        if args.overwrite:
            artifacts.prediction_journal(args.output, args.run).unlink(missing_ok=True)
        cache_size = cache.size(args.output, 32)
        cache.verify(args.output, cache_size, pd.concat([rows[split] for split in splits]), workers=args.workers)
        with Journal(artifacts.prediction_journal(args.output, args.run)) as journal:
            made_from = list(weights.values())
            predict(args, rows, splits=splits, chosen=chosen, weights=made_from, journal=journal, cache_size=cache_size)
            table = pd.concat([prediction.table(journal, rows[split], split) for split in splits])
        path = artifacts.write_table(args.output, artifacts.predictions(args.run), table)
        records.write(
            args.output, record, settings=settings, inputs=inputs, outputs=[artifacts.predictions(args.run).path]
        )

    print(f"{len(table)} maps: " + ", ".join(f"{len(rows[split])} {split}" for split in splits))
    print(f"wrote {path} and {path.parent}/{{{','.join(splits)}}}")
    print(f"next: python 04_submit.py --run {args.run} --output {args.output}")


def predict(args, rows, *, splits, chosen: list[int], weights: list[str], journal: Journal, cache_size: int) -> None:
    """Out-of-fold maps fold by fold, then test maps with all networks at once."""
    device = runtime.device(args.device)
    networks = []
    for fold in chosen:
        state = checkpoint.load(artifacts.fold_folder(args.output, args.run, fold) / "best.pt")
        networks.append(
            rebuild(state, artifacts.fold_folder(args.output, args.run, fold) / "best.pt").to(device).eval()
        )
    image_size = state["config"]["image_size"]
    source = prediction.Source(args.output, args.run, cache_size, image_size, args.batch_size, args.workers, device)
    if artifacts.OOF in splits:
        for fold, network, key in zip(chosen, networks, weights, strict=True):
            held_out = rows[artifacts.OOF][rows[artifacts.OOF]["fold"] == fold]
            prediction.predict([network], held_out, source, journal, split=artifacts.OOF, fold=fold, key=key)
    if artifacts.TEST in splits:
        key = "+".join(weights)
        prediction.predict(networks, rows[artifacts.TEST], source, journal, split=artifacts.TEST, fold=None, key=key)


def rebuild(state: dict, path: Path):
    """The network of a checkpoint, from the checkpoint alone."""
    network = models.build_untrained(state["config"]["model"], **state["config"]["model_settings"])
    checkpoint.load_weights(network, state["network"], path)
    return network


def maps_present(args) -> bool:
    table = artifacts.read_table(args.output, artifacts.predictions(args.run))
    places = zip(table["split"], table["image_id"], table["sha256"], strict=True)
    paths = [
        (artifacts.probability_map(args.output, args.run, split, image_id), digest)
        for split, image_id, digest in places
    ]
    return all(path.is_file() and records.sha256(path) == digest for path, digest in paths)


if __name__ == "__main__":
    stage.run(main)
