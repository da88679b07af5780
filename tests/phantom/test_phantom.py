"""The demo data: labels match what is drawn, and the files are like those people have."""

import csv
import hashlib
import warnings
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEGBaseline8Bit

from pneumothorax import dicom, rle
from pneumothorax.errors import BadInput
from pneumothorax.phantom import __main__, siim_dicom, writing
from pneumothorax.phantom.radiograph import draw
from pneumothorax.pipeline import artifacts
from tests.helpers.stages import run_stage

SIZE = 128
N_TRAIN, N_TEST, N_UNLABELLED = 30, 8, 2
COPY = "siim-acr-pneumothorax"  # the folder in the PNG layout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small data set, written once for this file."""
    target = tmp_path_factory.mktemp("phantom") / "demo"
    write(target, workers=1)
    return target


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The same data set as PNG files, written once for this file."""
    target = tmp_path_factory.mktemp("copy") / "demo"
    write(target, workers=1, layout="siim-png")
    return target


def write(target, *, workers, layout="siim-dicom"):
    return writing.write_dataset(
        target,
        layout=layout,
        train_images=N_TRAIN,
        test_images=N_TEST,
        unlabelled_images=N_UNLABELLED,
        seed=7,
        size=SIZE,
        workers=workers,
    )


def read_dicoms(folder, pattern):
    """{file stem: dataset}; silent, because pydicom warns that ID_... is not a legal UID."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {path.stem: pydicom.dcmread(path) for path in sorted(folder.glob(pattern))}


