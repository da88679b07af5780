"""Names and columns of the files that pass between stages; no other file spells them out.

Paths are relative to the output folder: `output / Run("unet").fold(0).best_weights`.
"""

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pneumothorax import rle
from pneumothorax.errors import BadInput
from pneumothorax.pipeline import atomic
from pneumothorax.pipeline.records import Record

if TYPE_CHECKING:
    import pandas as pd

TRAIN, TEST = "train", "test"
OOF = "oof"  # out of fold: training images, each predicted by the network that never saw it

SCORE_COLUMNS = tuple(
    "siim_dice positive_dice pooled_dice pooled_precision pooled_recall pooled_iou "
    "image_precision image_recall image_iou auc sensitivity specificity ppv".split()
)
TRIPLET_COLUMNS = ("top", "min_area", "bottom", "min_component", "fill_holes", "min_probability")
CROSS_VALIDATION_COLUMNS = (
    "row",
    "images",
    "positives",
    *SCORE_COLUMNS,
    "naive_siim_dice",
    *TRIPLET_COLUMNS,
)
STEP_COLUMNS = ("step", "siim_dice", "naive_siim_dice")
HISTORY_COLUMNS = tuple(
    "epoch learning_rate positives_per_negative positives negatives train_loss skipped_steps "
    "siim_dice positive_dice all_empty seconds images_per_second".split()
)
HISTORY_COMPUTED = "computed"  # a further column, in words: device, data type, parts of a batch
ALL_EMPTY, FINAL = "all-empty baseline", "final thresholds"  # rows of a cross-validation table
# Rows of a table of test scores; the all-empty baseline has two as well
TEST_ALL, TEST_UNSEEN = "test images", "unseen patients"
TEST_CLAIMED = "thresholds fitted on the test labels"  # what they would claim: too high
TEST_SCORE_COLUMNS = (
    "row",
    "images",
    "positives",
    *SCORE_COLUMNS,
    *(f"{score}_{end}" for score in SCORE_COLUMNS for end in ("low", "high")),
)


@dataclass(frozen=True)
class Table:
    """A CSV file: path, columns, which of them hold numbers, command that makes it."""

    path: str
    columns: tuple[str, ...]
    made_by: str
    integers: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()  # an empty cell is NaN


# Stage 00
PREPARED = Record("prepare.json", "00_prepare_data.py")
RADIOGRAPHS_JOURNAL = "dicom-journal.jsonl"  # in the folder of predict_radiographs.py
# Facts in PREPARED: hashes of all pixels, labels and sizes
TRAINING_IMAGES, TEST_IMAGES = "training images", "test images"
MANIFEST = Table(
    "manifest.csv",
    tuple(
        "image_id split patient_id view sex age height width positive mask_pixels mask_rows "
        "source decoder sha256 mask_sha256".split()
    ),
    "00_prepare_data.py",
    integers=("height", "width", "positive", "mask_pixels", "mask_rows"),
)
REJECTED = Table("rejected.csv", ("source", "code", "message"), "00_prepare_data.py")
LABELS = Table("labels.csv", ("image_id", "rle"), "00_prepare_data.py")
# Labels of test images: "-1" for a negative one, no row for one that nobody annotated. Only
# scoring and the gallery read them.
TEST_LABELS = Table("test_labels.csv", ("image_id", "rle"), "00_prepare_data.py")
SAMPLE_SUBMISSION = "sample_submission.csv"  # the sample's own header and ids, all rows empty

# Stage 01
FOLDED = Record("folds.json", "01_make_folds.py")
FOLDS = Table(
    "folds.csv", ("image_id", "patient_id", "fold", "stratum"), "01_make_folds.py", ("fold",)
)
# Test images, if there are any; `in_training`: whether the patient, or an image with the same
# pixels, is among the training images: 1 or 0, empty if unknown patients leave that open.
TEST_PATIENTS = Table(
    "test_patients.csv",
    ("image_id", "patient_id", "in_training"),
    "01_make_folds.py",
    numbers=("in_training",),
)

