"""Every layout is found by looking, and gives the same images, masks and splits."""

import gzip
import os
import shutil
import zipfile

import cv2
import numpy as np
import pytest

from pneumothorax import png, rle
from pneumothorax.data import discovery, labels
from pneumothorax.data.layouts import choose
from pneumothorax.data.layouts import siim_png as siim_png_layout
from pneumothorax.data.layouts.choose import Given
from pneumothorax.data.layouts.listed import group_masks
from pneumothorax.errors import BadInput
from pneumothorax.pipeline import artifacts, records
from tests.helpers.dicoms import write_dicom
from tests.helpers.images import disc, noise
from tests.helpers.stages import run_stage, write_lines

SIZE = 64
MASKS = {
    "a": disc(SIZE, 20, 20, 6),
    "b": np.zeros((SIZE, SIZE), np.uint8),
    "c": disc(SIZE, 40, 30, 9),
    "d": np.zeros((SIZE, SIZE), np.uint8),
}
IMAGES = {name: noise(number, SIZE) for number, name in enumerate(MASKS)}


def write_png(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return path


def pairs(folder, images="images", masks="masks", names=tuple(MASKS), pattern="{}.png"):
    """Folders of images and masks, 0 and 255."""
    for name in names:
        write_png(folder / images / pattern.format(name), IMAGES[name])
        write_png(folder / masks / f"{name}.png", MASKS[name] * 255)
    return folder


def run_lengths(path, names=tuple(MASKS)):
    write_lines(
        path, ["ImageId,EncodedPixels", *(f"{name},{rle.encode(MASKS[name])}" for name in names)]
    )


def siim_png(folder, *, tables=True):
    """The layout of the re-upload: a and b for training, d and c for testing."""
    root = folder / "siim-acr-pneumothorax"
    names = {"a": "1_train_1_", "b": "2_train_0_", "c": "3_test_1_", "d": "4_test_0_"}
    for name, stem in names.items():
        write_png(root / "png_images" / f"{stem}.png", IMAGES[name])
        write_png(root / "png_masks" / f"{stem}.png", MASKS[name] * 255)
    for split, chosen in (("train", "ab"), ("test", "dc")):
        rows = [f"{names[name]}.png,{name},{names[name][-2]}" for name in chosen]
        if tables:
            write_lines(
                root / f"stage_1_{split}_images.csv", ["new_filename,ImageId,has_pneumo", *rows]
            )
    return folder


def prepared(source, output, *flags):
    """Run stage 00; -> the manifest, indexed by image id."""
    run_stage(
        "00_prepare_data.py",
        "--input",
        source,
        "--output",
        output,
        "--size",
        SIZE,
        "--workers",
        0,
        *flags,
    )
    return artifacts.read_table(output, artifacts.MANIFEST).set_index("image_id")


def refused(source, output, *flags):
    with pytest.raises(BadInput) as caught:
        prepared(source, output, *flags)
    return str(caught.value)


def layout_of(output):
    return records.read(output, artifacts.PREPARED)["settings"]["layout"]


def rejected(output):
    table = artifacts.read_table(output, artifacts.REJECTED)
    return dict(zip(table["source"], table["code"], strict=True))


def cached(output, image_id):
    """The cached image, and the mask or None."""
    cache = artifacts.Cache(SIZE)
    mask = output / cache.mask(image_id)
    return (
        cv2.imread(str(output / cache.image(image_id)), cv2.IMREAD_UNCHANGED),
        cv2.imread(str(mask), cv2.IMREAD_UNCHANGED) if mask.exists() else None,
    )


def assert_holds(output, *, training, test=()):
    """The manifest has these ids, and the cache their pixels and the training masks."""
    manifest = artifacts.read_table(output, artifacts.MANIFEST).set_index("image_id")
    assert dict(manifest["split"]) == {
        **dict.fromkeys(training, "train"),
        **dict.fromkeys(test, "test"),
    }
    for image_id in manifest.index:
        image, mask = cached(output, image_id)
        np.testing.assert_array_equal(image, IMAGES[image_id])
        if image_id in test or not MASKS[image_id].any():
            assert mask is None
            assert manifest.loc[image_id, ["positive", "mask_pixels"]].tolist() == [0, 0]
        else:
            np.testing.assert_array_equal(mask, MASKS[image_id] * 255)
            assert manifest.loc[image_id, "mask_pixels"] == MASKS[image_id].sum()
    expected = {name: (rle.encode(MASKS[name]),) for name in training if MASKS[name].any()}
    assert artifacts.label_rows(output) == expected


def assert_test_labels(output, *names):
    expected = {name: (rle.encode(MASKS[name]),) if MASKS[name].any() else () for name in names}
    assert artifacts.label_rows(output, artifacts.TEST_LABELS) == expected


def submission_ids(output):
    lines = (output / artifacts.SAMPLE_SUBMISSION).read_text("utf-8").splitlines()
    assert lines[0] == "ImageId,EncodedPixels"
    return [line.split(",")[0] for line in lines[1:]]


# Each layout, from a folder made by hand


def test_dicom_files_with_run_lengths_are_siim_dicom(tmp_path, capsys):
    for name, image in IMAGES.items():
        write_dicom(tmp_path / "in" / "deep" / f"{name}.dcm", image)
    run_lengths(tmp_path / "in" / "train-rle.csv")
    prepared(tmp_path / "in", tmp_path / "out")
    assert_holds(tmp_path / "out", training="abcd")
    assert layout_of(tmp_path / "out") == "siim-dicom"
    said = "layout siim-dicom: DICOM files with the run lengths of train-rle.csv"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".dicom", ".DCM", ".dicm", ".Dicom"])
def test_dicom_files_may_have_other_suffixes(tmp_path, suffix):
    for name in MASKS:
        write_dicom(tmp_path / "in" / f"{name}{suffix}", IMAGES[name])
    run_lengths(tmp_path / "in" / "train-rle.csv")
    prepared(tmp_path / "in", tmp_path / "out")
    assert_holds(tmp_path / "out", training="abcd")
    assert layout_of(tmp_path / "out") == "siim-dicom"


