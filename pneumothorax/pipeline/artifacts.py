"""The names and columns of every file that passes between stages; nobody else spells them."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pneumothorax.errors import BadInput
from pneumothorax.pipeline import atomic
from pneumothorax.pipeline.records import Record

TRAIN, TEST = "train", "test"
OOF = "oof"  # out of fold: training images, each predicted by the network that did not see it


@dataclass(frozen=True)
class Table:
    """A CSV file below the output folder: its place, its columns, those that are numbers, and who makes it."""

    path: str
    columns: tuple[str, ...]
    made_by: str
    integers: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()  # may be empty in the file: read as NaN


PREPARED = Record("prepare.json", "00_prepare_data.py")
MANIFEST = Table(
    "manifest.csv",
    (
        *("image_id", "split", "patient_id", "view", "sex", "age", "height", "width"),
        *("positive", "mask_pixels", "mask_rows", "source", "decoder", "sha256", "mask_sha256"),
    ),
    "00_prepare_data.py",
    integers=("height", "width", "positive", "mask_pixels", "mask_rows"),
)
TRAINING_IMAGES, TEST_IMAGES = (
    "training images",
    "test images",
)  # facts of PREPARED: hashes of what stages rest on
REJECTED = Table("rejected.csv", ("source", "code", "message"), "00_prepare_data.py")
LABELS = Table("labels.csv", ("image_id", "rle"), "00_prepare_data.py")
SAMPLE_SUBMISSION = "sample_submission.csv"  # the sample's own header and ids, all rows empty

FOLDED = Record("folds.json", "01_make_folds.py")
FOLDS = Table(
    "folds.csv",
    ("image_id", "patient_id", "fold", "stratum"),
    "01_make_folds.py",
    integers=("fold",),
)

HISTORY_COLUMNS = (
    *(
        "epoch",
        "learning_rate",
        "positives_per_negative",
        "positives",
        "negatives",
        "train_loss",
        "skipped_steps",
    ),
    *("siim_dice", "positive_dice", "nothing_predicted", "seconds", "images_per_second"),
)

SCORE_COLUMNS = (
    *(
        "siim_dice",
        "positive_dice",
        "pooled_dice",
        "pooled_precision",
        "pooled_recall",
        "pooled_iou",
    ),
    *("image_precision", "image_recall", "image_iou", "auc", "sensitivity", "specificity", "ppv"),
)


TRIPLET_COLUMNS = ("top", "min_area", "bottom", "min_component", "fill_holes", "min_probability")
NOTHING, FINAL = "nothing predicted", "final thresholds"  # rows of a cross-validation table


def _named_after(image_id: str, suffix: str) -> str:
    """A file name. Ids are checked where they are read (dicom.is_image_id), and here that none leads elsewhere."""
    name = f"{image_id}{suffix}"
    if Path(name).name != name:
        raise BadInput(f"{image_id[:70]!r} cannot name a file: it would lie outside its folder")
    return name


def cached_image(output: Path, size: int, image_id: str) -> Path:
    """8-bit grey PNG (size, size), uncompressed."""
    return output / "cache" / str(size) / "images" / _named_after(image_id, ".png")


def cached_mask(output: Path, size: int, image_id: str) -> Path:
    """1-bit PNG (size, size) of 0 and 255; exists for positives only."""
    return output / "cache" / str(size) / "masks" / _named_after(image_id, ".png")


def cache_journal(output: Path, size: int) -> Path:
    return output / "cache" / str(size) / "journal.jsonl"


def run_folder(output: Path, run: str) -> Path:
    return output / "runs" / run


def run_config(output: Path, run: str) -> Path:
    return run_folder(output, run) / "config.yaml"


def fold_folder(output: Path, run: str, fold: int) -> Path:
    return run_folder(output, run) / f"fold{fold}"


LAST_CHECKPOINT, PREVIOUS_CHECKPOINT, BEST_WEIGHTS, HISTORY = (
    "last.pt",
    "previous.pt",
    "best.pt",
    "history.csv",
)
PROGRESS, TENSORBOARD = "progress.png", "tensorboard"


def best_weights(run: str, fold: int) -> str:
    """Path below the output folder."""
    return f"runs/{run}/fold{fold}/{BEST_WEIGHTS}"


def history(run: str, fold: int) -> str:
    """Path below the output folder."""
    return f"runs/{run}/fold{fold}/{HISTORY}"


def history_table(run: str, fold: int) -> Table:
    """One row per epoch; scores are empty in epochs without validation."""
    made_by = f"02_train.py --run {run} --fold {fold}"
    return Table(history(run, fold), HISTORY_COLUMNS, made_by, ("epoch",), HISTORY_COLUMNS[1:])


def network_facts(run: str) -> str:
    """Path below the output folder: JSON of the network's size, cost and tensor shapes."""
    return f"runs/{run}/network.json"