# Stage 05
REPORTED = Record("report/report.json", "05_report.py")
REPORT_TABLE = Table("report/table.csv", ("run", *CROSS_VALIDATION_COLUMNS), "05_report.py")
REPORT_TEST_TABLE = Table("report/test_table.csv", ("run", *TEST_SCORE_COLUMNS), "05_report.py")
PER_IMAGE = Table(
    "report/per_image.csv",
    tuple(
        "run image_id patient_id fold view sex height width positive p_positive "
        "true_px predicted_px overlap_px dice precision recall iou".split()
    ),
    "05_report.py",
    integers=("fold", "height", "width", "positive", "true_px", "predicted_px", "overlap_px"),
    numbers=("p_positive", "dice", "precision", "recall", "iou"),
)
# Labelled test images: no fold, but `in_training` as in TEST_PATIENTS
TEST_PER_IMAGE = Table(
    "report/test_per_image.csv",
    tuple("in_training" if column == "fold" else column for column in PER_IMAGE.columns),
    "05_report.py",
    integers=tuple(column for column in PER_IMAGE.integers if column != "fold"),
    numbers=("in_training", *PER_IMAGE.numbers),
)
REPORT_SUMMARY = "report/summary.json"
REPORT_PAGE = "report/index.html"
REPORT_PAGE_WITHOUT_IMAGES = "report/without_images.html"
REPORT_FIGURES = "report/figures"
REPORT_ZIP = "report.zip"


@dataclass(frozen=True)
class Cache:
    """The images and masks of stage 00 at one size."""

    size: int

    @property
    def journal(self) -> str:
        return f"cache/{self.size}/journal.jsonl"

    def image(self, image_id: str) -> str:
        """8-bit grey PNG (size, size), uncompressed."""
        return f"cache/{self.size}/images/{file_name(image_id, '.png')}"

    def mask(self, image_id: str) -> str:
        """1-bit PNG (size, size) of 0 and 255; positives only."""
        return f"cache/{self.size}/masks/{file_name(image_id, '.png')}"


@dataclass(frozen=True)
class Fold:
    """The files of one fold of a training run (stage 02)."""

    run: str
    number: int

    @property
    def made_by(self) -> str:
        return f"02_train.py --run {self.run} --fold {self.number}"

    @property
    def folder(self) -> str:
        return f"runs/{self.run}/fold{self.number}"

    @property
    def last(self) -> str:
        """The checkpoint to resume from."""
        return f"{self.folder}/last.pt"

    @property
    def previous(self) -> str:
        """The checkpoint before `last`."""
        return f"{self.folder}/previous.pt"

    @property
    def best_weights(self) -> str:
        """The weights that predictions are made with."""
        return f"{self.folder}/best.pt"

    def kept_weights(self, epoch: int) -> str:
        """Weights of one of the best epochs, kept to be averaged."""
        return f"{self.folder}/kept/epoch{epoch:04d}.pt"

    @property
    def history(self) -> Table:
        """One row per epoch; scores are empty in epochs without validation."""
        path = f"{self.folder}/history.csv"
        return Table(path, HISTORY_COLUMNS, self.made_by, ("epoch",), HISTORY_COLUMNS[1:])

    @property
    def progress(self) -> str:
        """The history as a figure, PNG."""
        return f"{self.folder}/progress.png"

    @property
    def tensorboard(self) -> str:
        return f"{self.folder}/tensorboard"

    @property
    def trained(self) -> Record:
        return Record(f"{self.folder}/finished.json", self.made_by)