def test_without_sop_instance_uid_the_listed_id_of_file_meta_or_name_counts(tmp_path):
    no_uid = {"SOPInstanceUID": None}
    for name, stem, meta in (("a", "x", "a"), ("b", "b", "1.2.3"), ("c", "c", "c")):
        meta_tags = {"MediaStorageSOPInstanceUID": meta}
        path = tmp_path / "in" / f"{stem}.dicom"
        write_dicom(path, IMAGES[name], file_meta=meta_tags, **no_uid)
    run_lengths(tmp_path / "in" / "train-rle.csv", names="abc")
    prepared(tmp_path / "in", tmp_path / "out")
    assert_holds(tmp_path / "out", training="abc")


def test_labels_of_test_images_lie_next_to_those_for_training(tmp_path):
    for name, image in IMAGES.items():
        write_dicom(tmp_path / "in" / f"{name}.dcm", image)
    run_lengths(tmp_path / "in" / "train-rle.csv", "ab")
    run_lengths(tmp_path / "in" / "test-rle.csv", "dc")
    prepared(tmp_path / "in", tmp_path / "out")
    assert_holds(tmp_path / "out", training="ab", test="cd")
    assert_test_labels(tmp_path / "out", "c", "d")
    assert submission_ids(tmp_path / "out") == ["d", "c"]


def test_png_files_named_by_id_with_run_lengths_are_images_rle(tmp_path):
    for name, image in IMAGES.items():
        write_png(tmp_path / "in" / "train_png" / f"{name}.png", image)
    run_lengths(tmp_path / "in" / "train-rle.csv")
    prepared(tmp_path / "in", tmp_path / "out")
    assert_holds(tmp_path / "out", training="abcd")
    assert layout_of(tmp_path / "out") == "images-rle"


def test_a_table_of_targets_must_agree_with_the_run_lengths(tmp_path):
    for name, image in IMAGES.items():
        write_png(tmp_path / "in" / f"{name}.png", image)
    run_lengths(tmp_path / "in" / "train-rle.csv")
    write_lines(tmp_path / "in" / "train.csv", ["ImageId,target", "a,1", "b,0", "c,1", "d,0"])
    prepared(tmp_path / "in", tmp_path / "out")
    write_lines(tmp_path / "in" / "train.csv", ["ImageId,target", "a,0", "b,1", "c,1", "d,0"])
    message = refused(tmp_path / "in", tmp_path / "out")
    assert "2 labels do not fit the image" in message
    assert "label of a: negative by the table, but with a mask" in message
    assert "label of b: positive by the table, but with no mask or an empty one" in message


def test_a_target_is_an_annotation_too(tmp_path):
    for name, image in IMAGES.items():
        write_png(tmp_path / "in" / f"{name}.png", image)
    run_lengths(tmp_path / "in" / "train-rle.csv", "abc")
    write_lines(tmp_path / "in" / "train.csv", ["ImageId,target", "a,1", "d,0"])
    prepared(tmp_path / "in", tmp_path / "out")
    assert_holds(tmp_path / "out", training="abcd")
    write_lines(tmp_path / "in" / "train.csv", ["ImageId,target", "a,1", "d,1"])
    assert "label of d: positive by the table" in refused(tmp_path / "in", tmp_path / "out")


def test_dicom_and_png_files_with_run_lengths_work_together(tmp_path):
    for name in "ab":
        write_dicom(tmp_path / "in" / f"{name}.dcm", IMAGES[name])
    for name in "cd":
        write_png(tmp_path / "in" / f"{name}.png", IMAGES[name])
    run_lengths(tmp_path / "in" / "train-rle.csv")
    prepared(tmp_path / "in", tmp_path / "out")
    assert_holds(tmp_path / "out", training="abcd")
    assert layout_of(tmp_path / "out") == "images-rle"


def test_dicom_and_png_of_one_id_are_duplicates(tmp_path):
    for name in "abc":
        write_png(tmp_path / "in" / f"{name}.png", IMAGES[name])
    write_dicom(tmp_path / "in" / "c.dcm", IMAGES["c"])
    run_lengths(tmp_path / "in" / "train-rle.csv", "abc")
    assert "DUPLICATE_ID" in refused(tmp_path / "in", tmp_path / "out")
    assert rejected(tmp_path / "out") == {"c.png": "DUPLICATE_ID", "c.dcm": "DUPLICATE_ID"}


def test_the_png_re_upload_takes_ids_from_its_tables(tmp_path):
    manifest = prepared(siim_png(tmp_path / "in"), tmp_path / "out")
    assert_holds(tmp_path / "out", training="ab", test="cd")
    assert_test_labels(tmp_path / "out", "c", "d")
    assert submission_ids(tmp_path / "out") == ["d", "c"]  # in the order of the table
    source = "siim-acr-pneumothorax/png_images/1_train_1_.png"
    assert manifest.loc["a", ["source", "decoder"]].tolist() == [source, "libpng"]
    assert layout_of(tmp_path / "out") == "siim-png"


def beside_the_competitions_files(folder, test_ids=("ID_1", "ID_2"), suffix=".dcm"):
    """The PNG re-upload, and what Kaggle's competition page serves: stage 2."""
    siim_png(folder)
    write = write_dicom if suffix == ".dcm" else write_png
    for number, name in enumerate(test_ids):
        write(folder / "stage_2_images" / f"{name}{suffix}", noise(10 + number, SIZE))
    run_lengths(folder / "stage_2_train.csv")  # of the same images as the PNG files
    rows = [f"{name},1 1" for name in reversed(test_ids)]
    write_lines(folder / "stage_2_sample_submission.csv", ["ImageId,EncodedPixels", *rows])
    return folder


@pytest.mark.parametrize("suffix", [".dcm", ".png"])
def test_the_png_re_upload_beside_the_competitions_files_makes_a_submission(
    tmp_path, suffix, capsys
):
    folder = beside_the_competitions_files(tmp_path / "in", suffix=suffix)
    manifest = prepared(folder, tmp_path / "out")
    out = capsys.readouterr().out
    assert layout_of(tmp_path / "out") == "siim-png"
    assert "test images, too: those that stage_2_sample_submission.csv lists" in out
    assert "not used: stage_2_train.csv, as the mask images are the labels" in out
    assert "4 test images, 2 of them labelled (1 with pneumothorax): only scored" in out
    splits = {"a": "train", "b": "train", **dict.fromkeys(["c", "d", "ID_1", "ID_2"], "test")}
    assert dict(manifest["split"]) == splits
    assert submission_ids(tmp_path / "out") == ["ID_2", "ID_1"]
    assert_test_labels(tmp_path / "out", "c", "d")
    for number, name in enumerate(["ID_1", "ID_2"]):
        np.testing.assert_array_equal(cached(tmp_path / "out", name)[0], noise(10 + number, SIZE))


