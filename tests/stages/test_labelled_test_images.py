"""Labels of test images: scored once, used for nothing else, and noticed when they change."""

import csv
import shutil

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from pneumothorax import rle
from pneumothorax.compute import checkpoint
from pneumothorax.errors import BadInput
from pneumothorax.pipeline import artifacts, lineage, records
from tests.helpers.dicoms import write_dicom
from tests.helpers.images import disc, noise
from tests.helpers.labelling import label_test_images
from tests.helpers.stages import (
    files_below,
    run_all,
    run_on,
    tiny_input,
    train_from_tiny,
    write_lines,
)

RUN = artifacts.Run("tiny")
SUBMISSION = artifacts.Submission("tiny")
MORE = ["ID_twin", "ID_stranger", "ID_other", "ID_unlabelled"]


def mask_rows(*discs):
    return tuple(rle.encode(disc(128, *each)) for each in discs)


LABELS = {
    "ID_000000000": mask_rows((64, 42, 16)),
    "ID_000000001": (),
    "ID_000000002": mask_rows((30, 30, 20), (36, 30, 20)),  # they overlap
    "ID_twin": (),
    "ID_stranger": mask_rows((90, 90, 10)),
    "ID_other": mask_rows((64, 64, 30)),
}
OTHER_LABELS = {
    image_id: () if rows else mask_rows((50, 50, 9)) for image_id, rows in LABELS.items()
}
UNSEEN = ["ID_000000001", "ID_000000002", "ID_other"]


@pytest.fixture(scope="module")
def scored(finished, config, tmp_path_factory):
    """(input, output) of a complete run with seven test images, six of them labelled.

    Patients: one test image shows a training patient, one has the pixels of a training image,
    two show one new person, one another, and two are unknown.
    """
    made, output = finished
    folder = tmp_path_factory.mktemp("scored")
    shutil.copytree(made.folder, folder / "input")
    shutil.copytree(output, folder / "output")
    images = folder / "input" / "stage_2_images"
    write_dicom(images / "ID_twin.dcm", noise(1), jpeg=True, PatientID="")  # training image 1
    for number, image_id in enumerate(MORE[1:]):
        write_dicom(images / f"{image_id}.dcm", noise(70 + number), jpeg=True, PatientID="")
    with open(folder / "input" / "stage_2_sample_submission.csv", "a") as file:
        file.writelines(f"{image_id},-1\n" for image_id in MORE)
    # The patients of the training images are those of the DICOM files: the folds stay the same.
    people = {**made.patients, made.test_ids[0]: "patient-3", "ID_other": "someone"}
    people |= dict.fromkeys(made.test_ids[1:], "somebody")
    path = folder / "patients.csv"
    write_lines(path, ["ImageId,PatientId", *(f"{i},{who}" for i, who in people.items())])
    run_all(folder / "input", folder / "output", config, stages=[0])
    run_on(folder / "output", "01_make_folds.py", "--folds", 2, "--patients", path)
    run_all(folder / "input", folder / "output", config, stages=[2, 3])
    label_test_images(folder / "output", LABELS)
    run_on(folder / "output", "04_submit.py", "--run", "tiny")
    return folder


@pytest.fixture
def changeable(scored, tmp_path):
    """A copy of the folder, to change."""
    shutil.copytree(scored, tmp_path / "scored")
    return tmp_path / "scored"


def submitted_rows(output):
    with open(output / SUBMISSION.csv, newline="") as file:
        return dict(list(csv.reader(file))[1:])


def scores_of_test_images(output):
    return artifacts.read_table(output, SUBMISSION.test_scores).set_index("row")


def test_the_folds_and_networks_do_not_depend_on_the_test_images(finished, scored):
    _, output = finished
    for path in (artifacts.FOLDS.path, *(RUN.fold(fold).best_weights for fold in (0, 1))):
        assert (scored / "output" / path).read_bytes() == (output / path).read_bytes()
    table = artifacts.read_table(scored / "output", artifacts.TEST_PATIENTS)
    assert table.set_index("image_id")["in_training"].fillna(-1).to_dict() == {
        "ID_000000000": 1,
        "ID_000000001": 0,
        "ID_000000002": 0,
        "ID_twin": 1,
        "ID_stranger": -1,
        "ID_other": 0,
        "ID_unlabelled": -1,
    }
    assert records.read(scored / "output", artifacts.FOLDED)["test_leaks"] == {
        "images": 7,
        "patient_in_training": 2,
        "unseen": 3,
        "unknown": 2,
        "patients_in_training": 2,
    }