@dataclass(frozen=True)
class Run:
    """The files of one training run (stages 02 and 03)."""

    name: str

    @property
    def folder(self) -> str:
        return f"runs/{self.name}"

    @property
    def config(self) -> str:
        """Every setting, resolved; YAML."""
        return f"{self.folder}/config.yaml"

    @property
    def network_facts(self) -> str:
        """The network's size, cost and tensor shapes; JSON."""
        return f"{self.folder}/network.json"

    def fold(self, number: int) -> Fold:
        return Fold(self.name, number)

    @property
    def predicted(self) -> Record:
        return Record(f"{self.folder}/predictions.json", f"03_predict.py --run {self.name}")

    @property
    def predictions(self) -> Table:
        """One row per probability map; `fold` is empty for test images.

        `p_max` is the highest probability in the map; `p_classification` is the
        classification head's probability, empty if the network has no such head.
        """
        return Table(
            f"{self.folder}/predictions.csv",
            ("image_id", "split", "fold", "p_max", "p_classification", "sha256"),
            f"03_predict.py --run {self.name}",
            numbers=("fold", "p_max", "p_classification"),
        )

    def probability_map(self, split: str, image_id: str) -> str:
        """8-bit grey PNG, probability x 255, at the network's size; of OOF or TEST."""
        return f"{self.folder}/{split}/{file_name(image_id, '.png')}"

    def prediction_journal(self, rank: int = 0) -> str:
        """The journal of one of the processes that predict together."""
        return f"{self.folder}/predictions{f'-{rank}' if rank else ''}.jsonl"

    def prediction_journals(self, output: Path) -> list[Path]:
        """Those that exist, the main process's first."""
        found = (output / self.folder).glob("predictions*.jsonl")
        return sorted(found, key=lambda path: (len(path.name), path.name))

    @property
    def onnx(self) -> str:
        """The networks of several folds in one ONNX file."""
        return f"{self.folder}/network.onnx"

    @property
    def exported(self) -> Record:
        return Record(f"{self.folder}/exported.json", f"export_model.py --run {self.name}")


@dataclass(frozen=True)
class Submission:
    """The files of one submission (stage 04)."""

    name: str

    @property
    def made_by(self) -> str:
        return f"04_submit.py --name {self.name}"

    @property
    def folder(self) -> str:
        return f"submissions/{self.name}"

    @property
    def record(self) -> Record:
        """What was fitted, and its scores."""
        return Record(f"{self.folder}/postprocess.json", self.made_by)

    @property
    def csv(self) -> str:
        """In the sample submission's own columns and order."""
        return f"{self.folder}/submission.csv"

    @property
    def cross_validation(self) -> Table:
        """Scores per fold, overall, and of the all-empty baseline."""
        return Table(
            f"{self.folder}/cv.csv",
            CROSS_VALIDATION_COLUMNS,
            self.made_by,
            ("images", "positives"),
            CROSS_VALIDATION_COLUMNS[3:],
        )

    @property
    def threshold_surface(self) -> Table:
        """Naive (not nested) SIIM Dice of all out-of-fold images for the thresholds tried."""
        columns = ("top", "min_area", "bottom", "min_probability", "siim_dice")
        return Table(f"{self.folder}/surface.csv", columns, self.made_by, numbers=columns)

    @property
    def steps(self) -> Table:
        """SIIM Dice after each step of the post-processing, nested and naive."""
        path = f"{self.folder}/steps.csv"
        return Table(path, STEP_COLUMNS, self.made_by, numbers=STEP_COLUMNS[1:])

    @property
    def out_of_fold(self) -> Table:
        """One row per training image: its mask by nested thresholds, and the truth."""
        return Table(
            f"{self.folder}/oof.csv",
            tuple("image_id fold p_positive true_px predicted_px overlap_px dice rle".split()),
            self.made_by,
            ("fold", "true_px", "predicted_px", "overlap_px"),
            ("p_positive", "dice"),
        )

    @property
    def test_scores(self) -> Table:
        """Scores of the labelled test images, with 95 % intervals over patients.

        The rows TEST_ALL, TEST_UNSEEN (the images of patients who are not in training),
        the all-empty baseline of both, and TEST_CLAIMED; scores of an empty group are
        empty.
        """
        path = f"{self.folder}/test.csv"
        counts = ("images", "positives")
        return Table(path, TEST_SCORE_COLUMNS, self.made_by, counts, TEST_SCORE_COLUMNS[3:])

    @property
    def test_images(self) -> Table:
        """One row per labelled test image: its mask in submission.csv, and the truth."""
        return Table(
            f"{self.folder}/test_images.csv",
            tuple("image_id p_positive true_px predicted_px overlap_px dice rle".split()),
            self.made_by,
            ("true_px", "predicted_px", "overlap_px"),
            ("p_positive", "dice"),
        )