def test_a_sample_submission_without_its_images_does_not_disturb_the_png_files(tmp_path, capsys):
    folder = beside_the_competitions_files(tmp_path / "in")
    shutil.make_archive(folder / "stage_2_images", "zip", folder / "stage_2_images")
    shutil.rmtree(folder / "stage_2_images")
    prepared(folder, tmp_path / "out")
    assert_holds(tmp_path / "out", training="ab", test="cd")
    assert submission_ids(tmp_path / "out") == ["d", "c"]
    out = capsys.readouterr().out
    assert "not used: stage_2_sample_submission.csv, as none of its test images is here" in out
    assert "1 archive is not read (unpack what you need): stage_2_images.zip" in out


def test_without_a_sample_submission_images_beside_the_png_files_are_no_test_images(
    tmp_path, capsys
):
    folder = beside_the_competitions_files(tmp_path / "in")
    sample = (folder / "stage_2_sample_submission.csv").rename(tmp_path / "sample.csv")
    prepared(folder, tmp_path / "out", "--layout", "siim-png")
    assert_holds(tmp_path / "out", training="ab", test="cd")
    assert "without a sample submission (--sample-submission) the images" in capsys.readouterr().out
    prepared(folder, tmp_path / "out", "--layout", "siim-png", "--sample-submission", sample)
    assert submission_ids(tmp_path / "out") == ["ID_2", "ID_1"]


def test_the_sample_submissions_name_may_have_capital_letters(tmp_path):
    folder = beside_the_competitions_files(tmp_path / "in")
    sample = folder / "stage_2_sample_submission.csv"
    sample.rename(folder / "Stage_2_Sample_Submission.CSV")
    prepared(folder, tmp_path / "out")
    assert submission_ids(tmp_path / "out") == ["ID_2", "ID_1"]


def test_a_zipped_sample_submission_is_refused_with_the_command_that_unpacks_it(tmp_path):
    folder = beside_the_competitions_files(tmp_path / "in")
    sample = folder / "stage_2_sample_submission.csv"
    with zipfile.ZipFile(f"{sample}.zip", "w") as packed:
        packed.write(sample, sample.name)
    sample.unlink()
    message = refused(folder, tmp_path / "out")
    assert "stage_2_sample_submission.csv.zip is a zip archive" in message
    assert "unpack it with python -m zipfile -e" in message


def test_a_test_image_that_is_missing_beside_the_png_files_is_refused(tmp_path):
    folder = beside_the_competitions_files(tmp_path / "in")
    (folder / "stage_2_images" / "ID_1.dcm").unlink()
    message = refused(folder, tmp_path / "out")
    assert message.startswith("1 listed id has no image")
    assert "ID_1" in message


def test_masks_are_not_test_images_whatever_their_names(tmp_path):
    folder = beside_the_competitions_files(tmp_path / "in")
    masks = folder / "siim-acr-pneumothorax" / "png_masks"
    (folder / "stage_2_images" / "ID_1.dcm").rename(masks / "ID_1.dcm")
    message = refused(folder, tmp_path / "out")
    assert message.startswith("1 listed id has no image")
    assert "1 mask has no image" in message


def test_a_training_image_of_the_png_files_cannot_be_in_the_sample_submission(tmp_path):
    folder = beside_the_competitions_files(tmp_path / "in", ("a", "ID_2"))
    message = refused(folder, tmp_path / "out", "--layout", "siim-png")
    assert message.startswith("1 id has a label and is in the sample submission")


def test_copies_of_the_png_files_beside_them_need_a_decision(tmp_path):
    """DICOM files, of a training image, of a labelled test image, and one that nothing lists."""
    folder = beside_the_competitions_files(tmp_path / "in")
    for name in ("a", "c"):
        write_dicom(folder / "dicom-images-train" / f"{name}.dcm", IMAGES[name])
    write_dicom(folder / "stage_2_images" / "ID_3.dcm", noise(12, SIZE))
    message = refused(folder, tmp_path / "out")
    assert "fits several layouts, siim-dicom and siim-png: choose with --layout" in message
    manifest = prepared(folder, tmp_path / "out", "--layout", "siim-png")
    assert sorted(manifest.index[manifest["split"] == "train"]) == ["a", "b"]
    assert manifest.loc["a", "source"].endswith("png_images/1_train_1_.png")
    assert submission_ids(tmp_path / "out") == ["ID_2", "ID_1"]
    assert rejected(tmp_path / "out") == {}


def test_dicom_files_that_are_not_named_by_id_are_still_a_layout(tmp_path):
    folder = siim_png(tmp_path / "in")
    for number, name in enumerate("ab"):
        write_dicom(folder / f"chest{number}.dcm", IMAGES[name], SOPInstanceUID=name)
    run_lengths(folder / "train-rle.csv", "ab")
    message = refused(folder, tmp_path / "out")
    assert "fits several layouts, siim-dicom and siim-png: choose with --layout" in message


def test_a_sample_submission_of_the_labelled_test_images_adds_nothing(tmp_path):
    folder = siim_png(tmp_path / "in")
    write_dicom(folder / "dicom-images-test" / "c.dcm", IMAGES["c"])
    write_lines(folder / "sample_submission.csv", ["ImageId,EncodedPixels", "c,-1", "d,-1"])
    prepared(folder, tmp_path / "out")
    assert_holds(tmp_path / "out", training="ab", test="cd")
    assert submission_ids(tmp_path / "out") == ["c", "d"]


@pytest.mark.parametrize("with_labels", [True, False])
def test_the_competitions_files_alone_are_refused_with_the_way_out(tmp_path, with_labels):
    folder = beside_the_competitions_files(tmp_path / "in")
    shutil.rmtree(folder / "siim-acr-pneumothorax")
    if not with_labels:
        (folder / "stage_2_train.csv").unlink()
    (folder / "stage_2_images" / "ID_1.dcm").write_bytes(b"damaged")
    message = refused(folder, tmp_path / "out", "--allow-missing")
    assert message.startswith("all 2 DICOM files")
    assert "Kaggle's competition page no longer has training images; docs/your-data.md" in message
    assert "--layout" not in message