def test_the_scores_are_those_of_the_submitted_masks_on_exactly_the_right_images(scored):
    output = scored / "output"
    texts, images = submitted_rows(output), artifacts.read_table(output, SUBMISSION.test_images)
    assert sorted(images["image_id"]) == sorted(LABELS)
    assert images.set_index("image_id")["rle"].to_dict() == {i: texts[i] for i in LABELS}
    dice, positive = {}, {}
    for image_id, rows in LABELS.items():
        truth = np.bitwise_or.reduce(
            [np.zeros((128, 128), np.uint8), *(rle.decode(text, (128, 128)) for text in rows)]
        )
        mask = rle.decode(texts[image_id], (128, 128))
        total = int(truth.sum()) + int(mask.sum())
        dice[image_id] = 2 * int((truth & mask).sum()) / total if total else 1.0
        positive[image_id] = bool(truth.any())
    table = scores_of_test_images(output)
    for row, ids in ((artifacts.TEST_ALL, list(LABELS)), (artifacts.TEST_UNSEEN, UNSEEN)):
        assert table.at[row, "images"] == len(ids)
        assert table.at[row, "positives"] == sum(positive[i] for i in ids)
        assert table.at[row, "siim_dice"] == pytest.approx(np.mean([dice[i] for i in ids]))
        own = [dice[i] for i in ids if positive[i]]
        assert table.at[row, "positive_dice"] == pytest.approx(np.mean(own))
        p = images.set_index("image_id")["p_positive"]
        auc = roc_auc_score([positive[i] for i in ids], p[ids])
        assert table.at[row, "auc"] == pytest.approx(auc)
        empty = f"{artifacts.ALL_EMPTY}, {row}"
        assert table.at[empty, "siim_dice"] == pytest.approx(
            1 - np.mean([positive[i] for i in ids])
        )
    settled, claimed = table.loc[[artifacts.TEST_ALL, artifacts.TEST_CLAIMED], "siim_dice"]
    assert claimed >= settled


def test_the_last_lines_give_the_test_scores_and_the_gap(scored, capsys):
    run_on(scored / "output", "04_submit.py", "--run", "tiny")
    lines = capsys.readouterr().out.splitlines()
    table = scores_of_test_images(scored / "output")
    own, unseen = table.loc[artifacts.TEST_ALL], table.loc[artifacts.TEST_UNSEEN]
    claimed = table.at[artifacts.TEST_CLAIMED, "siim_dice"]
    gap = claimed - own["siim_dice"]
    # 4 of 6 and 2 of 3 images are positive.
    assert (
        f"test images: SIIM Dice {own['siim_dice']:.4f} ({own['siim_dice_low']:.4f} to "
        f"{own['siim_dice_high']:.4f}), all-empty baseline 0.3333, 6 images"
    ) in lines
    assert (
        f"unseen patients: SIIM Dice {unseen['siim_dice']:.4f} ({unseen['siim_dice_low']:.4f} to "
        f"{unseen['siim_dice_high']:.4f}), all-empty baseline 0.3333, 3 images"
    ) in lines
    assert f"thresholds fitted on the test labels would claim {claimed:.4f} ({gap:+.4f})" in lines


def test_other_test_labels_change_the_test_scores_and_nothing_else(changeable, config):
    output = changeable / "output"
    before, fitted = files_below(output), records.read(output, SUBMISSION.record)
    label_test_images(output, OTHER_LABELS)
    patients = changeable / "patients.csv"
    run_on(output, "01_make_folds.py", "--folds", 2, "--patients", patients)
    run_all(changeable / "input", output, config, stages=[2, 3, 4])
    after, again = files_below(output), records.read(output, SUBMISSION.record)
    changed = {path for path in before | after if before.get(path) != after.get(path)}
    rewritten = {path for path in changed if before[path][0] == after[path][0]}
    assert changed - rewritten == {
        artifacts.TEST_LABELS.path,
        artifacts.PREPARED.path,
        SUBMISSION.record.path,
        SUBMISSION.test_scores.path,
        SUBMISSION.test_images.path,
    }
    assert all(path.startswith(SUBMISSION.folder) for path in rewritten)
    assert SUBMISSION.csv in rewritten
    for fact in set(fitted) - {"inputs", "outputs"}:
        assert again[fact] == fitted[fact], fact
    assert {"final", "by_fold", "weights", "calibration"} <= set(fitted)


def test_networks_trained_next_to_other_test_labels_are_the_same(
    tmp_path, config, without_pictures
):
    """From scratch, through every stage: no earlier result can stand in for a new one."""
    made = tiny_input(tmp_path / "input", train=8, test=4)
    found = []
    for number, positives in enumerate((made.test_ids[:1], made.test_ids[1:])):
        rows = {image_id: mask_rows((64, 64, 20)) for image_id in positives}
        lines = [f"{i},{rows.get(i, ('-1',))[0]}" for i in made.test_ids]
        write_lines(made.folder / "test-rle.csv", ["ImageId,EncodedPixels", *lines])
        output = tmp_path / f"output{number}"
        run_all(made.folder, output, config, "--set", "epochs=1", stages=range(5))
        assert artifacts.label_rows(output, artifacts.TEST_LABELS) == {
            image_id: rows.get(image_id, ()) for image_id in sorted(made.test_ids)
        }
        facts = records.read(output, SUBMISSION.record)
        fitted = {name: facts[name] for name in ("final", "by_fold", "weights", "calibration")}
        weights = [
            checkpoint.load(output / RUN.fold(fold).best_weights)["network"] for fold in (0, 1)
        ]
        same = ["manifest.csv", "labels.csv", "folds.csv", SUBMISSION.csv]
        same += [RUN.probability_map(artifacts.TEST, image_id) for image_id in made.test_ids]
        tables = {path: (output / path).read_bytes() for path in same}
        scores = (output / SUBMISSION.test_scores.path).read_bytes()
        found.append((weights, fitted, tables, scores))
    (weights, fitted, tables, scores), (other, other_fitted, other_tables, other_scores) = found
    for one, two in zip(weights, other, strict=True):
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)
    assert fitted == other_fitted
    assert tables == other_tables
    assert scores != other_scores


