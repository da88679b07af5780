"""The same phantoms as DICOM files, as a PNG copy and as nnU-Net's raw folder: the same results."""

import pandas as pd
import pytest

from pneumothorax import rle
from pneumothorax.phantom import siim_png, writing
from pneumothorax.pipeline import artifacts
from tests.helpers.stages import TINY, files_below, run_all, run_on

SAME = ["image_id", "split", "height", "width", "positive", "mask_pixels", "sha256", "mask_sha256"]
N_TRAIN, N_TEST, N_UNLABELLED = 16, 5, 2


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """{name: output after stages 00 and 01} of both layouts; the DICOM files without --patients."""
    folder = tmp_path_factory.mktemp("layouts")
    for layout in writing.LAYOUTS:
        writing.write_dataset(
            folder / layout,
            layout=layout,
            train_images=N_TRAIN,
            test_images=N_TEST,
            unlabelled_images=N_UNLABELLED,
            size=128,
            workers=1,
        )
    patients = folder / "siim-png" / siim_png.FOLDER / "patients.csv"
    given = {
        "siim-dicom": (),
        "siim-dicom, patients": ("--patients", folder / "siim-dicom" / "patients.csv"),
        "siim-png": ("--patients", patients),
    }
    outputs = {}
    for name, flags in given.items():
        outputs[name] = folder / f"output of {name}"
        source = folder / name.split(",")[0]
        run_on(outputs[name], "00_prepare_data.py", "--input", source, "--size", 64)
        run_on(outputs[name], "01_make_folds.py", "--folds", 2, *flags)
    return outputs


@pytest.fixture(params=["siim-dicom, patients", "siim-png"])
def pair(prepared, request):
    """(output of the DICOM files without --patients, another output)."""
    return prepared["siim-dicom"], prepared[request.param]


def test_the_cache_is_the_same_byte_for_byte(pair):
    caches = [
        {
            name: data
            for name, (data, _) in files_below(output / "cache").items()
            if name.endswith(".png")
        }
        for output in pair
    ]
    positives = round(0.3 * N_TRAIN)
    assert len(caches[0]) == N_TRAIN + N_TEST + positives  # test images have no cached mask
    assert caches[1] == caches[0]


def test_the_manifest_is_the_same_but_for_what_png_files_do_not_have(pair):
    first, second = (artifacts.read_table(output, artifacts.MANIFEST)[SAME] for output in pair)
    assert len(first) == N_TRAIN + N_TEST
    pd.testing.assert_frame_equal(first, second)


def test_the_folds_and_their_patients_are_the_same(pair):
    first, second = (artifacts.read_table(output, artifacts.FOLDS) for output in pair)
    assert first["patient_id"].nunique() < N_TRAIN
    pd.testing.assert_frame_equal(first, second)


def test_the_submission_lists_the_same_test_images_in_the_same_order(pair):
    first, second = ((output / artifacts.SAMPLE_SUBMISSION).read_bytes() for output in pair)
    assert len(first.splitlines()) == 1 + N_TEST
    assert first == second


def test_the_labels_of_the_test_images_are_the_same_masks(pair):
    first, second = (artifacts.label_rows(output, artifacts.TEST_LABELS) for output in pair)
    assert len(first) == N_TEST
    assert first.keys() == second.keys()
    for image_id, rows in first.items():
        masks = [rle.union(texts, (128, 128)) for texts in (rows, second[image_id])]
        assert masks[0].tobytes() == masks[1].tobytes()
    assert sum(bool(rows) for rows in first.values()) == round(0.3 * N_TEST)


def test_the_test_images_show_the_same_unseen_patients(prepared):
    given = (prepared["siim-dicom, patients"], prepared["siim-png"])
    first, second = (artifacts.read_table(output, artifacts.TEST_PATIENTS) for output in given)
    pd.testing.assert_frame_equal(first, second)
    assert (first["in_training"] == 0).all()


@pytest.mark.slow
def test_the_scores_are_the_same(prepared, tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    tables = []
    for name in ("siim-dicom, patients", "siim-png"):
        run_all(None, prepared[name], tmp_path / "tiny.yaml", stages=(2, 3, 4))
        folder = prepared[name] / artifacts.Submission("tiny").folder
        names = ("oof.csv", "cv.csv", "test.csv", "test_images.csv", "submission.csv")
        tables.append({table: (folder / table).read_bytes() for table in names})
    assert tables[0] == tables[1]