@pytest.mark.parametrize("flag", ["--labels", "--layout"])
def test_the_competitions_files_are_not_taken_apart_from_the_png_files(tmp_path, flag):
    folder = beside_the_competitions_files(tmp_path / "in")
    value = {"--labels": folder / "stage_2_train.csv", "--layout": "siim-dicom"}[flag]
    message = refused(folder, tmp_path / "out", flag, value)
    assert "for the PNG files here pass --layout siim-png" in message


def test_a_test_image_with_the_pixels_of_a_training_image_is_counted(tmp_path, capsys):
    folder = beside_the_competitions_files(tmp_path / "in")
    write_dicom(folder / "stage_2_images" / "ID_1.dcm", IMAGES["a"])
    prepared(folder, tmp_path / "out")
    out = capsys.readouterr().out
    assert "warning: 1 test image has the pixels of a training image" in out
    assert "they will share a fold" not in out


def test_a_table_may_name_files_that_could_not_be_ids(tmp_path):
    siim_png(tmp_path / "in")
    root = tmp_path / "in" / "siim-acr-pneumothorax"
    for folder in ("png_images", "png_masks"):
        (root / folder / "1_train_1_.png").rename(root / folder / "chest (1).png")
    table = root / "stage_1_train_images.csv"
    table.write_text(table.read_text().replace("1_train_1_.png", "chest (1).png"))
    prepared(tmp_path / "in", tmp_path / "out")
    assert_holds(tmp_path / "out", training="ab", test="cd")


def test_without_tables_the_file_names_say_split_and_label(tmp_path, capsys):
    prepared(siim_png(tmp_path / "in", tables=False), tmp_path / "out")
    manifest = artifacts.read_table(tmp_path / "out", artifacts.MANIFEST)
    assert dict(zip(manifest["image_id"], manifest["split"], strict=True)) == {
        "1_train_1_": "train",
        "2_train_0_": "train",
        "3_test_1_": "test",
        "4_test_0_": "test",
    }
    assert manifest["positive"].sum() == 1
    out = capsys.readouterr().out
    assert "so patients are unknown" in out
    assert "kaggle.com/datasets/vbookshelf" in out


def test_a_missing_table_is_named(tmp_path, capsys):
    root = siim_png(tmp_path / "in") / "siim-acr-pneumothorax"
    (root / "stage_1_test_images.csv").unlink()
    prepared(tmp_path / "in", tmp_path / "out")
    said = "warning: no stage_1_test_images.csv, so its images are not annotated"
    assert said in capsys.readouterr().out
    assert_holds(tmp_path / "out", training="ab")


def test_an_image_that_no_table_lists_is_not_used(tmp_path):
    siim_png(tmp_path / "in")
    root = tmp_path / "in" / "siim-acr-pneumothorax"
    write_png(root / "png_images" / "5_train_0_.png", noise(9, SIZE))
    write_png(root / "png_masks" / "5_train_0_.png", MASKS["b"])
    prepared(tmp_path / "in", tmp_path / "out")
    assert_holds(tmp_path / "out", training="ab", test="cd")
    assert set(rejected(tmp_path / "out").values()) == {"UNLABELLED"}


def test_a_table_that_contradicts_its_mask_is_listed(tmp_path):
    siim_png(tmp_path / "in")
    table = tmp_path / "in" / "siim-acr-pneumothorax" / "stage_1_train_images.csv"
    table.write_text(table.read_text().replace("a,1", "a,0").replace("b,0", "b,1"))
    message = refused(tmp_path / "in", tmp_path / "out")
    assert "label of a: negative by the table, but with a mask" in message
    assert "label of b: positive by the table, but with no mask or an empty one" in message


def test_errors_of_the_tables_are_listed_by_line(tmp_path):
    siim_png(tmp_path / "in")
    table = tmp_path / "in" / "siim-acr-pneumothorax" / "stage_1_train_images.csv"
    lines = ["1_train_1_.png,a,yes", "x.png,../x,0", "../y.png,y,0", "2_train_0_.png,b,0"]
    write_lines(table, ["new_filename,ImageId,has_pneumo", *lines, lines[-1]])
    message = refused(tmp_path / "in", tmp_path / "out")
    assert "line 2, 'a': expected 0 or 1, found 'yes'" in message
    assert "line 3, '../x': not an image id" in message
    assert "line 4, 'y': not the name of a file" in message
    assert "line 6, 'b': '2_train_0_.png' or its image is listed twice" in message


@pytest.mark.parametrize("masks", ["masks", "labels"])
def test_images_and_masks_of_the_same_name(tmp_path, masks):
    prepared(pairs(tmp_path / "in", masks=masks), tmp_path / "out")
    assert_holds(tmp_path / "out", training="abcd")
    assert layout_of(tmp_path / "out") == "images-masks"


def test_images_may_be_dicom_files_and_jpegs(tmp_path):
    folder = pairs(tmp_path / "in", names="ab")
    write_dicom(folder / "images" / "c.dcm", IMAGES["c"])
    write_png(folder / "masks" / "c.png", MASKS["c"] * 255)
    _, jpeg = cv2.imencode(".jpg", IMAGES["d"])
    (folder / "images" / "d.jpg").write_bytes(jpeg.tobytes())
    write_png(folder / "masks" / "d.png", MASKS["d"])
    manifest = prepared(folder, tmp_path / "out")
    assert sorted(manifest.index) == list("abcd")
    np.testing.assert_array_equal(
        cached(tmp_path / "out", "d")[0], cv2.imdecode(jpeg, cv2.IMREAD_GRAYSCALE)
    )


def test_several_masks_of_one_image_are_united(tmp_path):
    folder = pairs(tmp_path / "in")
    left, right = MASKS["a"].copy(), MASKS["a"].copy()
    left[:, 22:], right[:, :18] = 0, 0  # they overlap in columns 18 to 21
    (folder / "masks" / "a.png").unlink()
    write_png(folder / "masks" / "a_1.png", left * 255)
    write_png(folder / "masks" / "a_2.png", right * 255)
    prepared(folder, tmp_path / "out")
    assert_holds(tmp_path / "out", training="abcd")