def read_table(path):
    """(header, rows) of a CSV file, unstripped."""
    with open(path, encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    return header, [tuple(row) for row in rows]


def read_labels(folder, name="train-rle.csv"):
    """(header, [(image id, encoded pixels)]), unstripped."""
    return read_table(folder / name)


def unions(folder, name):
    """{image id: (SIZE, SIZE) mask of 0 and 1} of a label file, the union of the image's rows."""
    masks: dict[str, np.ndarray] = {}
    for image_id, text in read_labels(folder, name)[1]:
        mask = rle.decode(text.strip(), (SIZE, SIZE))
        masks[image_id] = masks.get(image_id, 0) | mask
    return masks


def hashes(folder):
    """{relative path: sha256} of every file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_same_arguments_draw_the_same_radiograph():
    first = draw(3, pneumothorax=True, size=SIZE)
    again = draw(3, pneumothorax=True, size=SIZE)
    assert np.array_equal(first.image, again.image)
    assert [mask.tobytes() for mask in first.masks] == [mask.tobytes() for mask in again.masks]
    assert not np.array_equal(first.image, draw(4, pneumothorax=True, size=SIZE).image)


def test_a_radiograph_is_8_bit_grey_of_the_requested_size():
    radiograph = draw(0, pneumothorax=False)
    assert radiograph.image.shape == (1024, 1024) and radiograph.image.dtype == np.uint8
    assert radiograph.image.max() > 200 and radiograph.image.min() < 60


def test_without_pneumothorax_there_is_no_mask():
    assert draw(3, pneumothorax=False, size=SIZE).masks == []


def test_masks_are_zero_and_one_and_cover_a_thousandth_to_seven_hundredths():
    sides, n_crescents = set(), Counter()
    for seed in range(60):
        masks = draw(seed, pneumothorax=True, size=SIZE).masks
        assert all(
            mask.shape == (SIZE, SIZE) and mask.dtype == np.uint8 and mask.max() == 1
            for mask in masks
        )
        truth = np.maximum.reduce(masks)
        assert 0.001 <= truth.mean() <= 0.07, seed
        n_crescents[len(masks)] += 1
        sides.add((bool(truth[:, : SIZE // 2].any()), bool(truth[:, SIZE // 2 :].any())))
    assert n_crescents[1] > n_crescents[2] > 0
    assert sides == {(True, False), (False, True), (True, True)}


def test_with_and_without_pneumothorax_radiographs_differ_where_the_mask_is():
    """Nothing may differ more than 5 pixels (pleural line, soft edges) from the mask.

    Where a pneumothorax comes with a chest tube, they also differ along the tube; most have none.
    """
    elsewhere, darker = [], []
    for seed in range(12):
        ill, healthy = (draw(seed, pneumothorax=state, size=256) for state in (True, False))
        truth = np.maximum.reduce(ill.masks)
        near = cv2.dilate(truth, np.ones((11, 11), np.uint8)).astype(bool)
        change = ill.image.astype(int) - healthy.image
        elsewhere.append(int(np.count_nonzero(change[~near])))
        darker.append(
            float(change[cv2.erode(truth, np.ones((3, 3), np.uint8)).astype(bool)].mean())
        )
    assert elsewhere.count(0) >= 6
    assert np.mean(darker) < -3


def test_radiographs_of_one_patient_share_the_chest():
    """Radiographs correlate more within a patient than between patients, in any pose."""
    same, other = [], []
    for seed in range(6):
        radiograph = draw(seed, pneumothorax=False, size=SIZE, patient=1).image.ravel()
        for patient, correlations in ((1, same), (seed + 2, other)):
            second = draw(seed + 50, pneumothorax=False, size=SIZE, patient=patient).image.ravel()
            correlations.append(np.corrcoef(radiograph, second)[0, 1])
    assert np.mean(same) > np.mean(other)


def test_files_are_jpeg_baseline_with_the_siim_tags(folder):
    dicoms = read_dicoms(folder, "dicom-images-train/*/*/*.dcm")
    assert len(dicoms) == N_TRAIN + N_UNLABELLED
    for path in folder.glob("dicom-images-train/*/*/*.dcm"):
        dataset = dicoms[path.stem]
        assert (dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID) == (
            path.parts[-3],
            path.parts[-2],
            path.stem,
        )
        assert dataset.file_meta.TransferSyntaxUID == JPEGBaseline8Bit
        assert dataset.PhotometricInterpretation == "MONOCHROME2"
        assert (dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit) == (8, 8, 7)
        assert dataset.Modality == "CR" and dataset.ViewPosition in ("PA", "AP")
        assert dataset.PatientName == dataset.PatientID != ""
        assert dataset.PatientSex in ("M", "F") and 18 <= int(dataset.PatientAge) < 88
        assert len(dataset.PixelSpacing) == 2 and dataset.LossyImageCompression == "01"
        assert dataset.pixel_array.shape == (SIZE, SIZE) and dataset.pixel_array.std() > 10


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_test_files_carry_an_id_and_no_patient(folder):
    dicoms = read_dicoms(folder, "stage_2_images/*.dcm")
    assert len(dicoms) == N_TEST
    for image_id, dataset in dicoms.items():
        assert dataset.SOPInstanceUID == image_id
        assert image_id.startswith("ID_") and len(image_id) == 12
        assert dataset.PatientID == "" and dataset.PatientName == ""


def test_images_of_a_patient_share_the_patient_id(folder):
    dicoms = read_dicoms(folder, "dicom-images-train/*/*/*.dcm")
    labelled = {image_id for image_id, _ in read_labels(folder)[1]}
    counts = Counter(dicoms[image_id].PatientID for image_id in labelled)
    assert max(counts.values()) > 1 and max(counts.values()) <= 4
    assert 1 < len(counts) < N_TRAIN


def test_label_file_has_the_leading_spaces_of_kaggle(folder):
    header, rows = read_labels(folder)
    assert header == ["ImageId", " EncodedPixels"]
    assert all(
        len(row) == 2 and row[1].startswith(" ") and not row[1].startswith("  ") for row in rows
    )
    assert b"\r" not in (folder / "train-rle.csv").read_bytes()


def test_three_in_ten_are_positive_and_every_labelled_image_exists(folder):
    rows = read_labels(folder)[1]
    positive = {image_id for image_id, text in rows if text.strip() != rle.EMPTY}
    negative = {image_id for image_id, text in rows if text.strip() == rle.EMPTY}
    assert len(positive) == 9 and len(positive | negative) == N_TRAIN  # 0.3 x 30
    assert not positive & negative
    assert (
        len(set(read_dicoms(folder, "dicom-images-train/*/*/*.dcm")) - positive - negative)
        == N_UNLABELLED
    )


def test_some_images_have_overlapping_rows(folder):
    by_image: dict[str, list[np.ndarray]] = {}
    for image_id, text in read_labels(folder)[1]:
        by_image.setdefault(image_id, []).append(rle.decode(text.strip(), (SIZE, SIZE)))
    deepest = [int(np.sum(masks, axis=0).max()) for masks in by_image.values() if len(masks) > 1]
    assert len(deepest) >= 2 and max(deepest) == 2


def test_two_readings_overlap_and_their_union_is_the_mask():
    mask = np.zeros((20, 10), dtype=np.uint8)
    mask[4:16, 3:6] = 1
    rows = writing.label_rows([mask], np.random.default_rng(0), double_reading=True)
    first, second = (rle.decode(row, mask.shape) for row in rows)
    assert np.array_equal(first | second, mask)
    assert (first & second).any() and not np.array_equal(first, second)


def test_sample_submission_lists_exactly_the_test_files(folder):
    lines = (folder / "stage_2_sample_submission.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "ImageId,EncodedPixels"
    assert sorted(lines[1:]) == [
        f"{path.stem},-1" for path in sorted((folder / "stage_2_images").iterdir())
    ]


def test_test_images_have_labels_in_a_file_apart_in_the_order_of_the_sample(folder):
    header, rows = read_labels(folder, "test-rle.csv")
    sample = read_table(folder / "stage_2_sample_submission.csv")[1]
    assert header == ["ImageId", " EncodedPixels"]
    assert list(dict.fromkeys(image_id for image_id, _ in rows)) == [row[0] for row in sample]
    positive = {image_id for image_id, text in rows if text != f" {rle.EMPTY}"}
    assert len(positive) == 2  # 0.3 x 8, rounded
    tested = {image_id for image_id, _ in rows}
    assert not tested & {image_id for image_id, _ in read_labels(folder)[1]}


def test_the_patients_file_names_the_patient_of_every_labelled_image(folder, copy):
    dicoms = read_dicoms(folder, "dicom-images-train/*/*/*.dcm")
    labelled = {image_id for image_id, _ in read_labels(folder)[1]}
    header, rows = read_table(folder / "patients.csv")
    assert header == ["ImageId", "PatientId"]
    patients = dict(rows[:N_TRAIN])
    assert patients == {image_id: dicoms[image_id].PatientID for image_id in labelled}
    tested = dict(rows[N_TRAIN:])
    assert tested.keys() == {image_id for image_id, _ in read_labels(folder, "test-rle.csv")[1]}
    assert not set(patients.values()) & set(tested.values())
    assert read_table(copy / COPY / "patients.csv") == (header, rows)


def test_the_tables_of_the_png_copy_agree_with_the_names_and_the_dicoms_labels(folder, copy):
    for split, n_images in (("train", N_TRAIN), ("test", N_TEST)):
        header, rows = read_table(copy / COPY / f"stage_1_{split}_images.csv")
        masks = unions(folder, f"{split}-rle.csv")
        assert header == ["new_filename", "ImageId", "has_pneumo"]
        assert [image_id for _, image_id, _ in rows] == sorted(masks)
        for number, (name, image_id, positive) in enumerate(rows):
            assert name == f"{number}_{split}_{positive}_.png"
            assert positive == str(int(masks[image_id].any()))
        assert len(rows) == n_images
    names = {path.name for path in (copy / COPY / "png_images").iterdir()}
    assert names == {path.name for path in (copy / COPY / "png_masks").iterdir()}
    assert len(names) == N_TRAIN + N_TEST  # images without a label are left out


def test_the_png_copy_has_the_pixels_and_masks_of_the_dicoms(folder, copy):
    images = {path.stem: dicom.read(path).image for path in folder.rglob("*.dcm")}
    masks = unions(folder, "train-rle.csv") | unions(folder, "test-rle.csv")
    names = {
        image_id: name
        for split in ("train", "test")
        for name, image_id, _ in read_table(copy / COPY / f"stage_1_{split}_images.csv")[1]
    }
    assert names.keys() == masks.keys()
    for image_id, name in names.items():
        image, mask = (
            cv2.imread(str(copy / COPY / part / name), cv2.IMREAD_UNCHANGED)
            for part in ("png_images", "png_masks")
        )
        assert image.dtype == mask.dtype == np.uint8
        np.testing.assert_array_equal(image, images[image_id])
        np.testing.assert_array_equal(mask, masks[image_id] * 255)


@pytest.mark.parametrize("layout", writing.LAYOUTS)
def test_any_number_of_workers_writes_the_same_bytes(folder, copy, tmp_path, layout):
    write(tmp_path / "again", workers=2, layout=layout)
    first = {"siim-dicom": folder, "siim-png": copy}[layout]
    assert hashes(tmp_path / "again") == hashes(first)


def test_both_layouts_say_that_their_images_are_phantoms(folder, copy):
    for target, kind in ((folder, "DICOM"), (copy, "PNG")):
        note = (target / "phantoms.txt").read_text("utf-8")
        assert note == f"Chest phantoms in {kind} files: demo data, not radiographs of patients.\n"


def test_a_folder_that_is_not_empty_is_refused_and_left_unchanged(folder):
    before = hashes(folder)
    with pytest.raises(BadInput, match="not empty"):
        write(folder, workers=1)
    assert hashes(folder) == before


def test_an_interruption_leaves_nothing_behind(tmp_path, monkeypatch):
    def broken(*_args, **_settings):
        raise OSError("disk full")

    monkeypatch.setattr(siim_dicom, "contents", broken)
    with pytest.raises(OSError, match="disk full"):
        writing.write_dataset(tmp_path / "demo", train_images=2, test_images=1, size=64, workers=1)
    assert list(tmp_path.iterdir()) == []


def test_the_command_reports_what_it_wrote(tmp_path, capsys):
    numbers = "--train 4 --test 2 --unlabelled 1 --size 64 --workers 1".split()
    arguments = ["--to", str(tmp_path / "demo"), *numbers]
    __main__.main(arguments)
    assert "4 training images" in capsys.readouterr().out
    with pytest.raises(BadInput, match="not empty"):
        __main__.main(arguments)
    assert Path(tmp_path / "demo" / "train-rle.csv").is_file()


def test_the_command_writes_the_png_layout_on_request(tmp_path, capsys):
    numbers = "--train 4 --test 2 --unlabelled 1 --size 64 --workers 1 --layout siim-png".split()
    __main__.main(["--to", str(tmp_path / "demo"), *numbers])
    assert "2 test images, 0 images without a label" in capsys.readouterr().out
    assert len(list(tmp_path.glob("demo/*/png_masks/*.png"))) == 6


@pytest.mark.parametrize("layout", writing.LAYOUTS)
def test_a_data_set_without_test_images_can_be_prepared(tmp_path, layout):
    numbers = f"--train 4 --test 0 --unlabelled 0 --size 64 --workers 1 --layout {layout}".split()
    __main__.main(["--to", str(tmp_path / "demo"), *numbers])
    places = ["--input", tmp_path / "demo", "--output", tmp_path / "output"]
    run_stage("00_prepare_data.py", *places, "--size", 64, "--workers", 0)
    manifest = artifacts.read_table(tmp_path / "output", artifacts.MANIFEST)
    assert manifest["split"].tolist() == ["train"] * 4