def trained(run: str, fold: int) -> Record:
    return Record(f"runs/{run}/fold{fold}/finished.json", f"02_train.py --run {run} --fold {fold}")


def probability_map(output: Path, run: str, split: str, image_id: str) -> Path:
    """8-bit grey PNG, probability x 255, at the network's size; `split` is OOF or TEST."""
    return run_folder(output, run) / split / _named_after(image_id, ".png")


def onnx_file(run: str) -> str:
    """Path below the output folder: the networks of several folds in one file, to use elsewhere."""
    return f"runs/{run}/network.onnx"


def exported(run: str) -> Record:
    return Record(f"runs/{run}/exported.json", f"03_predict.py --run {run} --export onnx")


def predicted(run: str) -> Record:
    return Record(f"runs/{run}/predictions.json", f"03_predict.py --run {run}")


def predictions(run: str) -> Table:
    """One row per probability map; `fold` is empty for test images.

    `p_max` is the map's highest probability, `p_presence` the presence head's, empty where the network has none.
    """
    columns = ("image_id", "split", "fold", "p_max", "p_presence", "sha256")
    made_by = f"03_predict.py --run {run}"
    return Table(
        f"runs/{run}/predictions.csv", columns, made_by, numbers=("fold", "p_max", "p_presence")
    )


def prediction_journal(output: Path, run: str, rank: int = 0) -> Path:
    """Of one of several processes that predict together."""
    return run_folder(output, run) / (f"predictions-{rank}.jsonl" if rank else "predictions.jsonl")


def prediction_journals(output: Path, run: str) -> list[Path]:
    """All there are, the main process's first."""
    return sorted(
        run_folder(output, run).glob("predictions*.jsonl"),
        key=lambda path: (len(path.name), path.name),
    )


# Below the folder of `03_predict.py --dicom`, which is none of the stages'.
DICOM_PREDICTIONS = Table(
    "predictions.csv",
    (
        "image_id",
        "source",
        "height",
        "width",
        "p_positive",
        "area_px",
        "area_mm2",
        "spacing",
        "rle",
    ),
    "03_predict.py --dicom",
    integers=("height", "width", "area_px"),
    numbers=("p_positive", "area_mm2"),
)


def dicom_overlay(image_id: str) -> str:
    """8-bit colour PNG (H, W)."""
    return f"overlays/{_named_after(image_id, '.png')}"


def dicom_mask(image_id: str) -> str:
    """8-bit grey PNG (H, W) of 0 and 255."""
    return f"masks/{_named_after(image_id, '.png')}"


def dicom_segmentation(image_id: str) -> str:
    return f"segmentations/{_named_after(image_id, '.dcm')}"


def dicom_journal(folder: Path) -> Path:
    return folder / "dicom-journal.jsonl"


def submitted(name: str) -> Record:
    return Record(f"submissions/{name}/postprocess.json", f"04_submit.py --name {name}")


def submission_names(output: Path) -> list[str]:
    """All there are, in order."""
    return sorted(path.parent.name for path in (output / "submissions").glob("*/postprocess.json"))


def submission(output: Path, name: str) -> Path:
    """In the sample submission's own columns and order."""
    return output / "submissions" / name / "submission.csv"


def cross_validation(name: str) -> Table:
    """Scores per fold, overall, and of predicting nothing."""
    columns = ("row", "images", "positives", *SCORE_COLUMNS, "naive_siim_dice", *TRIPLET_COLUMNS)
    numbers = columns[3:]
    return Table(
        f"submissions/{name}/cv.csv",
        columns,
        f"04_submit.py --name {name}",
        ("images", "positives"),
        numbers,
    )