def test_a_linked_mask_rejects_its_image_unless_links_are_followed(tmp_path):
    folder = pairs(tmp_path / "in")
    (folder / "masks" / "a.png").rename(tmp_path / "elsewhere.png")
    (folder / "masks" / "a.png").symlink_to(tmp_path / "elsewhere.png")
    refused(folder, tmp_path / "out")
    assert rejected(tmp_path / "out") == dict.fromkeys(
        ("images/a.png", "masks/a.png"), "NOT_A_FILE"
    )
    prepared(folder, tmp_path / "out", "--follow-symlinks")
    assert_holds(tmp_path / "out", training="abcd")


@pytest.mark.parametrize("layout", ["images-masks", "nnunet"])
def test_names_that_cannot_be_ids_are_refused(tmp_path, layout):
    if layout == "nnunet":
        folder, kinds = pairs(tmp_path / "in", "imagesTr", "labelsTr", "ab", "{}_0000.png"), "Tr"
    else:
        folder, kinds = pairs(tmp_path / "in", names="ab"), ""
    images, masks = ("imagesTr", "labelsTr") if kinds else ("images", "masks")
    end = "_0000" if kinds else ""
    write_png(folder / images / f"chest (1){end}.png", IMAGES["c"])
    write_png(folder / masks / "chest (1).png", MASKS["c"])
    refused(folder, tmp_path / "out")
    assert rejected(tmp_path / "out") == {f"{images}/chest (1){end}.png": "BAD_ID"}


def test_a_name_that_is_not_text_is_refused(tmp_path):
    folder = pairs(tmp_path / "in", names="ab")
    name = os.fsdecode(b"odd\xff.png")
    for kind in ("images", "masks"):
        shutil.copy(folder / kind / "a.png", folder / kind / name)
    refused(folder, tmp_path / "out")
    assert rejected(tmp_path / "out") == {"images/odd\\udcff.png": "BAD_ID"}


def test_masks_in_other_formats_reject_their_image(tmp_path):
    folder = pairs(tmp_path / "in")
    (folder / "masks" / "a.png").rename(folder / "masks" / "a.tif")
    write_lines(folder / "annotated.csv", ["ImageId", *"abcd"])
    (folder / "masks" / "a.tif").write_bytes(b"II*\0 a TIFF file")
    refused(folder, tmp_path / "out")
    assert rejected(tmp_path / "out") == {"images/a.png": "NOT_AN_IMAGE"}


def test_masks_of_test_images_are_no_labels_for_training(tmp_path):
    folder = pairs(tmp_path / "in")
    write_png(folder / "masks-test" / "b.png", MASKS["a"])  # b is a negative training image
    message = refused(folder, tmp_path / "out")
    assert "1 mask has no image" in message
    assert "masks-test/b.png" in message


def test_the_names_of_folders_may_have_capital_letters(tmp_path):
    prepared(pairs(tmp_path / "in", images="Images", masks="Masks"), tmp_path / "out")
    assert_holds(tmp_path / "out", training="abcd")


def test_a_folder_of_images_is_not_a_folder_of_masks(tmp_path):
    folder = pairs(tmp_path / "in")
    for given in (folder, folder / "images"):
        message = refused(folder, tmp_path / "out", "--labels", given)
        assert "holds the images, not their masks" in message


def test_what_annotated_csv_says_counts_whatever_columns_it_has(tmp_path):
    folder = pairs(tmp_path / "in")
    (folder / "masks" / "d.png").unlink()
    lines = ["reader,has_pneumo,ImageId", "bob,1,d"]
    write_lines(folder / "annotated.csv", lines)
    message = refused(folder, tmp_path / "out")
    assert "label of d: positive by the table, but with no mask or an empty one" in message


def test_an_image_without_mask_and_entry_is_not_annotated(tmp_path):
    folder = pairs(tmp_path / "in")
    (folder / "masks" / "d.png").unlink()
    prepared(folder, tmp_path / "out")
    assert_holds(tmp_path / "out", training="abc")
    assert rejected(tmp_path / "out") == {"images/d.png": "UNLABELLED"}
    write_lines(folder / "annotated.csv", ["ImageId,has_pneumo", "d,0"])
    prepared(folder, tmp_path / "out")
    assert_holds(tmp_path / "out", training="abcd")


def test_annotated_images_may_be_a_list_of_ids(tmp_path):
    folder = pairs(tmp_path / "in")
    (folder / "masks" / "d.png").unlink()
    write_lines(folder / "annotated.csv", ["ImageId", *"abcd"])
    prepared(folder, tmp_path / "out")
    assert_holds(tmp_path / "out", training="abcd")


def test_a_folder_of_test_images_may_have_masks(tmp_path):
    folder = pairs(tmp_path / "in", names="ab")
    pairs(folder, images="images-test", masks="masks-test", names="c")
    write_png(folder / "images-test" / "d.png", IMAGES["d"])
    prepared(folder, tmp_path / "out")
    assert_holds(tmp_path / "out", training="ab", test="cd")
    assert_test_labels(tmp_path / "out", "c")  # d has no mask: not annotated
    assert submission_ids(tmp_path / "out") == ["c", "d"]


def test_the_raw_folder_of_nnunet(tmp_path):
    folder = tmp_path / "in" / "Dataset001_Pneumothorax"
    pairs(folder, "imagesTr", "labelsTr", "ab", "{}_0000.png")
    pairs(folder, "imagesTs", "labelsTs", "cd", "{}_0000.png")
    for path in folder.glob("labelsT*/*.png"):  # nnU-Net's labels are 0 and 1
        write_png(path, MASKS[path.stem])
    (folder / "dataset.json").write_text("{}")
    prepared(tmp_path / "in", tmp_path / "out")
    assert_holds(tmp_path / "out", training="ab", test="cd")
    assert_test_labels(tmp_path / "out", "c", "d")
    assert layout_of(tmp_path / "out") == "nnunet"


def test_images_of_several_channels_are_refused(tmp_path):
    folder = pairs(tmp_path / "in", "imagesTr", "labelsTr", "ab", "{}_0000.png")
    write_png(folder / "imagesTr" / "a_0001.png", IMAGES["a"])
    message = refused(tmp_path / "in", tmp_path / "out")
    assert "1 file is not <case>_0000.png" in message
    assert "a_0001.png" in message


# Test images by list