def test_other_test_labels_change_no_blend_weight(changeable, config):
    output, blend = changeable / "output", artifacts.Submission("blend")
    train_from_tiny(output, config, "--set", "epochs=1")
    run_on(output, "03_predict.py", "--run", "second")
    found = []
    for labels in (LABELS, OTHER_LABELS):
        label_test_images(output, labels)
        flags = ["--runs", "tiny,second", "--name", "blend", "--fill-holes", "--image-threshold"]
        run_on(output, "04_submit.py", *flags)
        facts = records.read(output, blend.record)
        scores = (output / blend.test_scores.path).read_bytes()
        found.append((facts, (output / blend.csv).read_bytes(), scores))
    (facts, rows, scores), (other_facts, other_rows, other_scores) = found
    for fact in ("weights", "calibration", "final", "by_fold", "gain"):
        assert facts[fact] == other_facts[fact], fact
    assert len(facts["weights"]["final"]) == 2
    assert rows == other_rows
    assert scores != other_scores


def test_changed_test_labels_and_patients_make_the_submission_out_of_date_and_no_network(
    changeable,
):
    output = changeable / "output"
    label_test_images(output, OTHER_LABELS)
    lineage.predicted(output, "tiny")
    with pytest.raises(BadInput, match=r"test labels changed since 04_submit\.py --name tiny ran"):
        run_on(output, "05_report.py")
    run_on(output, "04_submit.py", "--run", "tiny")
    lineage.submitted(output, "tiny")
    path = changeable / "patients.csv"
    path.write_text(path.read_text().replace("someone", "patient-0"))
    run_on(output, "01_make_folds.py", "--folds", 2, "--patients", path)
    lineage.predicted(output, "tiny")
    with pytest.raises(BadInput, match=r"test patients changed since 04_submit\.py"):
        run_on(output, "05_report.py")
    run_on(output, "04_submit.py", "--run", "tiny")
    assert scores_of_test_images(output).at[artifacts.TEST_UNSEEN, "images"] == 2


def test_new_test_images_need_stage_01_again_before_labelled_ones_are_scored(changeable, config):
    output = changeable / "output"
    folder = changeable / "input"
    write_dicom(folder / "stage_2_images" / "ID_new.dcm", noise(99), jpeg=True)
    with open(folder / "stage_2_sample_submission.csv", "a") as file:
        file.write("ID_new,-1\n")
    run_all(folder, output, config, stages=[0])
    label_test_images(output, LABELS)
    run_all(folder, output, config, stages=[2, 3])
    with pytest.raises(BadInput, match=r"test images changed since 01_make_folds\.py ran"):
        run_on(output, "04_submit.py", "--run", "tiny")


def test_test_images_beyond_the_sample_submission_are_scored_if_labelled_and_never_submitted(
    changeable,
):
    output = changeable / "output"
    fewer = changeable / "fewer.csv"
    write_lines(fewer, ["ImageId,EncodedPixels", "ID_unlabelled,-1", "ID_000000001,-1"])
    flags = ["--run", "tiny", "--sample-submission", fewer]
    before = submitted_rows(output)
    run_on(output, "04_submit.py", *flags)
    rows = submitted_rows(output)
    assert list(rows) == ["ID_unlabelled", "ID_000000001"]
    assert rows == {image_id: before[image_id] for image_id in rows}
    assert scores_of_test_images(output).at[artifacts.TEST_ALL, "images"] == 6
    write_lines(fewer, ["ImageId,EncodedPixels", "ID_000000001,-1"])
    with pytest.raises(BadInput, match=r"\(1 id\)\n  ID_unlabelled: not in the sample submission$"):
        run_on(output, "04_submit.py", *flags)


@pytest.mark.parametrize("gone", ["labels", "maps"])
def test_without_labels_or_maps_no_earlier_test_scores_are_left(changeable, capsys, gone):
    output = changeable / "output"
    if gone == "labels":
        label_test_images(output, {})
    else:
        run_on(output, "03_predict.py", "--run", "tiny", "--split", "oof")
    capsys.readouterr()
    run_on(output, "04_submit.py", "--run", "tiny")
    assert "test images: SIIM Dice" not in capsys.readouterr().out
    assert not (output / SUBMISSION.test_scores.path).exists()
    assert not (output / SUBMISSION.test_images.path).exists()
    lineage.submitted(output, "tiny")