def threshold_surface(name: str) -> Table:
    """SIIM Dice over all out-of-fold images of every triplet tried (naive: fitted where it is scored)."""
    columns = ("top", "min_area", "bottom", "siim_dice")
    return Table(
        f"submissions/{name}/surface.csv", columns, f"04_submit.py --name {name}", numbers=columns
    )


def postprocessing_steps(name: str) -> Table:
    """SIIM Dice with ever more post-processing, nested and naive."""
    columns = ("step", "siim_dice", "naive_siim_dice")
    return Table(
        f"submissions/{name}/steps.csv", columns, f"04_submit.py --name {name}", numbers=columns[1:]
    )


def out_of_fold(name: str) -> Table:
    """One row per training image: the mask predicted with nested thresholds, and how it compares with the truth."""
    columns = (
        "image_id",
        "fold",
        "p_positive",
        "true_px",
        "predicted_px",
        "overlap_px",
        "dice",
        "rle",
    )
    path = f"submissions/{name}/oof.csv"
    integers = ("fold", "true_px", "predicted_px", "overlap_px")
    return Table(path, columns, f"04_submit.py --name {name}", integers, ("p_positive", "dice"))


REPORTED = Record("report/report.json", "05_report.py")
REPORT_TABLE = Table("report/table.csv", ("run", *cross_validation("").columns), "05_report.py")
PER_IMAGE = Table(
    "report/per_image.csv",
    (
        *(
            "run",
            "image_id",
            "patient_id",
            "fold",
            "view",
            "sex",
            "height",
            "width",
            "positive",
            "p_positive",
        ),
        *("true_px", "predicted_px", "overlap_px", "dice", "precision", "recall", "iou"),
    ),
    "05_report.py",
    integers=("fold", "height", "width", "positive", "true_px", "predicted_px", "overlap_px"),
    numbers=("p_positive", "dice", "precision", "recall", "iou"),
)
REPORT_SUMMARY = "report/summary.json"
REPORT_PAGE = "report/index.html"
REPORT_FIGURES = "report/figures"


def read_table(output: Path, table: Table) -> pd.DataFrame:
    """The table with text columns as str ("" where empty), `integers` as int64 and `numbers` as float64.

    Raises BadInput when the file is missing, lacks columns or holds something else than numbers.
    """
    path = output / table.path
    if not path.is_file():
        raise BadInput(f"{path} does not exist: run {table.made_by} first")
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except (ValueError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read ({error}): run {table.made_by} again") from error
    if not isinstance(frame.index, pd.RangeIndex):  # pandas took surplus cells for an index
        raise BadInput(f"{path} has rows with too many cells: run {table.made_by} again")
    missing = [column for column in table.columns if column not in frame.columns]
    if missing:
        raise BadInput(
            f"{path} lacks columns {missing}; it has {list(frame.columns)}: run {table.made_by} again"
        )
    try:
        for column in table.integers:
            frame[column] = frame[column].astype("int64")
        for column in table.numbers:
            frame[column] = frame[column].replace("", "nan").astype("float64")
    except ValueError as error:
        raise BadInput(f"{path}, column {column}: {error}: run {table.made_by} again") from error
    return frame


def training_rows(output: Path) -> pd.DataFrame:
    """The manifest's training rows with their `fold`, in the manifest's order."""
    manifest, folds = read_table(output, MANIFEST), read_table(output, FOLDS)
    return manifest[manifest["split"] == TRAIN].merge(folds[["image_id", "fold"]], on="image_id")


def label_rows(output: Path) -> dict[str, tuple[str, ...]]:
    """The mask rows of every positive training image, by id."""
    rows: dict[str, tuple[str, ...]] = {}
    table = read_table(output, LABELS)
    for image_id, text in zip(table["image_id"], table["rle"], strict=True):
        rows[image_id] = (*rows.get(image_id, ()), text)
    return rows


def write_table(output: Path, table: Table, frame: pd.DataFrame) -> Path:
    """Write the table's columns in their order: UTF-8, LF, no index, empty cells for NaN."""
    path = output / table.path
    text = frame.loc[:, list(table.columns)].to_csv(index=False, lineterminator="\n", na_rep="")
    atomic.write_text(path, text)
    return path