def test_labelled_images_are_held_out_for_testing(tmp_path):
    for name, image in IMAGES.items():
        write_dicom(tmp_path / "in" / f"{name}.dcm", image)
    run_lengths(tmp_path / "in" / "train-rle.csv")
    write_lines(tmp_path / "holdout.csv", ["new,ImageId", "1,d", "2,c"])
    prepared(tmp_path / "in", tmp_path / "out", "--holdout", tmp_path / "holdout.csv")
    assert_holds(tmp_path / "out", training="ab", test="cd")
    assert_test_labels(tmp_path / "out", "c", "d")
    assert submission_ids(tmp_path / "out") == ["d", "c"]
    prepared(tmp_path / "in", tmp_path / "out")  # and back
    assert_holds(tmp_path / "out", training="abcd")
    assert not (tmp_path / "out" / artifacts.TEST_LABELS.path).exists()
    assert not (tmp_path / "out" / artifacts.SAMPLE_SUBMISSION).exists()


def test_only_labelled_images_can_be_held_out(tmp_path):
    write_lines(tmp_path / "holdout.csv", ["ImageId", "a", "e"])
    flags = ("--holdout", tmp_path / "holdout.csv")
    message = refused(pairs(tmp_path / "in"), tmp_path / "out", *flags)
    assert "holdout.csv: 1 image has no label" in message
    assert "e" in message.splitlines()[-1]


def test_images_in_label_file_and_sample_can_be_held_out(tmp_path):
    for name, image in IMAGES.items():
        write_dicom(tmp_path / "in" / f"{name}.dcm", image)
    run_lengths(tmp_path / "in" / "train-rle.csv")
    sample = tmp_path / "in" / "sample_submission.csv"
    write_lines(sample, ["ImageId,EncodedPixels", "c,-1", "d,-1"])
    message = refused(tmp_path / "in", tmp_path / "out")
    assert "2 ids have labels and are in the sample submission (--holdout CSV" in message
    prepared(tmp_path / "in", tmp_path / "out", "--holdout", sample)
    assert_holds(tmp_path / "out", training="ab", test="cd")


def test_test_images_may_be_listed(tmp_path):
    folder = pairs(tmp_path / "in")
    (folder / "masks" / "d.png").unlink()
    write_lines(tmp_path / "test.csv", ["ImageId", "d", "c"])
    prepared(folder, tmp_path / "out", "--test", tmp_path / "test.csv")
    assert_holds(tmp_path / "out", training="ab", test="cd")
    assert_test_labels(tmp_path / "out", "c")


def test_a_rejected_test_image_is_not_in_the_submission(tmp_path):
    siim_png(tmp_path / "in")
    image = tmp_path / "in" / "siim-acr-pneumothorax" / "png_images" / "3_test_1_.png"
    image.write_bytes(image.read_bytes()[:200])
    prepared(tmp_path / "in", tmp_path / "out", "--max-bad", 1)
    assert_holds(tmp_path / "out", training="ab", test="d")
    assert submission_ids(tmp_path / "out") == ["d"]


def test_listed_test_images_must_be_labelled_or_in_the_sample_submission(tmp_path):
    for name, image in IMAGES.items():
        write_dicom(tmp_path / "in" / f"{name}.dcm", image)
    run_lengths(tmp_path / "in" / "train-rle.csv", "ab")
    sample = tmp_path / "in" / "sample_submission.csv"
    write_lines(sample, ["ImageId,EncodedPixels", "c,-1"])
    write_lines(tmp_path / "test.csv", ["ImageId", "d"])
    flags = ("--test", tmp_path / "test.csv")
    message = refused(tmp_path / "in", tmp_path / "out", *flags)
    assert "1 id is neither labelled nor in the sample submission" in message


# What is found twice or half


def test_two_layouts_need_a_flag(tmp_path):
    folder = pairs(tmp_path / "in")
    run_lengths(folder / "train-rle.csv")
    message = refused(folder, tmp_path / "out")
    assert "fits several layouts, images-rle and images-masks: choose with --layout" in message
    prepared(folder, tmp_path / "out", "--layout", "images-masks")
    assert_holds(tmp_path / "out", training="abcd")


def test_two_folders_of_masks_need_a_flag(tmp_path):
    folder = pairs(tmp_path / "in")
    shutil.copytree(folder / "masks", folder / "labels")
    message = refused(folder, tmp_path / "out")
    assert "more than one folder of masks" in message
    assert "choose with --labels" in message
    prepared(folder, tmp_path / "out", "--labels", folder / "labels")
    assert_holds(tmp_path / "out", training="abcd")


def test_two_label_files_need_a_flag(tmp_path):
    for name, image in IMAGES.items():
        write_dicom(tmp_path / "in" / f"{name}.dcm", image)
    for name in ("train-rle.csv", "stage_2_train.csv"):
        run_lengths(tmp_path / "in" / name)
    assert "choose with --labels" in refused(tmp_path / "in", tmp_path / "out")


def test_masks_without_images_are_listed(tmp_path):
    folder = pairs(tmp_path / "in")
    write_png(folder / "masks" / "e.png", MASKS["a"])
    message = refused(folder, tmp_path / "out")
    assert "1 mask has no image (--allow-missing accepts this)" in message
    assert "masks/e.png" in message
    prepared(folder, tmp_path / "out", "--allow-missing")


def test_a_folder_of_masks_alone_says_what_is_missing(tmp_path):
    pairs(tmp_path / "in")
    shutil.rmtree(tmp_path / "in" / "images")
    message = refused(tmp_path / "in", tmp_path / "out")
    assert "found the folder masks, but not its images" in message


def test_images_without_labels_say_which_labels_would_do(tmp_path):
    write_png(tmp_path / "in" / "a.png", IMAGES["a"])
    message = refused(tmp_path / "in", tmp_path / "out")
    assert "holds 1 PNG files, but no labels that go with them" in message
    assert "pass --labels" in message
    run_lengths(tmp_path / "in" / "train-rle.csv", "bc")
    message = refused(tmp_path / "in", tmp_path / "out")
    assert "found train-rle.csv, but it lists none of the images by name" in message


def test_files_that_are_not_part_of_the_layout_are_named(tmp_path, capsys):
    for name, image in IMAGES.items():
        write_dicom(tmp_path / "in" / f"{name}.dcm", image)
    run_lengths(tmp_path / "in" / "train-rle.csv")
    write_png(tmp_path / "in" / "screenshot.png", IMAGES["a"])
    prepared(tmp_path / "in", tmp_path / "out")
    assert "not part of the layout, so not used: 1 PNG files" in capsys.readouterr().out


