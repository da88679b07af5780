"""Stage 01: no patient in two folds, balanced folds, the same result every time."""

import gzip
import hashlib
import json
import time

import numpy as np
import pandas as pd
import pydicom
import pytest

from pneumothorax.data import folds
from pneumothorax.errors import BadInput
from pneumothorax.pipeline import artifacts, lineage, records
from tests.helpers.stages import run_on, run_stage, tiny_input, write_lines

STAGE = "01_make_folds.py"


def training(patients, areas, *, pixels=None, side=1024):
    """Manifest rows of training images, one per patient id in the list."""
    n = len(patients)
    return pd.DataFrame(
        {
            "image_id": [f"i{number:05d}" for number in range(n)],
            "patient_id": patients,
            "positive": (np.asarray(areas) > 0).astype(int),
            "mask_pixels": areas,
            "height": side,
            "width": side,
            "sha256": pixels or [f"p{number}" for number in range(n)],
        }
    )


def random_training(n=400, seed=0):
    rng = np.random.default_rng(seed)
    areas = np.where(rng.random(n) < 0.3, rng.integers(100, 50_000, n), 0)
    return training([f"patient {number}" for number in rng.integers(0, n // 2, n)], areas)


@pytest.fixture(scope="module")
def real_training(real_data):
    """All 12,047 labelled images as manifest rows, with their real patients.

    Areas are the sums of the run lengths.
    """
    areas = {}
    with gzip.open(real_data / "labels" / "stage_2_train.csv.gz", "rt") as file:
        for line in list(file)[1:]:
            image_id, text = (cell.strip() for cell in line.split(","))
            area = sum(map(int, text.split()[1::2])) if text != "-1" else 0
            areas[image_id] = areas.get(image_id, 0) + area
    table = pd.read_csv(real_data / "labels" / "nih_patients.csv", dtype=str)
    patients = table.set_index("ImageId")["PatientId"]
    frame = training([patients[image_id] for image_id in areas], list(areas.values()))
    return frame.assign(image_id=list(areas))


@pytest.fixture(scope="module")
def real_folds(real_training):
    """(the folds, CPU seconds)."""
    start = time.process_time()
    table = folds.assign(real_training, n_folds=5, seed=42)
    return table, time.process_time() - start


def test_no_real_patient_is_in_two_folds_and_it_takes_less_than_10_seconds(
    real_training, real_folds
):
    table, seconds = real_folds
    assert len(table) == 12047
    assert seconds < 10
    seen = {}
    for patient, fold in zip(real_training["patient_id"], table["fold"], strict=True):
        assert seen.setdefault(patient, fold) == fold
    assert len(seen) == 6171
    assert set(seen.values()) == {0, 1, 2, 3, 4}
    assert folds.leaks(real_training, table) == {
        "patients_in_several_folds": 0,
        "identical_images_in_several_folds": 0,
    }


def test_every_real_stratum_has_its_share_in_every_fold_within_half_a_point(real_folds):
    table, _ = real_folds
    assert set(table["stratum"]) == {"negative", "area 1", "area 2", "area 3", "area 4"}
    for stratum in set(table["stratum"]):
        share = (table["stratum"] == stratum).mean()
        for fold in range(5):
            found = (table.loc[table["fold"] == fold, "stratum"] == stratum).mean()
            assert abs(found - share) <= 0.005, (stratum, fold)
    # FACTS.md: 22.15 % positive; quartiles hold a quarter each.
    assert (table["stratum"] == "negative").sum() == 9378
    for quartile in "1234":
        assert (table["stratum"] == f"area {quartile}").sum() == pytest.approx(2669 / 4, abs=3)


def test_strata_are_quartiles_of_the_masks_share_of_the_image():
    frame = training(list("abcdefgh"), [0, 0, 0, 0, 10, 20, 30, 40])
    frame.loc[7, ["height", "width"]] = 4096  # 40 of 16 times as many pixels is the smallest share
    # Shares in units of 10 / 2**20: 1, 2, 3, 0.25; sorted 0.25, 1, 2, 3, one per quartile.
    assert folds.strata(frame).tolist() == ["negative"] * 4 + [
        "area 2",
        "area 3",
        "area 4",
        "area 1",
    ]


def test_identical_pixels_share_a_fold_even_through_a_chain_of_patients():
    # 0 and 1 are one patient, 1 and 2 have the same pixels, 2 and 3 are one patient.
    frame = training(
        ["a", "a", "b", "b", "c", "", ""], [0] * 7, pixels=["p", "q", "q", "r", "s", "t", "u"]
    )
    found = folds.groups(frame)
    assert len(set(found[:4])) == 1
    assert (
        len(set(found)) == 4
    )  # {0, 1, 2, 3}, {4}, {5}, {6}: unknown patients are different people


def test_identical_pixels_never_end_in_two_folds():
    frame = random_training()
    frame["sha256"] = [f"p{number // 2 if number < 60 else number}" for number in range(len(frame))]
    table = folds.assign(frame, n_folds=5, seed=1)
    assert folds.leaks(frame, table) == {
        "patients_in_several_folds": 0,
        "identical_images_in_several_folds": 0,
    }
    assert (table.groupby(frame["sha256"])["fold"].nunique() == 1).all()


def test_the_same_seed_gives_the_same_folds_and_another_seed_others():
    frame = random_training()
    first, again, other = (folds.assign(frame, n_folds=5, seed=seed) for seed in (42, 42, 43))
    pd.testing.assert_frame_equal(first, again)
    assert (first["fold"] != other["fold"]).mean() > 0.3


def test_one_patient_with_all_positives_is_named_with_the_images():
    # 7 positives, 6 of them of p1; the seventh has the pixels of one of them.
    patients = [*["p1"] * 6, "p2", *(f"n{number}" for number in range(10))]
    pixels = ["same", *(f"own {number}" for number in range(5)), "same", *"abcdefghij"]
    frame = training(patients, [*[100] * 7, *[0] * 10], pixels=pixels)
    with pytest.raises(BadInput) as caught:
        folds.assign(frame, n_folds=2, seed=42)
    headline, *images = str(caught.value).split("\n  ")
    assert "all positive images (7) are of one patient (p1)" in headline
    assert "add images of other patients" in headline
    assert "--folds" not in headline
    assert images == ["i00000", "i00001", "i00002", "i00003", "i00004", "... and 2 more"]


def test_one_patient_with_all_images_is_named_and_no_number_of_folds_advised():
    frame = training(["ANONYMOUS"] * 8, [10, 0] * 4)
    with pytest.raises(
        BadInput, match=r"all training images \(8\).*\(ANONYMOUS\).*pass --patients"
    ) as caught:
        folds.assign(frame, n_folds=5, seed=42)
    assert "--folds" not in str(caught.value)


def test_too_few_patients_with_positives_are_counted_and_the_number_of_folds_advised_works():
    # Four patients, the positives of two of them.
    frame = training([*"aabbcdef"], [10, 10, 10, 10, 0, 0, 0, 0])
    with pytest.raises(
        BadInput, match=r"the positive images are of 2 patients.*5 folds: use at most --folds 2$"
    ):
        folds.assign(frame, n_folds=5, seed=42)
    table = folds.assign(frame, n_folds=2, seed=42)
    assert set(table.loc[table["stratum"] != "negative", "fold"]) == {0, 1}


@pytest.mark.parametrize("patients", ["abcdefgh", ""])
def test_images_without_any_positive_are_refused_as_such(patients):
    with pytest.raises(BadInput, match="no training image is positive"):
        folds.assign(training([*patients], [0] * len(patients)), n_folds=2, seed=42)


def test_a_planted_leak_is_found():
    frame = random_training()
    table = folds.assign(frame, n_folds=5, seed=42)
    busy = frame["patient_id"].value_counts().index[0]
    row = frame.index[frame["patient_id"] == busy][0]
    leaky = table.copy()
    leaky.loc[row, "fold"] = (leaky.loc[row, "fold"] + 1) % 5
    assert folds.leaks(frame, leaky)["patients_in_several_folds"] == 1
    twin = table.index[table["fold"] != table.loc[row, "fold"]][0]
    frame.loc[twin, "sha256"] = frame.loc[row, "sha256"]
    assert folds.leaks(frame, table) == {
        "patients_in_several_folds": 0,
        "identical_images_in_several_folds": 1,
    }


def test_unknown_patients_are_not_a_leak():
    frame = training([""] * 20, [5, 0] * 10)
    table = folds.assign(frame, n_folds=5, seed=0)
    assert folds.leaks(frame, table)["patients_in_several_folds"] == 0


def test_too_few_patients_are_counted():
    with pytest.raises(BadInput, match="training images are of 2 patients, who cannot fill 3 fold"):
        folds.assign(training(["a", "a", "b", "b"], [1, 0, 1, 0]), n_folds=3, seed=0)


def test_a_fold_without_positives_advises_another_seed_or_fewer_folds():
    table = pd.DataFrame({"fold": [0, 0, 1], "stratum": ["area 1", "negative", "negative"]})
    with pytest.raises(
        BadInput,
        match=r"fold 1 has no positive image \(1 in all folds together\): use another --seed",
    ):
        folds.check(table, 2)


def test_an_empty_fold_is_bad_input():
    table = pd.DataFrame({"fold": [0, 0, 2, 2], "stratum": ["area 1", "negative"] * 2})
    with pytest.raises(BadInput, match="fold 1 is empty"):
        folds.check(table, 3)


def test_an_image_without_an_entry_in_the_patients_file_is_named():
    frame = training(["", ""], [1, 0])
    assert folds.with_patients(frame, {"i00000": "x", "i00001": "x"})["patient_id"].tolist() == [
        "x",
        "x",
    ]
    with pytest.raises(BadInput, match="1 training image is not in the patients file\n  i00001"):
        folds.with_patients(frame, {"i00000": "x"})


def rows(patients, pixels=None):
    return training(patients, [0] * len(patients), pixels=pixels)


def in_training(train, test):
    return folds.seen_in_training(train, test)["in_training"].astype(object).tolist()


def test_a_test_image_is_seen_in_training_by_its_patient_or_its_pixels():
    train = rows(["a", "b"], pixels=["p", "q"])
    test = rows(["a", "c", "", "", "c"], pixels=["r", "s", "t", "q", "u"])
    # The patient a; c is new; unknown; unknown with the pixels of b's image; c again.
    assert in_training(train, test) == [1, 0, pd.NA, 1, 0]
    # The last two have the same pixels, so c is b.
    assert in_training(train, rows(["c", "c", "d"], pixels=["s", "q", "u"])) == [1, 1, 0]


def test_no_test_image_counts_as_unseen_if_the_patient_of_a_training_image_is_unknown():
    assert in_training(rows(["a", ""]), rows(["a", "b"], pixels=["x", "y"])) == [1, pd.NA]


def test_the_report_on_test_images_counts_images_and_patients():
    train = rows(["a", "b", "c"], pixels=["p", "q", "r"])
    test = rows(["a", "a", "b", "d", "", "e"], pixels=["s", "t", "u", "v", "w", "x"])
    seen = folds.count_seen(folds.seen_in_training(train, test))
    assert seen == {
        "images": 6,
        "patient_in_training": 3,
        "unseen": 2,
        "unknown": 1,
        "patients_in_training": 2,
    }
    assert folds.seen_in_words(seen, training_images=3).splitlines() == [
        "9 images: 3 training, 6 test; 3 test images of 2 patients who are also in training, "
        "2 of unseen patients, 1 of unknown ones",
        "warning: test scores of 3 images are optimistic: their patients are in training",
    ]


@pytest.fixture(scope="module")
def real_stage_1(real_data, real_training):
    """Manifest rows of the published split: (training images, test images)."""
    tables = [
        pd.read_csv(real_data / "labels" / f"stage_1_{split}_images.csv.gz", dtype=str)
        for split in ("train", "test")
    ]
    return [
        real_training[real_training["image_id"].isin(table["ImageId"])].reset_index(drop=True)
        for table in tables
    ]


def test_884_real_stage_1_test_images_show_a_patient_of_the_training_images(real_stage_1):
    train, test = real_stage_1
    seen = folds.count_seen(folds.seen_in_training(train, test))
    # FACTS.md
    assert (len(train), seen["images"]) == (10675, 1372)
    assert (seen["patient_in_training"], seen["unseen"], seen["unknown"]) == (884, 488, 0)


# The stage


@pytest.fixture
def output(tmp_path):
    """Stage 00's output of a tiny input, and that input."""
    tiny = tiny_input(tmp_path / "input", train=10, test=1)
    common = ["--output", tmp_path / "out", "--workers", 1]
    run_stage("00_prepare_data.py", "--input", tiny.folder, "--size", 32, *common)
    return tmp_path / "out", tiny


def folded(output):
    return artifacts.read_table(output, artifacts.FOLDS)


def test_missing_manifest_names_the_stage_to_run(tmp_path):
    with pytest.raises(BadInput, match=r"00_prepare_data\.py"):
        run_stage(STAGE, "--output", tmp_path)


def test_the_stage_writes_only_training_images_with_hashed_patients(output):
    out, tiny = output
    run_stage(STAGE, "--output", out, "--folds", 3)
    table = folded(out)
    assert sorted(table["image_id"]) == sorted(tiny.masks)
    assert set(table["fold"]) == {0, 1, 2}
    assert not any(patient in (out / "folds.csv").read_text() for patient in tiny.patients.values())
    by_patient = (
        table.assign(person=table["image_id"].map(tiny.patients))
        .groupby("person")["fold"]
        .nunique()
    )
    assert (by_patient == 1).all()
    record = json.loads((out / "folds.json").read_text())
    assert record["leaks"] == {
        "patients_in_several_folds": 0,
        "identical_images_in_several_folds": 0,
    }
    assert record["test_leaks"]["images"] == 1
    assert record["settings"] == {"folds": 3, "seed": 42, "patients": "PatientID"}
    assert (
        record["outputs"]["folds.csv"]
        == hashlib.sha256((out / "folds.csv").read_bytes()).hexdigest()
    )
    assert sum(counts["images"] for counts in record["counts"].values()) == 10


def test_running_the_stage_again_does_nothing_until_manifest_seed_or_folds_change(output, capsys):
    out, _ = output
    run_stage(STAGE, "--output", out, "--folds", 2)
    times = [(out / name).stat().st_mtime_ns for name in ("folds.csv", "folds.json")]
    capsys.readouterr()
    run_stage(STAGE, "--output", out, "--folds", 2)
    assert "up to date" in capsys.readouterr().out
    assert [(out / name).stat().st_mtime_ns for name in ("folds.csv", "folds.json")] == times
    for flags in (["--seed", 7], ["--folds", 3], ["--folds", 2, "--overwrite"]):
        before = (out / "folds.json").stat().st_mtime_ns
        run_stage(
            STAGE, "--output", out, *(["--folds", 2] if "--folds" not in flags else []), *flags
        )
        assert (out / "folds.json").stat().st_mtime_ns != before
    before = (out / "folds.csv").read_bytes()
    (out / "folds.csv").write_bytes(before[:-5])
    run_stage(STAGE, "--output", out, "--folds", 2)
    assert (out / "folds.csv").read_bytes() == before


def test_a_changed_manifest_gives_new_folds_and_an_edited_one_is_refused(output):
    out, tiny = output
    run_stage(STAGE, "--output", out, "--folds", 2)
    before = folded(out)
    lines = (tiny.folder / "train-rle.csv").read_text().splitlines()
    gone = next(iter(tiny.masks))
    write_lines(
        tiny.folder / "train-rle.csv", [line for line in lines if not line.startswith(f"{gone},")]
    )
    run_stage(
        "00_prepare_data.py", "--input", tiny.folder, "--output", out, "--size", 32, "--workers", 1
    )
    run_stage(STAGE, "--output", out, "--folds", 2)
    assert set(before["image_id"]) - set(folded(out)["image_id"]) == {gone}
    manifest = (out / "manifest.csv").read_text()
    (out / "manifest.csv").write_text(manifest.replace(",train,", ",test,", 1))
    with pytest.raises(BadInput, match=r"manifest\.csv is not what 00_prepare_data\.py wrote"):
        run_stage(STAGE, "--output", out, "--folds", 2)


def test_a_patients_file_takes_precedence_over_the_patient_id(output, tmp_path):
    out, tiny = output
    ids = list(tiny.masks)
    # Six people, who share out the images differently from the patients of the DICOM files.
    people = {image_id: f"person {number % 6}" for number, image_id in enumerate(ids)}
    path = write_lines(
        tmp_path / "patients.csv", ["ImageId,PatientId", *(f"{i},{p}" for i, p in people.items())]
    )
    run_stage(STAGE, "--output", out, "--folds", 2, "--patients", path)
    table = folded(out)
    assert (
        table.assign(person=table["image_id"].map(people)).groupby("person")["fold"].nunique() == 1
    ).all()
    assert "person" not in (out / "folds.csv").read_text()
    write_lines(path, ["ImageId,PatientId", f"{ids[0]},x"])
    with pytest.raises(BadInput, match="9 training images are not in the patients file"):
        run_stage(STAGE, "--output", out, "--folds", 2, "--patients", path)


def with_patients_file(output, lines):
    """Run the stage with a patients file -> the bytes of folds.csv."""
    path = write_lines(output.parent / "patients.csv", lines)
    run_stage(STAGE, "--output", output, "--folds", 2, "--patients", path)
    return (output / "folds.csv").read_bytes()


def test_patients_as_published_give_the_same_folds(output):
    out, tiny = output
    people = {image_id: number // 2 for number, image_id in enumerate(tiny.masks)}
    plain = [f"{image_id},{number:08}" for image_id, number in people.items()]
    published = [f"{image_id},{number:08}_003.png" for image_id, number in people.items()]
    before = with_patients_file(out, ["ImageId,PatientId", *plain])
    assert with_patients_file(out, ["Kaggle_ID,NIH_ID", *published]) == before


def test_test_images_of_known_patients_change_no_fold_and_are_told_apart(output, capsys):
    out, tiny = output
    (test_id,) = tiny.test_ids
    known = [f"{image_id},{patient}" for image_id, patient in tiny.patients.items()]
    unknown = with_patients_file(out, ["ImageId,PatientId", *known])
    printed = capsys.readouterr().out
    assert "11 images: 10 training, 1 test; 0 test images of 0 patients who are also in" in printed
    assert "0 of unseen patients, 1 of unknown ones" in printed
    assert "warning" not in printed
    table = artifacts.read_table(out, artifacts.TEST_PATIENTS)
    assert table["image_id"].tolist() == [test_id]
    assert table["patient_id"].tolist() == [""]
    assert table["in_training"].isna().all()
    for patient, expected in (("patient-0", 1), ("somebody else", 0)):
        lines = ["ImageId,PatientId", *known, f"{test_id},{patient}"]
        assert with_patients_file(out, lines) == unknown
        text = (out / artifacts.TEST_PATIENTS.path).read_text()
        assert text.endswith(f",{expected}\n")
        assert patient not in text
        assert ("are optimistic" in capsys.readouterr().out) == bool(expected)


def test_without_test_images_no_table_of_their_patients_is_left(output):
    out, tiny = output
    run_stage(STAGE, "--output", out, "--folds", 2)
    before = (out / "folds.csv").read_bytes()
    assert (out / artifacts.TEST_PATIENTS.path).exists()
    (tiny.folder / "stage_2_sample_submission.csv").unlink()
    flags = ["--size", 32, "--workers", 1]
    run_stage("00_prepare_data.py", "--input", tiny.folder, "--output", out, *flags)
    run_stage(STAGE, "--output", out, "--folds", 2)
    assert not (out / artifacts.TEST_PATIENTS.path).exists()
    assert (out / "folds.csv").read_bytes() == before
    lineage.folded(out)


def test_unknown_patients_are_warned_about_with_the_place_where_they_are_published(output, capsys):
    out, tiny = output
    run_stage(STAGE, "--output", out, "--folds", 2)
    assert "warning" not in capsys.readouterr().out  # two images per patient
    each = {image_id: f"{number}" for number, image_id in enumerate(tiny.masks)}
    manifest = artifacts.read_table(out, artifacts.MANIFEST)
    train = manifest["split"] == artifacts.TRAIN
    for patients in (each, dict.fromkeys(each, "")):
        patient_id = manifest["image_id"].map(patients).where(train, "")
        artifacts.write_table(out, artifacts.MANIFEST, manifest.assign(patient_id=patient_id))
        body = records.read(out, artifacts.PREPARED)
        kept = {name: body[name] for name in (artifacts.TRAINING_IMAGES, artifacts.TEST_IMAGES)}
        outputs = list(body["outputs"])
        records.write(out, artifacts.PREPARED, settings={}, inputs={}, outputs=outputs, **kept)
        run_stage(STAGE, "--output", out, "--folds", 2, "--overwrite")
        printed = capsys.readouterr().out
        assert "warning: 10 patients for 10 images" in printed
        assert "nih_id.csv (columns Kaggle_ID,NIH_ID): https://www.kaggle.com/c/" in printed


def test_a_leak_stops_the_stage_before_anything_is_written(output, monkeypatch):
    out, _ = output
    monkeypatch.setattr(folds, "leaks", lambda train, table: {"patients_in_several_folds": 1})
    with pytest.raises(BadInput, match="the folds leak"):
        run_stage(STAGE, "--output", out, "--folds", 2)
    assert not (out / "folds.csv").exists()


def test_one_fold_is_a_usage_error(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        run_stage(STAGE, "--output", tmp_path, "--folds", 1)
    assert caught.value.code == 2
    assert "at least 2" in capsys.readouterr().err


def test_ids_that_differ_for_every_image_leave_unseen_patients_unknown():
    """SIIM-ACR's PatientID: a different one in every file, whoever is shown."""
    train = pd.DataFrame(
        {
            "image_id": list("abc"),
            "patient_id": ["p", "q", "r"],
            "sha256": ["1", "2", "3"],
        }
    )
    test = pd.DataFrame(
        {"image_id": list("xyz"), "patient_id": ["s", "p", "t"], "sha256": ["4", "5", "1"]}
    )
    assert folds.are_doubtful(train)
    assert folds.seen_in_training(train, test)["in_training"].tolist() == [0, 1, 1]
    doubtful = folds.seen_in_training(train, test, doubtful=True)["in_training"]
    assert doubtful.isna().tolist() == [True, False, False]
    assert doubtful.tolist()[1:] == [1, 1]  # the same id, and the same pixels, still say so
    assert not folds.are_doubtful(train.assign(patient_id=["p", "p", "q"]))
    assert folds.are_doubtful(train.assign(patient_id=["p", "p", ""]))


def test_stage_01_calls_no_patient_unseen_by_doubtful_ids(tmp_path):
    made = tiny_input(tmp_path / "input", train=8, test=2)
    for path in made.folder.rglob("*.dcm"):  # each file its own patient, as in SIIM-ACR
        dataset = pydicom.dcmread(path)
        dataset.PatientID = f"uuid-{path.stem}"
        dataset.save_as(path)
    output = tmp_path / "output"
    run_on(output, "00_prepare_data.py", "--input", made.folder, "--size", 64)
    run_on(output, "01_make_folds.py", "--folds", 2)
    table = artifacts.read_table(output, artifacts.TEST_PATIENTS)
    assert (table["patient_id"] != "").all()
    assert table["in_training"].isna().all()