def submission_names(output: Path) -> list[str]:
    """The submissions that exist, sorted. Raises BadInput if none does."""
    folder = output / "submissions"
    names = sorted(path.parent.name for path in folder.glob("*/postprocess.json"))
    if not names:
        raise BadInput(f"{folder} is empty: run 04_submit.py first")
    return names


def file_name(image_id: str, suffix: str) -> str:
    """An id as a file name. Raises BadInput for an id that leads to another folder.

    Ids are also checked where they are read (dicom.is_image_id).
    """
    name = f"{image_id}{suffix}"
    if Path(name).name != name:
        raise BadInput(f"{image_id[:70]!r} cannot be a file name: it leads outside its folder")
    return name


def read_table(output: Path, table: Table) -> "pd.DataFrame":
    """Text columns as str ("" if empty), `integers` as int64, `numbers` as float64.

    Raises BadInput if the file is missing, lacks columns, or has text in a column of
    numbers.
    """
    import pandas as pd

    path, again = output / table.path, f"run {table.made_by} again"
    if not path.is_file():
        raise BadInput(f"{path} does not exist: run {table.made_by} first")
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except (ValueError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read ({error}): {again}") from error
    if not isinstance(frame.index, pd.RangeIndex):  # pandas took surplus cells for an index
        raise BadInput(f"{path} has rows with too many cells: {again}")
    missing = [column for column in table.columns if column not in frame.columns]
    if missing:
        raise BadInput(f"{path} lacks columns {missing}; it has {list(frame.columns)}: {again}")
    try:
        for column in table.integers:
            frame[column] = frame[column].astype("int64")
        for column in table.numbers:
            frame[column] = frame[column].replace("", "nan").astype("float64")
    except ValueError as error:
        raise BadInput(f"{path}, column {column}: {error}: {again}") from error
    return frame


def image_shapes(manifest: "pd.DataFrame") -> dict[str, tuple[int, int]]:
    """image id -> (H, W)."""
    shapes = zip(manifest["height"].tolist(), manifest["width"].tolist(), strict=True)
    return dict(zip(manifest["image_id"], shapes, strict=True))


def training_rows(output: Path) -> "pd.DataFrame":
    """The manifest's training rows with their `fold`, in the manifest's order."""
    manifest, folds = read_table(output, MANIFEST), read_table(output, FOLDS)
    return manifest[manifest["split"] == TRAIN].merge(folds[["image_id", "fold"]], on="image_id")


def label_rows(output: Path, table: Table = LABELS) -> dict[str, tuple[str, ...]]:
    """image id -> mask rows: of every positive training image, or of TEST_LABELS.

    An image whose row is "-1" has none.
    """
    rows: dict[str, tuple[str, ...]] = {}
    frame = read_table(output, table)
    for image_id, text in zip(frame["image_id"], frame["rle"], strict=True):
        rows[image_id] = (*rows.get(image_id, ()), *([] if text == rle.EMPTY else [text]))
    return rows


def write_table(output: Path, table: Table, frame: "pd.DataFrame") -> Path:
    """Write the table's columns in order: UTF-8, LF, no index, NaN as an empty cell."""
    path = output / table.path
    text = frame.loc[:, list(table.columns)].to_csv(index=False, lineterminator="\n", na_rep="")
    atomic.write_text(path, text)
    return path


def write_rows(output: Path, table: Table, rows: Iterable[Mapping[str, Any]]) -> Path:
    """As `write_table`, of rows by column, without pandas; "" is an empty cell."""
    path, text = output / table.path, io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(table.columns)
    lines.writerows([row[column] for column in table.columns] for row in rows)
    atomic.write_text(path, text.getvalue())
    return path