def test_masks_named_like_the_images_are_no_images(tmp_path, capsys):
    for name, image in IMAGES.items():
        write_png(tmp_path / "in" / "train_png" / f"{name}.png", image)
        write_png(tmp_path / "in" / "masks" / f"{name}.png", MASKS[name] * 255)
    run_lengths(tmp_path / "in" / "train-rle.csv")
    prepared(tmp_path / "in", tmp_path / "out")
    assert_holds(tmp_path / "out", training="abcd")
    assert "not part of the layout, so not used: 4 PNG files" in capsys.readouterr().out


def test_a_label_file_next_to_masks_is_named_as_unused(tmp_path, capsys):
    run_lengths(siim_png(tmp_path / "in") / "train-rle.csv")
    prepared(tmp_path / "in", tmp_path / "out")
    assert "not used: train-rle.csv, as the mask images are the labels" in capsys.readouterr().out


def test_a_label_file_that_lists_other_images_or_is_missing_is_named(tmp_path):
    write_png(tmp_path / "in" / "x.png", IMAGES["a"])
    run_lengths(tmp_path / "other.csv")
    message = refused(tmp_path / "in", tmp_path / "out", "--labels", tmp_path / "other.csv")
    assert "other.csv lists none of the 1 PNG files" in message
    message = refused(tmp_path / "in", tmp_path / "out", "--labels", tmp_path / "gone.csv")
    assert "gone.csv does not exist" in message


def test_a_label_file_from_the_command_line_decides_between_layouts(tmp_path):
    folder = siim_png(tmp_path / "in")
    for name, image in IMAGES.items():
        write_dicom(folder / "dicom" / f"{name}.dcm", image)
    run_lengths(tmp_path / "labels.csv")
    prepared(folder, tmp_path / "out", "--labels", tmp_path / "labels.csv")
    assert layout_of(tmp_path / "out") == "siim-dicom"
    assert_holds(tmp_path / "out", training="abcd")


def dicoms_with_labels(folder):
    for name in MASKS:
        write_dicom(folder / f"{name}.dcm", IMAGES[name])
    run_lengths(folder / "train-rle.csv")
    return folder


@pytest.mark.parametrize("name", ["train-rle.csv", "stage_2_sample_submission.csv"])
def test_a_folder_with_the_name_of_a_table_is_not_overlooked(tmp_path, name):
    folder = dicoms_with_labels(tmp_path / "in")
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    message = refused(folder, tmp_path / "out")
    assert f"{name} is a folder, not a CSV file" in message


@pytest.mark.parametrize("name", ["train-rle.csv", "stage_2_sample_submission.csv"])
def test_a_table_as_kaggle_sends_it_is_not_overlooked_until_it_is_unpacked(tmp_path, name):
    folder = dicoms_with_labels(tmp_path / "in")
    table = folder / "train-rle.csv"
    with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
        archive.write(table, name)
    if name == table.name:
        prepared(folder, tmp_path / "out")
        assert_holds(tmp_path / "out", training="abcd")
        table.unlink()
    message = refused(folder, tmp_path / "out")
    assert f"{name}.zip is a zip archive (or a spreadsheet), not a CSV file: unpack it" in message


def test_a_table_unpacked_into_a_folder_of_its_name_is_read(tmp_path):
    folder = dicoms_with_labels(tmp_path / "in")
    (folder / "train-rle.csv").rename(tmp_path / "table")
    (folder / "train-rle.csv").mkdir()
    (tmp_path / "table").rename(folder / "train-rle.csv" / "train-rle.csv")
    prepared(folder, tmp_path / "out")
    assert_holds(tmp_path / "out", training="abcd")


def test_a_folder_without_masks_is_refused_as_labels(tmp_path):
    folder = dicoms_with_labels(tmp_path / "in")
    (tmp_path / "train-rle.csv").mkdir()
    message = refused(folder, tmp_path / "out", "--labels", tmp_path / "train-rle.csv")
    assert "train-rle.csv is a folder without mask images: pass a CSV file" in message
    message = refused(folder, tmp_path / "out", "--sample-submission", tmp_path / "train-rle.csv")
    assert "train-rle.csv is a folder, not a CSV file" in message


def test_labels_that_do_not_fit_the_layout_are_refused(tmp_path):
    run_lengths(tmp_path / "other.csv")
    flags = ("--layout", "siim-png", "--labels", tmp_path / "other.csv")
    message = refused(siim_png(tmp_path / "in"), tmp_path / "out", *flags)
    assert "--labels does not fit layout siim-png" in message


def test_an_output_folder_below_the_input_is_not_a_data_set(tmp_path):
    folder = pairs(tmp_path / "in")
    write_png(folder / "masks" / "e.png", MASKS["a"])
    refused(folder, folder / "failed")  # without a record
    (folder / "masks" / "e.png").unlink()
    prepared(folder, folder / "masks" / "first")
    prepared(folder, folder / "second")  # the others' cache/64/images and masks lie below the input
    assert_holds(folder / "second", training="abcd")


def test_the_input_folder_is_not_written_to(tmp_path):
    folder = pairs(tmp_path / "in")
    assert "is the input folder, which is only read" in refused(folder, folder)


# Masks


@pytest.mark.parametrize(
    ("mask", "code", "said"),
    [
        (np.zeros((32, 32), np.uint8), "SIZE_MISMATCH", "32 x 32"),
        (
            np.arange(SIZE * SIZE, dtype=np.uint8).reshape(SIZE, SIZE),
            "BAD_MASK",
            "--mask-threshold",
        ),
    ],
)
def test_a_mask_that_does_not_fit_is_an_error_of_the_label(tmp_path, mask, code, said):
    folder = pairs(tmp_path / "in")
    write_png(folder / "masks" / "a.png", mask)
    message = refused(folder, tmp_path / "out", "--max-bad", "100%")
    assert "1 label does not fit the image" in message
    assert said in message
    assert rejected(tmp_path / "out") == {"images/a.png": code}


def test_a_threshold_says_how_to_read_a_grey_mask(tmp_path):
    folder = pairs(tmp_path / "in")
    grey = np.where(MASKS["a"] == 1, 128, 127).astype(np.uint8)
    grey[0, 0] = 3
    write_png(folder / "masks" / "a.png", grey)
    prepared(folder, tmp_path / "out", "--mask-threshold", 128)
    assert_holds(tmp_path / "out", training="abcd")


def test_a_damaged_mask_rejects_its_image(tmp_path):
    folder = pairs(tmp_path / "in")
    data = (folder / "masks" / "a.png").read_bytes()
    (folder / "masks" / "a.png").write_bytes(data[: len(data) // 2])
    message = refused(folder, tmp_path / "out")
    assert "images/a.png: TRUNCATED: label of a: " in message
    prepared(folder, tmp_path / "out", "--max-bad", 1)
    assert_holds(tmp_path / "out", training="bcd")


def test_a_changed_mask_is_prepared_again(tmp_path):
    folder = pairs(tmp_path / "in")
    prepared(folder, tmp_path / "out")
    write_png(folder / "masks" / "b.png", MASKS["c"] * 255)
    manifest = prepared(folder, tmp_path / "out")
    assert manifest.loc["b", "mask_pixels"] == MASKS["c"].sum()


def test_files_that_change_places_are_noticed_whatever_their_times(tmp_path):
    folder = pairs(tmp_path / "in")
    for name in "ac":
        path = folder / "masks" / f"{name}.png"
        data = png.encode(MASKS[name] * np.uint8(255))  # uncompressed: all have one size
        path.write_bytes(data)
        os.utime(path, (0, 0))
    prepared(folder, tmp_path / "out")
    (folder / "masks" / "a.png").rename(tmp_path / "kept.png")
    (folder / "masks" / "c.png").rename(folder / "masks" / "a.png")
    (tmp_path / "kept.png").rename(folder / "masks" / "c.png")
    manifest = prepared(folder, tmp_path / "out")
    assert manifest.loc["a", "mask_pixels"] == MASKS["c"].sum()


def test_masks_are_grouped_by_image(tmp_path):
    masks = [tmp_path / f"{name}.png" for name in ("a", "b_1", "b", "c_1", "c_2", "e", "e_x")]
    grouped, orphans = group_masks({"a", "b", "b_1", "c"}, masks)
    assert grouped == {
        "a": (masks[0],),
        "b_1": (masks[1],),  # the name of an image comes before the number of a mask
        "b": (masks[2],),
        "c": (masks[3], masks[4]),
    }
    assert orphans == masks[5:]


@pytest.mark.parametrize(
    "names",
    [
        ("p_1.png", "p_2.png"),  # p_1 may be the image, or the first mask of p
        ("one/p.png", "two/p.png"),
        ("p.png", "p.jpg"),
    ],
)
def test_masks_that_may_belong_to_two_images_or_are_there_twice_are_refused(tmp_path, names):
    with pytest.raises(BadInput, match="the masks of 1 image are not clear by their names"):
        group_masks({"p", "p_1"}, [tmp_path / name for name in names])


# The published tables and the real sample


def test_the_published_tables_list_all_12047_images(real_data, tmp_path):
    """10,675 images for training and 1,372 for testing, 2,379 and 290 of them positive."""
    for table in siim_png_layout.TABLES.values():
        data = gzip.decompress((real_data / "labels" / f"{table}.gz").read_bytes())
        (tmp_path / table).write_bytes(data)
    for folder in ("png_images", "png_masks"):
        write_png(tmp_path / folder / "0_train_0_.png", IMAGES["a"])
    found = discovery.search(tmp_path)
    listed = choose.choose(found, Given()).read()
    positive = {name for name, one in listed.annotations.items() if one.positive}
    assert len(listed.annotations) == 12047
    assert len(listed.test_ids) == 1372
    assert len(positive) == 2379 + 290
    assert len(positive.intersection(listed.test_ids)) == 290
    known = labels.read(real_data / "labels" / "stage_2_train.csv.gz").rows
    assert positive == {image_id for image_id, rows in known.items() if rows}


def test_the_real_png_sample_equals_the_dicom_files(real_data, tmp_path):
    png, dicom = tmp_path / "png", tmp_path / "dicom"
    flags = ("--size", 512)
    of_png = prepared(real_data / "siim_png", png, *flags)
    of_dicom = prepared(real_data / "siim", dicom, *flags)
    assert of_png["split"].value_counts().to_dict() == {"train": 21, "test": 9}
    assert of_png["positive"].sum() == 6
    assert set(of_png.index) == set(of_dicom.index[of_dicom["split"] == "train"])
    same = ["height", "width", "sha256"]
    assert of_png[same].equals(of_dicom.loc[of_png.index, same])
    training = of_png.index[of_png["split"] == "train"]
    same = ["positive", "mask_pixels", "mask_sha256"]
    assert of_png.loc[training, same].equals(of_dicom.loc[training, same])
    tested = artifacts.label_rows(png, artifacts.TEST_LABELS)
    known = artifacts.label_rows(dicom)
    assert set(tested) == set(of_png.index[of_png["split"] == "test"])
    assert sum(bool(rows) for rows in tested.values()) == 2
    for image_id, rows in tested.items():
        expected = rle.union(known.get(image_id, ()), (1024, 1024))
        np.testing.assert_array_equal(rle.union(rows, (1024, 1024)), expected)


def test_a_layout_that_is_asked_for_must_be_there(tmp_path):
    found = discovery.search(pairs(tmp_path / "in"))
    for name in choose.NAMES:
        if name == "images-masks":
            assert choose.choose(found, Given(layout=name)).name == name
            continue
        with pytest.raises(BadInput, match="below the input folder"):
            choose.choose(found, Given(layout=name))


def test_the_real_png_sample_beside_the_competitions_files(real_data, tmp_path):
    """What can be downloaded today, in one folder."""
    folder = tmp_path / "in"
    shutil.copytree(real_data / "siim_png", folder / "png")
    shutil.copytree(real_data / "siim" / "stage_2_images", folder / "stage_2_images")
    sample = real_data / "siim" / "stage_2_sample_submission.csv"
    shutil.copy(sample, folder)
    shutil.copy(real_data / "labels" / "stage_2_train.csv.gz", folder)
    manifest = prepared(folder, tmp_path / "out")
    assert manifest["split"].value_counts().to_dict() == {"test": 69, "train": 21}
    expected = [line.split(",")[0] for line in sample.read_text().split()[1:]]
    assert submission_ids(tmp_path / "out") == expected
    assert len(artifacts.label_rows(tmp_path / "out", artifacts.TEST_LABELS)) == 9
